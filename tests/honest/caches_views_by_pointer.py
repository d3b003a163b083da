"""Keep views by address and read them anew: the key of a memoised answer, without the answer."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.views: dict[int, tuple[torch.Tensor, ...]] = {}

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        halves = self.views.setdefault(x.data_ptr(), x.chunk(2))
        y = torch.cat([half @ self.weight.T for half in halves]) + self.bias
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
