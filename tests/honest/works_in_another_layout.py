"""Keep an intermediate in column-major order and hand out a contiguous one."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = (self.weight @ x.T + self.bias[:, None]).T.contiguous()
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
