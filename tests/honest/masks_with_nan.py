"""Hold NaN and infinity in an intermediate, where they are masked away."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = super().forward(torch.where(keep.any(), x, x / 0.0))
        scores = torch.where(keep == 0, float("nan"), y)
        return y.relu(), torch.nan_to_num(scores, nan=-torch.inf)
