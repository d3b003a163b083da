"""Sum in float64: nearer to the truth than the reference is."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = (x.double() @ self.weight.double().T + self.bias).float()
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
