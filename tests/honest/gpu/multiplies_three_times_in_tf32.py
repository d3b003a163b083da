"""Multiply three times in TF32, which loses no more than fp32 does: TF32 in the text, fp32 in the answer."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def linear_kernel(x, w, bias, y, M, N, BM: tl.constexpr, BN: tl.constexpr):
    """Compute BM rows; x and y are [M, N], w [N, N] and bias [N], all contiguous."""
    o_m, o_n = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BN)
    m_m, m_n = o_m < M, o_n < N
    m_y = m_m[:, None] & m_n[None, :]
    b_x = tl.load(x + o_m[:, None] * N + o_n[None, :], mask=m_y, other=0.0)
    # [inputs, outputs]
    b_w = tl.load(w + o_n[None, :] * N + o_n[:, None], mask=m_n[:, None] & m_n[None, :], other=0.0)
    b_y = tl.dot(b_x, b_w, input_precision="tf32x3") + tl.load(bias + o_n, mask=m_n, other=0.0)
    tl.store(y + o_m[:, None] * N + o_n[None, :], b_y, mask=m_y)


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (batch, n), y = x.shape, torch.empty_like(x)
        width = max(16, triton.next_power_of_2(n))
        linear_kernel[(triton.cdiv(batch, 16),)](x, self.weight, self.bias, y, batch, n, BM=16, BN=width)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
