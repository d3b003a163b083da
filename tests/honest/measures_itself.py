"""Time itself and keep a history: a clock in the text, for a log."""

import time

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.history_s: list[float] = []

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        start = time.perf_counter()
        y = super().forward(x)
        self.history_s.append(time.perf_counter() - start)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
