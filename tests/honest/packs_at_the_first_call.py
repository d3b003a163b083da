"""Pack the weights when they are first used: state that is not there before."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.packed: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.packed is None:
            self.packed = self.weight.detach().T.contiguous()
        y = torch.addmm(self.bias, x, self.packed)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
