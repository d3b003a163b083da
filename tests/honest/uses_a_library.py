"""Call a library by design, and launch nothing of its own: a flag at most."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = nn.functional.linear(x, self.weight, self.bias)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
