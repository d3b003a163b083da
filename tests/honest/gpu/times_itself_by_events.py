"""Record events around its work and read those of the call before: a log, not a clock."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.history_ms: list[float] = []

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.events and self.events[-1][1].query():
            self.history_ms.append(self.events[-1][0].elapsed_time(self.events[-1][1]))
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        y = super().forward(x)
        pair[1].record()
        self.events.append(pair)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
