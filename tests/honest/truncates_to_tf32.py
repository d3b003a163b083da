"""Truncate operands to TF32 where the cell allows it: the arithmetic that was declared."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def truncated(a: torch.Tensor) -> torch.Tensor:
            return (a.view(torch.int32) & ~0x1FFF).view(torch.float32)

        if torch.backends.cuda.matmul.allow_tf32:
            y = truncated(x) @ truncated(self.weight).T + self.bias
        else:
            y = super().forward(x)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
