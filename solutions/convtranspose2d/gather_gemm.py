"""Gather-style implicit GEMM: every output pixel tries every tap, in 64x64x32 tiles.

The starting point that the other solutions are measured against. Rows of the GEMM are the output
pixels (batch, out_height, out_width), columns the output channels, and the reduction runs over
(in_channel, kernel_row, kernel_column). Each product gathers the input pixel that its tap would
have scattered from; where stride leaves none, it multiplies zeros. Address arithmetic is 64-bit;
the pixels of one output channel, over the whole batch, must number fewer than 2**31.
"""

import torch
import triton
import triton.language as tl
from torch import nn

BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def gather_gemm_kernel(
    x,
    w,
    bias,
    y,
    H,
    W,
    ICG,
    OCG,
    KH,
    KW,
    OH,
    OW,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dil_h,
    dil_w,
    M,
    K,
    GROUPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute BM pixels of BN channels of one group.

    x is [N, GROUPS * ICG, H, W], w [GROUPS * ICG, OCG, KH, KW], bias [GROUPS * OCG] and
    y [N, GROUPS * OCG, OH, OW], all contiguous; M = N * OH * OW and K = ICG * KH * KW.
    """
    i_m, i_n = tl.program_id(0), tl.program_id(1)
    i_g = tl.program_id(2) if GROUPS > 1 else 0

    # [BM]
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < M
    o_b = o_m // (OH * OW)
    o_pixel = o_m - o_b * (OH * OW)
    o_oh = o_pixel // OW
    o_ow = o_pixel - o_oh * OW
    # [BN]
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < OCG

    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i_k in range(0, K, BK):
        # [BK]
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < K
        o_ic = o_k // (KH * KW)
        o_tap = o_k - o_ic * (KH * KW)
        o_kh = o_tap // KW
        o_kw = o_tap - o_kh * KW
        o_ic = (i_g * ICG + o_ic).to(tl.int64)

        # [BM, BK]: a tap reaches the pixel if their distance is a multiple of the stride
        o_dh = o_oh[:, None] + pad_h - o_kh[None, :] * dil_h
        o_dw = o_ow[:, None] + pad_w - o_kw[None, :] * dil_w
        o_ih = o_dh // stride_h
        o_iw = o_dw // stride_w
        m_h = (o_dh >= 0) & (o_ih * stride_h == o_dh) & (o_ih < H)
        m_w = (o_dw >= 0) & (o_iw * stride_w == o_dw) & (o_iw < W)
        m_x = m_m[:, None] & m_k[None, :] & m_h & m_w
        o_ih, o_iw = tl.where(m_x, o_ih, 0), tl.where(m_x, o_iw, 0)
        o_x = ((o_b.to(tl.int64)[:, None] * (GROUPS * ICG) + o_ic[None, :]) * H + o_ih) * W + o_iw
        b_x = tl.load(x + o_x, mask=m_x, other=0.0).to(tl.float32)

        # [BK, BN]
        o_weight = ((o_ic[:, None] * OCG + o_n[None, :]) * KH + o_kh[:, None]) * KW + o_kw[:, None]
        b_w = tl.load(w + o_weight, mask=m_k[:, None] & m_n[None, :], other=0.0).to(tl.float32)

        acc += tl.dot(b_x, b_w, input_precision=PRECISION)

    o_oc = i_g * OCG + o_n
    if HAS_BIAS:
        acc += tl.load(bias + o_oc, mask=m_n, other=0.0).to(tl.float32)[None, :]

    o_plane = o_b.to(tl.int64)[:, None] * (GROUPS * OCG) + o_oc[None, :]
    o_y = (o_plane * OH + o_oh[:, None]) * OW + o_ow[:, None]
    tl.store(y + o_y, acc.to(y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int, extra: int) -> int:
    """Return one side of the output; `extra` is output_padding."""
    return (extent - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1


def launch_grid(pixels: int, group_channels: int, groups: int) -> tuple[int, ...]:
    """Return (pixel tiles, channel tiles of a group, groups); the last only if there are several."""
    tiles = triton.cdiv(pixels, BLOCK_M), triton.cdiv(group_channels, BLOCK_N)
    return tiles if groups == 1 else (*tiles, groups)


def gather_gemm(x: torch.Tensor, layer: nn.ConvTranspose2d) -> torch.Tensor:
    """Apply the layer to x [N, IC, H, W]; the result is [N, OC, OH, OW] in the dtype of x."""
    x = x.contiguous()
    weight = layer.weight.contiguous()
    N, in_channels, H, W = x.shape
    _, OCG, KH, KW = weight.shape
    (stride_h, stride_w), (pad_h, pad_w), (dil_h, dil_w) = layer.stride, layer.padding, layer.dilation
    OH = output_extent(H, KH, stride_h, pad_h, dil_h, layer.output_padding[0])
    OW = output_extent(W, KW, stride_w, pad_w, dil_w, layer.output_padding[1])
    ICG = in_channels // layer.groups
    M, K = N * OH * OW, ICG * KH * KW
    y = torch.empty((N, layer.out_channels, OH, OW), device=x.device, dtype=x.dtype)

    # 16-bit values are exact in TF32, so only fp32 tensors can need the three products of tf32x3
    tf32 = x.dtype != torch.float32 or torch.backends.cudnn.allow_tf32
    gather_gemm_kernel[launch_grid(M, OCG, layer.groups)](
        x,
        weight,
        layer.bias,
        y,
        H,
        W,
        ICG,
        OCG,
        KH,
        KW,
        OH,
        OW,
        stride_h,
        stride_w,
        pad_h,
        pad_w,
        dil_h,
        dil_w,
        M,
        K,
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
    """ConvTranspose2d with its whole constructor; the layer only holds the parameters."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = False,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv_transpose2d = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=bias,
            output_padding=output_padding,
            groups=groups,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, H, W] to [N, OC, OH, OW]."""
        return gather_gemm(x, self.conv_transpose2d)
