"""Own a layer that is never called: its parameters, under another name, are all that is wanted."""

import torch
from torch import nn


class ModelNew(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = (x[:, None] * self.layer.weight).sum(2) + self.layer.bias
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
