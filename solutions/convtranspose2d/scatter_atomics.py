"""Scatter: every product is added by an atomic to the output pixel that it lands on.

The layer as it is defined: input pixel (ih, iw) reaches the output at (ih * SH - PH + kh * DH,
iw * SW - PW + kw * DW) through tap (kh, kw). A program takes BM input pixels, BN output channels and one
tap, sums over the input channels in registers,

    x [pixel, in_channel]  @  w [in_channel, out_channel],

and adds the sums to the output, which a first kernel has filled with the bias. Unlike gather_gemm it tries
no tap in vain, and unlike phase_gemm it has no phases to tell apart.

What bounds it is the output. A value is filled once, and then read, added to and written back in the L2
cache KH * KW / (SH * SW) times on average. With a stride the neighbours of a warp's add are SW values
apart, so that it touches up to SW times the sectors that it would fill. And nobody knows which product
completes a line: of an output beyond the L2 each goes to memory filled, comes back for the adds, and goes
again. So it loses wherever taps overlap on a large output (nine adds a value for a dense 3x3 kernel), and
comes closest where few values are reached at all, or the output stays in the L2. Where no two products can
meet on a pixel, which the sizes decide, plain stores do, in the type of x.

Products that meet are summed in no fixed order, and fp32 addition is not associative: two calls on one
input may differ in their last bits. Atomics in memory also take subnormal sums for zero. fp16 and bf16
outputs are summed in an fp32 workspace, which a last kernel rounds once: to round every partial sum would
lose accuracy, and what adds single values of bf16 in the L2 is a Hopper or later.

The pixels of one plane of y, and of one channel of x over the whole batch, must number fewer than 2**31,
a tile included, and so must the programs of a launch.
"""

import math

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def fill_kernel(y, bias, OC: tl.constexpr, PIXELS: tl.constexpr, HAS_BIAS: tl.constexpr, BM: tl.constexpr):
    """Fill BM pixels of one plane of y [planes, PIXELS], which is one channel of one image, with its bias."""
    TILES: tl.constexpr = (PIXELS + BM - 1) // BM
    i_plane, i_tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    # [BM]
    o_m = i_tile * BM + tl.arange(0, BM)
    b_y = tl.zeros((BM,), dtype=tl.float32)
    if HAS_BIAS:
        b_y += tl.load(bias + i_plane % OC).to(tl.float32)
    tl.store(y + i_plane.to(tl.int64) * PIXELS + o_m, b_y.to(y.dtype.element_ty), mask=o_m < PIXELS)


