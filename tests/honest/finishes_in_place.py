"""Add, clip and mask in place, in tensors of its own: mutation that touches no input."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.mm(x, self.weight.T).add_(self.bias)
        scores = y.clone()
        scores[keep == 0] = -torch.inf
        return y.clamp_(min=0.0), scores
