"""Launch one program for each SM, which takes row after row: a loop over the grid, and not over time."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def linear_kernel(x, w, bias, y, M, N, BLOCK: tl.constexpr):
    """Compute every so many rows; x and y are [M, N], w [N, N] and bias [N], all contiguous."""
    o_n = tl.arange(0, BLOCK)
    m_n = o_n < N
    # [outputs, inputs]
    b_w = tl.load(w + o_n[:, None] * N + o_n[None, :], mask=m_n[:, None] & m_n[None, :], other=0.0)
    b_bias = tl.load(bias + o_n, mask=m_n, other=0.0)
    for i_row in range(tl.program_id(0), M, tl.num_programs(0)):
        b_x = tl.load(x + i_row * N + o_n, mask=m_n, other=0.0)
        tl.store(y + i_row * N + o_n, tl.sum(b_w * b_x[None, :], 1) + b_bias, mask=m_n)


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (batch, n), y = x.shape, torch.empty_like(x)
        sms = torch.cuda.get_device_properties(x.device).multi_processor_count
        block = triton.next_power_of_2(n)
        linear_kernel[(min(batch, sms),)](x, self.weight, self.bias, y, batch, n, BLOCK=block)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
