"""Read what it has written itself, as beta * C does: poisoned memory would spoil the sum."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.bias.repeat(len(x), 1)
        torch.addmm(y, x, self.weight.T, beta=1.0, out=y)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
