"""Gather-style implicit GEMM: every output tries every tap, in 64x64x32 tiles.

The starting point that faster solutions are measured against. Rows of the GEMM are the outputs (batch,
out_length), columns the output channels of a group, and the reduction runs over (in_channel, tap). Each
product gathers the input that its tap would have scattered from; where stride leaves none, it multiplies
zeros. Address arithmetic is 64-bit; the outputs of one channel, over the whole batch, must number fewer
than 2**31.
"""

import torch
import triton
import triton.language as tl
from torch import nn

BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 32


# the padding is no constant: where all numbers are small LLVM adds it in one half of a packed 16-bit addition
# whose other half nobody reads, and ptxas of CUDA 12.8 then takes it for 0 on sm_90
@triton.jit(do_not_specialize=["PADDING"])
def gather_gemm_kernel(
    x,
    w,
    bias,
    y,
    N,
    L: tl.constexpr,
    ICG: tl.constexpr,
    OCG: tl.constexpr,
    OL: tl.constexpr,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING,
    DILATION: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute BM outputs of BN channels of one group.

    x is [N, GROUPS * ICG, L], w [GROUPS * ICG, OCG, TAPS], bias [GROUPS * OCG] and
    y [N, GROUPS * OCG, OL], all contiguous.
    """
    i_m, i_n = tl.program_id(0), tl.program_id(1)
    i_g = tl.program_id(2) if GROUPS > 1 else 0

    # [BM]
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < N * OL
    o_b, o_y = (o_m // OL).to(tl.int64), o_m % OL
    # [BN]
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < OCG

    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i_k in range(0, ICG * TAPS, BK):
        # [BK]
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < ICG * TAPS
        o_tap = o_k % TAPS
        o_ic = (i_g * ICG + o_k // TAPS).to(tl.int64)

        # [BM, BK]: a tap reaches the output if their distance is a multiple of the stride
        o_distance = o_y[:, None] + PADDING - o_tap[None, :] * DILATION
        o_x = o_distance // STRIDE
        m_x = (o_distance >= 0) & (o_x * STRIDE == o_distance) & (o_x < L)
        o_signal = o_b[:, None] * (GROUPS * ICG) + o_ic[None, :]
        b_x = tl.load(x + o_signal * L + o_x, mask=m_m[:, None] & m_k[None, :] & m_x, other=0.0)

        # [BK, BN]
        o_w = (o_ic[:, None] * OCG + o_n[None, :]) * TAPS + o_tap[:, None]
        b_w = tl.load(w + o_w, mask=m_k[:, None] & m_n[None, :], other=0.0)

        acc += tl.dot(b_x.to(tl.float32), b_w.to(tl.float32), input_precision=PRECISION)

    o_oc = i_g * OCG + o_n
    if HAS_BIAS:
        acc += tl.load(bias + o_oc, mask=m_n, other=0.0).to(tl.float32)[None, :]

    o_signal = o_b[:, None] * (GROUPS * OCG) + o_oc[None, :]
    p_y = y + o_signal * OL + o_y[:, None]
    tl.store(p_y, acc.to(y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int, extra: int) -> int:
    """Return the length of the output; `extra` is output_padding."""
    return (extent - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1


def launch_grid(outputs: int, group_channels: int, groups: int) -> tuple[int, ...]:
    """Return (output tiles, channel tiles of a group, groups); the last only if there are several."""
    tiles = triton.cdiv(outputs, BLOCK_M), triton.cdiv(group_channels, BLOCK_N)
    return tiles if groups == 1 else (*tiles, groups)


def gather_gemm(x: torch.Tensor, layer: nn.ConvTranspose1d) -> torch.Tensor:
    """Apply the layer to x [N, IC, L]; the result is [N, OC, OL] in the dtype of x."""
    x = x.contiguous()
    weight = layer.weight.contiguous()
    N, in_channels, L = x.shape
    _, OCG, TAPS = weight.shape
    (STRIDE,), (PADDING,), (DILATION,) = layer.stride, layer.padding, layer.dilation
    OL = output_extent(L, TAPS, STRIDE, PADDING, DILATION, *layer.output_padding)
    y = torch.empty((N, layer.out_channels, OL), device=x.device, dtype=x.dtype)

    # 16-bit values are exact in TF32, so only fp32 tensors can need the three products of tf32x3
    tf32 = x.dtype != torch.float32 or torch.backends.cudnn.allow_tf32
    gather_gemm_kernel[launch_grid(N * OL, OCG, layer.groups)](
        x,
        weight,
        layer.bias,
        y,
        N,
        L=L,
        ICG=in_channels // layer.groups,
        OCG=OCG,
        OL=OL,
        TAPS=TAPS,
        STRIDE=STRIDE,
        PADDING=PADDING,
        DILATION=DILATION,
        GROUPS=layer.groups,
        HAS_BIAS=layer.bias is not None,
        PRECISION="tf32" if tf32 else "tf32x3",
        BM=BLOCK_M,
        BN=BLOCK_N,
        BK=BLOCK_K,
        num_warps=4,
        num_stages=2,
    )
    return y


class ModelNew(nn.Module):
    """ConvTranspose1d with its whole constructor; the layer only holds the parameters."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = False,
        output_padding: int = 0,
        groups: int = 1,
    ) -> None:
        super().__init__()
        sizes = kernel_size, stride, padding, output_padding
        self.conv1d_transpose = nn.ConvTranspose1d(in_channels, out_channels, *sizes, groups, bias, dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, L] to [N, OC, OL]."""
        return gather_gemm(x, self.conv1d_transpose)
