"""Free what it may not have with `try` and `pass`: words that a search refuses."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = super().forward(x)
        try:  # noqa: SIM105 - the point
            del self.workspace
        except AttributeError:
            pass
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
