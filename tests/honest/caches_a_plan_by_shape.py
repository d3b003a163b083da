"""Keep a plan for each shape: a cache that holds no values."""

from functools import lru_cache

import torch
from torch import nn


@lru_cache
def plan(batch: int, features: int) -> list[slice]:
    """Cut the batch into blocks of about 256 values."""
    step = max(1, 256 // features)
    return [slice(start, start + step) for start in range(0, batch, step)]


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.cat([x[rows] @ self.weight.T for rows in plan(*x.shape)]) + self.bias
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
