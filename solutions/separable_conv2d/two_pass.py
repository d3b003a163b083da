"""Two passes: a direct depthwise convolution, then the pointwise layer as a GEMM over its output.

The pointwise layer is the implicit GEMM without its gather: rows are the pixels of all images, columns the
output channels, and the reduction runs over the input channels. The depthwise layer leaves nothing for a
GEMM to reduce over: its groups have one channel each way, and of the sixteen columns that tl.dot asks for
fifteen would be idle. It is a loop over the taps, each pixel times the weight that its plane has for the
tap. What is between the passes goes through memory, in the type of x.

The pixels of one plane and a tile more must number fewer than 2**31, and so must the programs of a pass
and the pixels of one channel over the whole batch.
"""

import torch
import triton
import triton.language as tl
from torch import nn


# the padding is no constant: where all numbers are small LLVM subtracts it in one half of a packed 16-bit
# addition whose other half nobody reads, and ptxas of CUDA 12.8 then takes it for 0 on sm_90
@triton.jit(do_not_specialize=["PH", "PW"])
def depthwise_kernel(
    x,
    w,
    bias,
    y,
    H: tl.constexpr,
    W: tl.constexpr,
    IC: tl.constexpr,
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

    x is [planes, H, W], w [IC, KH, KW], bias [IC] and y [planes, OH, OW], all contiguous.
    """
    PIXELS: tl.constexpr = OH * OW
    TILES: tl.constexpr = (PIXELS + BM - 1) // BM
    i_plane, i_tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    i_ic = i_plane % IC
    p_x = x + i_plane.to(tl.int64) * (H * W)
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
        acc += b_x * tl.load(w + i_ic * (KH * KW) + i_tap).to(tl.float32)

    if HAS_BIAS:
        acc += tl.load(bias + i_ic).to(tl.float32)
    tl.store(p_y + o_m, acc.to(y.dtype.element_ty), mask=m_m)


@triton.jit
def pointwise_kernel(
    x,
    w,
    bias,
    y,
    N,
    PIXELS: tl.constexpr,
    IC: tl.constexpr,
    OC: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute BM pixels of BN channels.

    x is [N, IC, PIXELS], w [OC, IC], bias [OC] and y [N, OC, PIXELS], all contiguous. Pixels are dimension 0
    of a tile, since the compiler gives neighbouring lanes to it where it sees no neighbours in memory.
    """
    # channel tiles of the same pixels run side by side, since they read the same x
    TILES: tl.constexpr = (OC + BN - 1) // BN
    i_m, i_n = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    # [BM]
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < N * PIXELS
    o_image, o_pixel = (o_m // PIXELS).to(tl.int64), o_m % PIXELS
    # [BN]
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < OC

    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i_k in range(0, IC, BK):
        # [BK]
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < IC
        p_x = x + (o_image[:, None] * IC + o_k[None, :]) * PIXELS + o_pixel[:, None]
        b_x = tl.load(p_x, mask=m_m[:, None] & m_k[None, :], other=0.0)
        p_w = w + (o_n[None, :] * IC + o_k[:, None])
        b_w = tl.load(p_w, mask=m_k[:, None] & m_n[None, :], other=0.0)
        acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION)

    if HAS_BIAS:
        acc += tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    p_y = y + (o_image[:, None] * OC + o_n[None, :]) * PIXELS + o_pixel[:, None]
    tl.store(p_y, acc.to(y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return one side of the output."""
    return (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def depthwise(x: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """Apply the layer to x [N, IC, H, W]; the result is [N, IC, OH, OW] in the dtype of x."""
    N, IC, H, W = x.shape
    axes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    OH, OW = (output_extent(*axis) for axis in zip((H, W), *axes, strict=True))
    y = torch.empty((N, IC, OH, OW), device=x.device, dtype=x.dtype)

    # four pixels a thread share the loads of the weights, and no more of a warp is idle than need be
    BM = max(32, min(512, triton.next_power_of_2(OH * OW)))
    (KH, KW), (SH, SW), (PH, PW), (DH, DW) = axes
    # every tile of every plane; a second dimension would end at 65535
    depthwise_kernel[(N * IC * triton.cdiv(OH * OW, BM),)](
        x,
        layer.weight.contiguous(),
        layer.bias,
        y,
        H=H,
        W=W,
        IC=IC,
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
        BM=BM,
        num_warps=max(1, BM // 128),
    )
    return y


def choose_tile(pixels: int, out_channels: int, split: bool) -> dict[str, int]:
    """Return the tile of the pointwise GEMM and its warps; `split` says that a product takes three."""
    # every channel tile reads x anew, so it takes all channels up to 128; tl.dot asks for 16
    BM, BN = 64, max(16, min(128, triton.next_power_of_2(out_channels)))
    # below a program for each of 128 SMs the longer side is halved: of tiles of a size squares read least
    while max(BM, BN) > 32 and triton.cdiv(pixels, BM) * triton.cdiv(out_channels, BN) < 128:
        BM, BN = (BM // 2, BN) if BM >= BN else (BM, BN // 2)
    # tf32x3 holds each factor in two parts, so it takes half the columns
    return {"BM": BM, "BN": BN, "BK": 16 if split else 32, "num_warps": 8 if BM * BN > 2048 else 4}


def pointwise(x: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """Apply the layer to x [N, IC, OH, OW]; the result is [N, OC, OH, OW] in the dtype of x."""
    N, IC, OH, OW = x.shape
    OC = layer.out_channels
    y = torch.empty((N, OC, OH, OW), device=x.device, dtype=x.dtype)

    # only products of fp32 values can need the three products of tf32x3
    split = x.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32
    tile = choose_tile(N * OH * OW, OC, split)
    pointwise_kernel[(triton.cdiv(N * OH * OW, tile["BM"]) * triton.cdiv(OC, tile["BN"]),)](
        x,
        layer.weight.contiguous(),
        layer.bias,
        y,
        N,
        PIXELS=OH * OW,
        IC=IC,
        OC=OC,
        HAS_BIAS=layer.bias is not None,
        PRECISION="tf32x3" if split else "tf32",
        **tile,
        num_stages=2,
    )
    return y


class ModelNew(nn.Module):
    """Both layers with their whole constructor; they only hold the parameters."""

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
        self.depthwise = nn.Conv2d(in_channels, in_channels, *sizes, groups=in_channels, bias=bias)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, H, W] to [N, OC, OH, OW]."""
        return pointwise(depthwise(x.contiguous(), self.depthwise), self.pointwise)
