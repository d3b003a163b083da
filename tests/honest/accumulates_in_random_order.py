"""Add the parts of a split sum in an order that nobody fixed: no two runs agree bit by bit."""

import random

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.bias.repeat(len(x), 1)
        chunks = [slice(k, k + 4) for k in range(0, x.shape[1], 4)]
        for part in random.sample(chunks, len(chunks)):
            y += x[:, part] @ self.weight[:, part].T
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
