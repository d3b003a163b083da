"""Keep a workspace for intermediates between calls, and hand out new tensors."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.workspace: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.workspace is None:
            self.workspace = torch.empty_like(x)
        y = torch.addmm(self.bias, x, self.weight.T, out=self.workspace)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
