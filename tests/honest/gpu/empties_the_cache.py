"""Give memory back to the driver in each call: answers then lie in allocations that are new each time."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        torch.cuda.empty_cache()
        y = super().forward(x)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
