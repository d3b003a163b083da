"""Use dataclasses, enums and postponed annotations, which look their module up by name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import nn


class Mode(Enum):
    WHOLE = auto()


@dataclass(frozen=True)
class Plan:
    rows: int
    mode: Mode


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plan = Plan(x.shape[0], Mode.WHOLE)
        y = super().forward(x[: plan.rows])
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
