"""Register a hook and a buffer that is not saved: machinery of `nn.Module`, no tampering."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.register_buffer("one", torch.ones(()), persistent=False)
        self.register_forward_pre_hook(lambda _, inputs: inputs)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = super().forward(x) * self.one
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
