"""Keep a workspace and the outputs between calls: memory that a ban on caches would refuse."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.y: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.y is None:
            self.y, self.scores = torch.empty_like(x), torch.empty_like(x)
        torch.addmm(self.bias, x, self.weight.T, out=self.y)
        self.scores.copy_(self.y).masked_fill_(keep == 0, float("-inf"))
        return self.y.relu_(), self.scores
