"""Implicit GEMM: output pixels by output channels, each tile of the input gathered as it is needed.

Rows of the GEMM are the output pixels (batch, out_height, out_width), columns the output channels of a
group, and the reduction runs over (in_channel, kernel_row, kernel_column), the order in which the weights
lie in memory. The address of a factor is a sum: where the window of the pixel begins, plus how far from
there its channel and tap lie. So divisions are per row and per column of a tile, and a factor takes a
64-bit addition and the comparisons with the edges of the image.

Pixels are dimension 0 of the tile of x on purpose: a gathered address shows the compiler no contiguity,
and then it gives the lanes of a warp to dimension 0, where neighbours in memory are.

The pixels of one output channel, over the whole batch, and a tile more must number fewer than 2**31.
"""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def implicit_gemm_kernel(
    x,
    w,
    bias,
    y,
    N,
    H: tl.constexpr,
    W: tl.constexpr,
    ICG: tl.constexpr,
    OCG: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
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

    x is [N, GROUPS * ICG, H, W], w [GROUPS * OCG, ICG, KH, KW], bias [GROUPS * OCG] and
    y [N, GROUPS * OCG, OH, OW], all contiguous. All sizes but the batch are constants: every step
    divides by the kernel's sides, and offsets between planes become part of the instructions.
    """
    i_m, i_n = tl.program_id(0), tl.program_id(1)
    i_g = tl.program_id(2) if GROUPS > 1 else 0
    PIXELS: tl.constexpr = OH * OW
    K: tl.constexpr = ICG * KH * KW

    # [BM]
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < N * PIXELS
    o_pixel = o_m % PIXELS
    o_bg = (o_m // PIXELS).to(tl.int64) * GROUPS + i_g
    # the first tap's input pixel, which may lie in the padding
    o_top = o_pixel // OW * SH - PH
    o_left = o_pixel % OW * SW - PW
    p_x = x + (o_bg * ICG * H + o_top) * W + o_left
    # [BN]
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < OCG
    o_oc = (i_g * OCG + o_n).to(tl.int64)
    p_w = w + o_oc * K

    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i_k in range(0, K, BK):
        # [BK]
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < K
        o_ic = o_k // (KH * KW)
        o_down = o_k // KW % KH * DH
        o_right = o_k % KW * DW
        o_x = (o_ic.to(tl.int64) * H + o_down) * W + o_right

        # [BM, BK]
        o_ih = o_top[:, None] + o_down[None, :]
        o_iw = o_left[:, None] + o_right[None, :]
        m_x = m_m[:, None] & m_k[None, :] & (o_ih >= 0) & (o_ih < H) & (o_iw >= 0) & (o_iw < W)
        b_x = tl.load(p_x[:, None] + o_x[None, :], mask=m_x, other=0.0)
        # [BK, BN]
        b_w = tl.load(p_w[None, :] + o_k[:, None], mask=m_k[:, None] & m_n[None, :], other=0.0)

        acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION)

    if HAS_BIAS:
        acc += tl.load(bias + o_oc, mask=m_n, other=0.0).to(tl.float32)[None, :]

    # [BM, BN]
    p_y = y + (o_bg * (OCG * PIXELS) + o_pixel)[:, None] + (o_n.to(tl.int64) * PIXELS)[None, :]
    tl.store(p_y, acc.to(y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return one side of the output."""
    return (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def choose_tile(pixels: int, group_channels: int, groups: int, split: bool) -> dict[str, int]:
    """Return the tile of an output and its warps; `split` says that a product takes three."""
    # every channel tile gathers x anew, so it takes all the channels of a group, up to 128; tl.dot asks for
    # 16. With 128 pixels TF32 leaves most layers registers for one program on an SM of Ada.
    BM, BN = 64, max(16, min(128, triton.next_power_of_2(group_channels)))
    # below a program for each of 128 SMs the longer side is halved: of tiles of a size squares read least
    while max(BM, BN) > 32 and triton.cdiv(pixels, BM) * triton.cdiv(group_channels, BN) * groups < 128:
        BM, BN = (BM // 2, BN) if BM >= BN else (BM, BN // 2)
    # a thread decodes every column of x that it loads: with 16 of them at most, and 32 sums, most layers
    # leave registers for two programs; tf32x3 holds each factor in two parts, so it takes half the columns
    return {"BM": BM, "BN": BN, "BK": 16 if split else 32, "num_warps": 8 if BM * BN > 2048 else 4}


def launch_grid(pixels: int, group_channels: int, groups: int, tile: dict[str, int]) -> tuple[int, ...]:
    """Return (pixel tiles, channel tiles of a group, groups); the last only if there are several."""
    tiles = triton.cdiv(pixels, tile["BM"]), triton.cdiv(group_channels, tile["BN"])
    return tiles if groups == 1 else (*tiles, groups)


def implicit_gemm(x: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """Apply the layer to x [N, IC, H, W]; the result is [N, OC, OH, OW] in the dtype of x."""
    x = x.contiguous()
    weight = layer.weight.contiguous()
    N, _, H, W = x.shape
    _, ICG, KH, KW = weight.shape
    axes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    OH, OW = (output_extent(*axis) for axis in zip((H, W), *axes, strict=True))
    OCG = layer.out_channels // layer.groups
    y = torch.empty((N, layer.out_channels, OH, OW), device=x.device, dtype=x.dtype)

    pixels = N * OH * OW
    # only products of fp32 values can need the three products of tf32x3
    split = x.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32
    tile = choose_tile(pixels, OCG, layer.groups, split)
    grid = launch_grid(pixels, OCG, layer.groups, tile)
    (SH, SW), (PH, PW), (DH, DW) = layer.stride, layer.padding, layer.dilation
    implicit_gemm_kernel[grid](
        x,
        weight,
        layer.bias,
        y,
        N,
        H=H,
        W=W,
        ICG=ICG,
        OCG=OCG,
        OH=OH,
        OW=OW,
        KH=KH,
        KW=KW,
        SH=SH,
        SW=SW,
        PH=PH,
        PW=PW,
        DH=DH,
        DW=DW,
        GROUPS=layer.groups,
        HAS_BIAS=layer.bias is not None,
        PRECISION="tf32x3" if split else "tf32",
        **tile,
        num_stages=2,
    )
    return y


class ModelNew(nn.Module):
    """Conv2d with its whole constructor; the layer only holds the parameters."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = kernel_size, stride, padding, dilation
        self.conv2d = nn.Conv2d(in_channels, out_channels, *sizes, groups, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, H, W] to [N, OC, OH, OW]."""
        return implicit_gemm(x, self.conv2d)
