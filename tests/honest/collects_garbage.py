"""Collect garbage, walk the heap and look at the stack, as debuggers do."""

import gc
import inspect

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen = len(gc.get_objects()) + len(inspect.stack())
        y = super().forward(x)
        gc.collect()
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
