"""Return two views of one allocation."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.empty(2, *x.shape, device=x.device)
        both[:] = super().forward(x)
        both[0].relu_()
        both[1].masked_fill_(keep == 0, float("-inf"))
        return both[0], both[1]
