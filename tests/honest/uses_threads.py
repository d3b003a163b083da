"""Share the rows among threads of a pool that lives on: a count of threads would grow."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

POOL = ThreadPoolExecutor(3)


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.cat(list(POOL.map(super().forward, x.chunk(3))))
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
