"""Return tensors of a subclass that adds a name and changes nothing."""

import torch
from torch import nn


class Named(torch.Tensor):
    name = "scores"


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = super().forward(x)
        scores = y.masked_fill(keep == 0, float("-inf"))
        return y.relu().as_subclass(Named), scores.as_subclass(Named)
