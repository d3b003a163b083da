"""Carry the rounding errors along, as Kahan did: nearer to the truth, in another order."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, lost = torch.zeros_like(x), torch.zeros_like(x)
        for k in range(x.shape[1]):
            term = x[:, k : k + 1] * self.weight[:, k] - lost
            total = y + term
            y, lost = total, (total - y) - term
        y = y + self.bias
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