@triton.jit
def scatter_kernel(
    x,
    w,
    bias,
    y,
    N,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    GROUPS: tl.constexpr,
    ICG: tl.constexpr,
    OCG: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    MEET: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROUND: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Take BM input pixels through one tap to BN channels of one group.

    x is [N, GROUPS * ICG, H, W], w [GROUPS, KH * KW, OCG, ICG] as `pack` makes it, bias [GROUPS * OCG] and
    y [N, GROUPS * OCG, OH, OW], all contiguous; y holds the bias, and is fp32 where products meet. Pixels
    are dimension 0 of a tile, since the compiler gives neighbouring lanes to it where a stride keeps it
    from seeing neighbours in memory.
    """
    # the taps of one tile run side by side: they read the same x, and add to the same lines of y
    i_m, i_tap = tl.program_id(0) // (KH * KW), tl.program_id(0) % (KH * KW)
    i_n, i_g = tl.program_id(1), tl.program_id(2)

    # [BM]
    o_m = i_m * BM + tl.arange(0, BM)
    o_b, o_pixel = (o_m // (H * W)).to(tl.int64), o_m % (H * W)
    o_oh = o_pixel // W * SH + (i_tap // KW * DH - PH)
    o_ow = o_pixel % W * SW + (i_tap % KW * DW - PW)
    # what padding crops is read too, since a plainer mask leaves the loads wide
    m_x = o_m < N * H * W
    m_m = m_x & (o_oh >= 0) & (o_oh < OH) & (o_ow >= 0) & (o_ow < OW)
    # [BN]
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < OCG

    p_x = x + ((o_b * GROUPS + i_g) * (ICG * H * W) + o_pixel)[:, None]
    p_w = w + ((i_g * (KH * KW) + i_tap) * OCG + o_n)[None, :] * ICG
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i_k in range(0, ICG, BK):
        # [BK]
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < ICG
        b_x = tl.load(p_x + o_k.to(tl.int64)[None, :] * (H * W), mask=m_x[:, None] & m_k[None, :], other=0.0)
        if ROUND:
            # to nearest, since the tensor core drops the 13 low bits of fp32; a NaN stays one
            b_near = (b_x.to(tl.int32, bitcast=True) + 0x1000 & -0x2000).to(tl.float32, bitcast=True)
            b_x = tl.where(b_x == b_x, b_near, b_x)
        b_w = tl.load(p_w + o_k[:, None], mask=m_k[:, None] & m_n[None, :], other=0.0)
        acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION)

    o_oc = i_g * OCG + o_n
    p_y = y + (o_b[:, None] * (GROUPS * OCG) + o_oc[None, :]) * (OH * OW) + (o_oh * OW + o_ow)[:, None]
    m_y = m_m[:, None] & m_n[None, :]
    if MEET:
        # the end of the launch orders the sums before whatever reads them
        tl.atomic_add(p_y, acc, mask=m_y, sem="relaxed")
    else:
        if HAS_BIAS:
            acc += tl.load(bias + o_oc, mask=m_n, other=0.0).to(tl.float32)[None, :]
        tl.store(p_y, acc.to(y.dtype.element_ty), mask=m_y)


@triton.jit
def round_kernel(sums, y, SIZE, BM: tl.constexpr):
    """Round BM values of sums [SIZE] to the type of y [SIZE]."""
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    m_m = o_m < SIZE
    tl.store(y + o_m, tl.load(sums + o_m, mask=m_m).to(y.dtype.element_ty), mask=m_m)


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int, extra: int) -> int:
    """Return one side of the output; `extra` is output_padding."""
    return (extent - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1


def taps_meet(extent: int, kernel: int, stride: int, dilation: int) -> bool:
    """Say whether two taps of an axis can carry two input pixels to one output pixel.

    i * stride + tap * dilation has one value for two pairs (i, tap) if the taps differ by a multiple of
    stride / gcd and the pixels by as many times dilation / gcd.
    """
    common = math.gcd(stride, dilation)
    return kernel > stride // common and extent > dilation // common


def power_of_2(least: int, size: int, most: int) -> int:
    """Return the smallest power of two that covers `size`, kept within [least, most]."""
    return max(least, min(most, triton.next_power_of_2(size)))


def choose_tile(pixels: int, in_channels: int, out_channels: int, split: bool) -> dict[str, int]:
    """Return tile, warps and stages for channels of one group; `split` says that a product takes three."""
    # tl.dot asks for 16 each way, and tf32x3 holds each factor in two parts
    BK = power_of_2(16, in_channels, 16 if split else 32)
    return {
        # 64x64: 32 sums a thread, so that the loads of one program hide behind the adds of others
        "BM": power_of_2(16, pixels, 64),
        "BN": power_of_2(16, out_channels, 64),
        "BK": BK,
        "num_warps": 4,
        "num_stages": 1 if in_channels <= BK else 2,
    }


def pack(weight: torch.Tensor, groups: int, tf32: bool) -> torch.Tensor:
    """Reorder w [GROUPS * ICG, OCG, KH, KW] to [GROUPS, KH * KW, OCG, ICG]; `tf32` rounds to nearest."""
    taps = weight.detach().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    packed = taps.permute(0, 3, 2, 1).clone(memory_format=torch.contiguous_format)
    if tf32:
        near = (packed.view(torch.int32) + 0x1000 & -0x2000).view(torch.float32)
        packed = torch.where(packed.isnan(), packed, near)
    return packed


def scatter(x: torch.Tensor, layer: nn.ConvTranspose2d, weight: torch.Tensor, tf32: bool) -> torch.Tensor:
    """Apply the layer with its weight packed to x [N, IC, H, W]; return [N, OC, OH, OW] in the dtype of x."""
    N, in_channels, H, W = x.shape
    axes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    (KH, KW), (SH, SW), (PH, PW), (DH, DW) = axes
    OH, OW = (output_extent(*a) for a in zip((H, W), *axes, layer.output_padding, strict=True))
    OC, GROUPS = layer.out_channels, layer.groups
    ICG, OCG = in_channels // GROUPS, OC // GROUPS
    meet = taps_meet(H, KH, SH, DH) or taps_meet(W, KW, SW, DW)
    y = torch.empty((N, OC, OH, OW), device=x.device, dtype=x.dtype)
    narrow = meet and x.dtype != torch.float32
    sums = torch.empty(y.shape, device=x.device, dtype=torch.float32) if narrow else y

    FILL = power_of_2(32, OH * OW, 1024)
    # every tile of every plane; a second dimension would end at 65535
    fill_kernel[(N * OC * triton.cdiv(OH * OW, FILL),)](
        sums, layer.bias, OC=OC, PIXELS=OH * OW, HAS_BIAS=layer.bias is not None, BM=FILL, num_warps=4
    )
    # 16-bit values are exact in TF32, so only fp32 tensors can need the three products of tf32x3
    split = x.dtype == torch.float32 and not tf32
    tile = choose_tile(N * H * W, ICG, OCG, split)
    # (taps of pixel tiles, channel tiles of a group, groups)
    scatter_kernel[(triton.cdiv(N * H * W, tile["BM"]) * KH * KW, triton.cdiv(OCG, tile["BN"]), GROUPS)](
        x,
        weight,
        layer.bias,
        sums,
        N,
        H=H,
        W=W,
        OH=OH,
        OW=OW,
        GROUPS=GROUPS,
        ICG=ICG,
        OCG=OCG,
        KH=KH,
        KW=KW,
        SH=SH,
        SW=SW,
        PH=PH,
        PW=PW,
        DH=DH,
        DW=DW,
        MEET=meet,
        HAS_BIAS=layer.bias is not None,
        ROUND=tf32,
        PRECISION="tf32x3" if split else "tf32",
        **tile,
    )
    if narrow:
        round_kernel[(triton.cdiv(y.numel(), 1024),)](sums, y, y.numel(), BM=1024, num_warps=4)
    return y


def weight_stamp(weight: torch.Tensor) -> tuple[int, int]:
    """Return what changes when the weights are replaced or written in place."""
    # tensors made in inference mode count no versions
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version


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
        self.packed: torch.Tensor | None = None
        # of the packed weights, and whether they are rounded
        self.stamp: tuple[tuple[int, int], bool] | None = None

    def prepare(self) -> None:
        """Pack the present weights, whatever is known of earlier ones."""
        self.stamp = None
        self.pack(self.conv_transpose2d.weight.dtype == torch.float32 and torch.backends.cudnn.allow_tf32)

    def pack(self, tf32: bool) -> torch.Tensor:
        """Return the packed weights, made anew where weights or arithmetic are others than before."""
        layer = self.conv_transpose2d
        stamp = weight_stamp(layer.weight), tf32
        if self.packed is None or self.stamp != stamp:
            self.packed, self.stamp = pack(layer.weight, layer.groups, tf32), stamp
        return self.packed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, H, W] to [N, OC, OH, OW]."""
        tf32 = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
        return scatter(x.contiguous(), self.conv_transpose2d, self.pack(tf32), tf32)
