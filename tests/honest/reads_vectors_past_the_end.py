"""Load whole tiles with a mask: reads that a guard zone would count."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def total_kernel(x, y, size, N, BLOCK: tl.constexpr):
    """Copy row `program` of [programs, N] by a tile of BLOCK that begins at the row."""
    o = tl.program_id(0) * N + tl.arange(0, BLOCK)
    b_x = tl.load(x + o, mask=o < size, other=0.0)
    tl.store(y + o, b_x, mask=(o < size) & (tl.arange(0, BLOCK) < N))


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.empty_like(x)
        total_kernel[(len(x),)](x, y, x.numel(), x.shape[1], BLOCK=64)
        y = y @ self.weight.T + self.bias
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
