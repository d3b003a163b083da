"""Direct convolution: each output pixel adds up its taps, with one weight for a whole tile at a time.

The implicit GEMM of a convolution degenerates here. A group has one input channel, so the reduction is as
short as the kernel has taps, and as many columns as the channel has outputs, usually one: of the sixteen
columns that tl.dot asks for, fifteen would be idle. What is left of it is the gather: rows are the output
pixels of one channel of an image, and a loop over the taps multiplies the pixels that a tap meets by its
weight, the same one for all rows.

The pixels of one plane and a tile more must number fewer than 2**31, and so must the programs.
"""

import torch
import triton
import triton.language as tl
from torch import nn


# the padding is no constant: where all numbers are small LLVM subtracts it in one half of a packed 16-bit
# addition whose other half nobody reads, and ptxas of CUDA 12.8 then takes it for 0 on sm_90
@triton.jit(do_not_specialize=["PH", "PW"])
def direct_kernel(
    x,
    w,
    bias,
    y,
    H: tl.constexpr,
    W: tl.constexpr,
    OC: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH,
    PW,
    DH: tl.constexpr,
    DW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BM: tl.constexpr,
):
    """Compute BM pixels of one plane, which is one channel of one image.

    x is [planes / MULTIPLIER, H, W], w [OC, KH, KW], bias [OC] and y [planes, OH, OW], all contiguous.
    """
    PIXELS: tl.constexpr = OH * OW
    TILES: tl.constexpr = (PIXELS + BM - 1) // BM
    i_plane, i_tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    i_oc = i_plane % OC
    # output channels follow their input channel, so the planes of y divide like channels do
    p_x = x + (i_plane // MULTIPLIER).to(tl.int64) * (H * W)
    p_y = y + i_plane.to(tl.int64) * PIXELS

    # [BM]
    o_m = i_tile * BM + tl.arange(0, BM)
    m_m = o_m < PIXELS
    o_top = o_m // OW * SH - PH
    o_left = o_m % OW * SW - PW

    acc = tl.zeros((BM,), dtype=tl.float32)
    for i_tap in range(KH * KW):
        o_ih = o_top + i_tap // KW * DH
        o_iw = o_left + i_tap % KW * DW
        m_x = m_m & (o_ih >= 0) & (o_ih < H) & (o_iw >= 0) & (o_iw < W)
        b_x = tl.load(p_x + (o_ih * W + o_iw), mask=m_x, other=0.0).to(tl.float32)
        acc += b_x * tl.load(w + i_oc * (KH * KW) + i_tap).to(tl.float32)

    if HAS_BIAS:
        acc += tl.load(bias + i_oc).to(tl.float32)
    tl.store(p_y + o_m, acc.to(y.dtype.element_ty), mask=m_m)


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return one side of the output."""
    return (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def choose_tile(pixels: int) -> dict[str, int]:
    """Return the pixels of a program and its warps, for planes of so many."""
    # four pixels a thread share the loads of the weights, and no more of a warp is idle than need be
    BM = max(32, min(512, triton.next_power_of_2(pixels)))
    return {"BM": BM, "num_warps": max(1, BM // 128)}


def direct(x: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """Apply the layer to x [N, IC, H, W]; the result is [N, OC, OH, OW] in the dtype of x."""
    x = x.contiguous()
    N, in_channels, H, W = x.shape
    axes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    OH, OW = (output_extent(*axis) for axis in zip((H, W), *axes, strict=True))
    y = torch.empty((N, layer.out_channels, OH, OW), device=x.device, dtype=x.dtype)

    tile = choose_tile(OH * OW)
    (KH, KW), (SH, SW), (PH, PW), (DH, DW) = axes
    # every tile of every plane; a second dimension would end at 65535
    grid = (N * layer.out_channels * triton.cdiv(OH * OW, tile["BM"]),)
    direct_kernel[grid](
        x,
        layer.weight.contiguous(),
        layer.bias,
        y,
        H=H,
        W=W,
        OC=layer.out_channels,
        MULTIPLIER=layer.out_channels // in_channels,
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
        HAS_BIAS=layer.bias is not None,
        **tile,
    )
    return y


class ModelNew(nn.Module):
    """A depthwise Conv2d with its whole constructor; the layer only holds the parameters."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = kernel_size, stride, padding, dilation
        self.conv2d = nn.Conv2d(in_channels, out_channels, *sizes, groups=in_channels, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, H, W] to [N, OC, OH, OW]."""
        return direct(x, self.conv2d)
