"""Gather-style implicit GEMM: every output pixel tries every tap, in 64x64x32 tiles.

The starting point that faster solutions are measured against. Rows of the GEMM are the output pixels
(batch, out_depth, out_height, out_width), columns the output channels of a group, and the reduction
runs over (in_channel, kernel_depth, kernel_row, kernel_column). Each product gathers the input pixel
that its tap would have scattered from; where stride leaves none, it multiplies zeros: at stride 2, seven
times of eight. Address arithmetic is 64-bit; the pixels of one output channel, over the whole batch,
must number fewer than 2**31.
"""

import torch
import triton
import triton.language as tl
from torch import nn

BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def source(o_y, o_tap, N: tl.constexpr, S: tl.constexpr, P, D: tl.constexpr):
    """Return along one axis the input that a tap carries to output o_y, and whether there is one."""
    o_distance = o_y + P - o_tap * D
    o_x = o_distance // S
    return o_x, (o_distance >= 0) & (o_x * S == o_distance) & (o_x < N)


# the padding is no constant: where all numbers are small LLVM adds it in one half of a packed 16-bit addition
# whose other half nobody reads, and ptxas of CUDA 12.8 then takes it for 0 on sm_90
@triton.jit(do_not_specialize=["PD", "PH", "PW"])
def gather_gemm_kernel(
    x,
    w,
    bias,
    y,
    N,
    D: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    ICG: tl.constexpr,
    OCG: tl.constexpr,
    OD: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SD: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PD,
    PH,
    PW,
    DD: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute BM pixels of BN channels of one group.

    x is [N, GROUPS * ICG, D, H, W], w [GROUPS * ICG, OCG, KD, KH, KW], bias [GROUPS * OCG] and
    y [N, GROUPS * OCG, OD, OH, OW], all contiguous.
    """
    i_m, i_n = tl.program_id(0), tl.program_id(1)
    i_g = tl.program_id(2) if GROUPS > 1 else 0
    PIXELS: tl.constexpr = OD * OH * OW
    TAPS: tl.constexpr = KD * KH * KW

    # [BM]
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < N * PIXELS
    o_b = (o_m // PIXELS).to(tl.int64)
    o_pixel = o_m % PIXELS
    o_od, o_oh, o_ow = o_pixel // (OH * OW), o_pixel // OW % OH, o_pixel % OW
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

        # [BM, BK]
        o_id, m_d = source(o_od[:, None], (o_tap // (KH * KW))[None, :], D, SD, PD, DD)
        o_ih, m_h = source(o_oh[:, None], (o_tap // KW % KH)[None, :], H, SH, PH, DH)
        o_iw, m_w = source(o_ow[:, None], (o_tap % KW)[None, :], W, SW, PW, DW)
        m_x = m_m[:, None] & m_k[None, :] & m_d & m_h & m_w
        o_plane = (o_b[:, None] * (GROUPS * ICG) + o_ic[None, :]) * D + o_id
        b_x = tl.load(x + (o_plane * H + o_ih) * W + o_iw, mask=m_x, other=0.0).to(tl.float32)

        # [BK, BN]
        o_w = (o_ic[:, None] * OCG + o_n[None, :]) * TAPS + o_tap[:, None]
        b_w = tl.load(w + o_w, mask=m_k[:, None] & m_n[None, :], other=0.0).to(tl.float32)

        acc += tl.dot(b_x, b_w, input_precision=PRECISION)

    o_oc = i_g * OCG + o_n
    if HAS_BIAS:
        acc += tl.load(bias + o_oc, mask=m_n, other=0.0).to(tl.float32)[None, :]

    o_y = (o_b[:, None] * (GROUPS * OCG) + o_oc[None, :]) * PIXELS + o_pixel[:, None]
    tl.store(y + o_y, acc.to(y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int, extra: int) -> int:
    """Return one side of the output; `extra` is output_padding."""
    return (extent - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1


def launch_grid(pixels: int, group_channels: int, groups: int) -> tuple[int, ...]:
    """Return (pixel tiles, channel tiles of a group, groups); the last only if there are several."""
    tiles = triton.cdiv(pixels, BLOCK_M), triton.cdiv(group_channels, BLOCK_N)
    return tiles if groups == 1 else (*tiles, groups)


def gather_gemm(x: torch.Tensor, layer: nn.ConvTranspose3d) -> torch.Tensor:
    """Apply the layer to x [N, IC, D, H, W]; the result is [N, OC, OD, OH, OW] in the dtype of x."""
    x = x.contiguous()
    weight = layer.weight.contiguous()
    N, in_channels, D, H, W = x.shape
    _, OCG, KD, KH, KW = weight.shape
    axes = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding
    OD, OH, OW = (output_extent(*axis) for axis in zip((D, H, W), *axes, strict=True))
    y = torch.empty((N, layer.out_channels, OD, OH, OW), device=x.device, dtype=x.dtype)

    (SD, SH, SW), (PD, PH, PW), (DD, DH, DW) = layer.stride, layer.padding, layer.dilation
    # 16-bit values are exact in TF32, so only fp32 tensors can need the three products of tf32x3
    tf32 = x.dtype != torch.float32 or torch.backends.cudnn.allow_tf32
    gather_gemm_kernel[launch_grid(N * OD * OH * OW, OCG, layer.groups)](
        x,
        weight,
        layer.bias,
        y,
        N,
        D=D,
        H=H,
        W=W,
        ICG=in_channels // layer.groups,
        OCG=OCG,
        OD=OD,
        OH=OH,
        OW=OW,
        KD=KD,
        KH=KH,
        KW=KW,
        SD=SD,
        SH=SH,
        SW=SW,
        PD=PD,
        PH=PH,
        PW=PW,
        DD=DD,
        DH=DH,
        DW=DW,
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
    """ConvTranspose3d with its whole constructor; the layer only holds the parameters."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        output_padding: int | tuple[int, int, int] = 0,
        groups: int = 1,
        bias: bool = False,
        dilation: int | tuple[int, int, int] = 1,
    ) -> None:
        super().__init__()
        sizes = kernel_size, stride, padding, output_padding
        self.conv_transpose3d = nn.ConvTranspose3d(in_channels, out_channels, *sizes, groups, bias, dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, D, H, W] to [N, OC, OD, OH, OW]."""
        return gather_gemm(x, self.conv_transpose3d)
