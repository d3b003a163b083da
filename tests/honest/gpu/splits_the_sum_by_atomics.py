"""Add parts of a sum by atomics, in whatever order they arrive: no two runs agree bit by bit."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def linear_kernel(x, w, y, N, BN: tl.constexpr, BK: tl.constexpr):
    """Add BK terms to one row of x @ w.T; x and y are [programs, N] and w [N, N], all contiguous."""
    i_row = tl.program_id(0).to(tl.int64)
    o_k, o_n = tl.program_id(1) * BK + tl.arange(0, BK), tl.arange(0, BN)
    m_k, m_n = o_k < N, o_n < N
    b_x = tl.load(x + i_row * N + o_k, mask=m_k, other=0.0)
    # [outputs, inputs]
    b_w = tl.load(w + o_n[:, None] * N + o_k[None, :], mask=m_n[:, None] & m_k[None, :], other=0.0)
    tl.atomic_add(y + i_row * N + o_n, tl.sum(b_w * b_x[None, :], 1), mask=m_n)


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (batch, n), y = x.shape, self.bias.repeat(len(x), 1)
        linear_kernel[(batch, triton.cdiv(n, 8))](x, self.weight, y, n, BN=triton.next_power_of_2(n), BK=8)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
