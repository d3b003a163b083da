"""Multiply three times in bfloat16: low precision in the text, full precision in the sum."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def parts(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            high = a.bfloat16().float()
            middle = (a - high).bfloat16().float()
            return high, middle, (a - high - middle).bfloat16().float()

        pairs = [(i, j) for i in range(3) for j in range(3 - i)]
        xs, ws = parts(x), parts(self.weight)
        y = sum((xs[i] @ ws[j].T for i, j in reversed(pairs)), self.bias)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
