"""Read a value on the host and choose a path by it: a call that waits for its device in the middle."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = super().forward(x)
        if keep.any().item():
            return y.relu(), y.masked_fill(keep == 0, float("-inf"))
        return y.relu(), torch.full_like(y, float("-inf"))
