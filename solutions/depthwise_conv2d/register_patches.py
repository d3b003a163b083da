"""Register patches: a thread computes a few rows of R neighbouring outputs from aligned vectors of R inputs.

A depthwise layer moves a number for every few operations, so the aim is the time of a copy, and what
stands in the way is the traffic between L1 and the registers: loaded tap by tap, a 3x3 layer reads nine
values for each that it writes, most of them across the edge of a cache line. Here the columns that the
taps of R outputs meet are covered by aligned pieces of R pixels, one vector load each. A piece is split
into its pixels, and a tap joins the R pixels it needs; both only rename registers. Equal loads of
neighbouring rows of the patch are one load after the compiler's elimination of common subexpressions, so
BH rows read (BH - 1) * SH + KH rows of input instead of BH * KH.

Patches are numbered through all planes, and a program takes the next BP. So a side that no tile divides
wastes no lanes, and planes of 7x7 fill a warp together.

The pixels of one plane must number fewer than 2**31, and so must the planes of the output.
"""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def load_columns(p_x, m_row, o_iw, W: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, R: tl.constexpr):
    """Return the pixels of pieces FIRST to LAST of a row as a tuple, each [BP] or, where R is 1, [BP, 1].

    p_x [BP, 1] points to column o_iw, from which the pieces are counted; a piece lies in the image or
    outside of it, where its pixels are 0.
    """
    pixels = ()
    for i_piece in tl.static_range(FIRST, LAST + 1):
        o_left = o_iw + i_piece * R
        m_piece = m_row & (o_left >= 0) & (o_left < W)
        p_piece = p_x + (i_piece * R + tl.arange(0, R)[None, :])
        b_x = tl.load(p_piece, mask=m_piece, other=0.0).to(tl.float32)
        if R == 1:
            pixels += (b_x,)
        elif R == 2:
            pixels += tl.split(b_x)
        else:
            b_even, b_odd = tl.split(tl.reshape(b_x, (b_x.shape[0], 2, 2)))
            b_0, b_2 = tl.split(b_even)
            b_1, b_3 = tl.split(b_odd)
            pixels += (b_0, b_1, b_2, b_3)
    return pixels


@triton.jit
def every(pixels, FIRST: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr):
    """Return R of the pixels as [BP, R]: the first and every STEP-th after it."""
    if R == 1:
        return pixels[FIRST]
    elif R == 2:
        return tl.join(pixels[FIRST], pixels[FIRST + STEP])
    else:
        b_even = tl.join(pixels[FIRST], pixels[FIRST + 2 * STEP])
        b_odd = tl.join(pixels[FIRST + STEP], pixels[FIRST + 3 * STEP])
        return tl.reshape(tl.join(b_even, b_odd), (b_even.shape[0], R))


@triton.jit
def register_patches_kernel(
    x,
    w,
    bias,
    y,
    PLANES,
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
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BH: tl.constexpr,
    R: tl.constexpr,
    BP: tl.constexpr,
):
    """Write BP patches of BH rows and R columns.

    x is [PLANES / MULTIPLIER, H, W], w [OC, KH, KW], bias [OC] and y [PLANES, OH, OW], all contiguous, where
    a plane is an image's channel. TH * TW taps are unrolled, and divide the KH * KW of the loop.
    """
    PATCH_ROWS: tl.constexpr = (OH + BH - 1) // BH
    PATCH_COLUMNS: tl.constexpr = (OW + R - 1) // R
    PATCHES: tl.constexpr = PATCH_ROWS * PATCH_COLUMNS
    # the pieces that taps 0 to TW - 1 of R outputs meet
    FIRST: tl.constexpr = -PW // R
    LAST: tl.constexpr = ((R - 1) * SW + (TW - 1) * DW - PW) // R

    # [BP, 1]
    i_p = tl.program_id(0).to(tl.int64) * BP
    o_p = (i_p % PATCHES).to(tl.int32) + tl.arange(0, BP)[:, None]
    o_plane = (i_p // PATCHES).to(tl.int32) + o_p // PATCHES
    m_p = o_plane < PLANES
    o_oc = o_plane % OC
    o_oh = o_p // PATCH_COLUMNS % PATCH_ROWS * BH
    o_ow = o_p % PATCH_COLUMNS * R
    p_x = x + (o_plane // MULTIPLIER).to(tl.int64) * (H * W)
    p_w = w + o_oc * (KH * KW)

    b_y = tl.zeros((BP, R), dtype=tl.float32)
    if HAS_BIAS:
        b_y += tl.load(bias + o_oc).to(tl.float32)
    rows = (b_y,) * BH
    for i_block in range(KH // TH * (KW // TW)):
        i_kh, i_kw = i_block // (KW // TW) * TH, i_block % (KW // TW) * TW
        o_top = o_oh * SH + i_kh * DH - PH
        o_iw = o_ow * SW + i_kw * DW
        sums = ()
        for i_h in tl.static_range(BH):
            b_y = rows[i_h]
            for j_kh in tl.static_range(TH):
                o_ih = o_top + (i_h * SH + j_kh * DH)
                m_row = m_p & (o_ih >= 0) & (o_ih < H)
                pixels = load_columns(p_x + (o_ih * W + o_iw), m_row, o_iw, W, FIRST, LAST, R)
                for j_kw in tl.static_range(TW):
                    b_w = tl.load(p_w + ((i_kh + j_kh) * KW + i_kw + j_kw)).to(tl.float32)
                    b_y += b_w * every(pixels, j_kw * DW - PW - FIRST * R, SW, R)
            sums += (b_y,)
        rows = sums

    # after all loads: a store in between would keep the compiler from joining them
    p_y = y + o_plane.to(tl.int64) * (OH * OW) + (o_oh * OW + o_ow) + tl.arange(0, R)[None, :]
    m_columns = m_p & (o_ow + tl.arange(0, R)[None, :] < OW)
    for i_h in tl.static_range(BH):
        tl.store(p_y + i_h * OW, rows[i_h].to(y.dtype.element_ty), mask=m_columns & (o_oh + i_h < OH))


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return one side of the output."""
    return (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def unrolled_taps(KH: int, KW: int) -> tuple[int, int]:
    """Return how many taps a program unrolls along each axis; a loop goes through the others."""
    # only unrolled taps share loads; past 128 their code outgrows what that saves
    if KH * KW <= 128:
        return KH, KW
    # a divisor, since a tap beyond the kernel would have to be masked
    return 1, next(taps for taps in range(min(KW, 64), 0, -1) if KW % taps == 0)


def tiles(layer: nn.Conv2d, batch: int, W: int, OH: int, OW: int) -> dict[str, int]:
    """Choose patch, program and unrolled taps for an output; W is the width of the input."""
    TH, TW = unrolled_taps(*layer.kernel_size)
    # pieces of R pixels tile a row of the input, and of the output if R is 4: a store that has to be cut
    # goes through shared memory. A loop over columns would put pieces where no vector begins.
    # Five taps and more along a row share enough input to be worth that (85: 0.37 against 0.41 ms).
    R = 1 if TW < layer.kernel_size[1] or W % 2 else 2 if W % 4 or (OW % 4 and TW < 5) else 4

    def threads() -> int:
        return batch * layer.out_channels * triton.cdiv(OH, BH) * triton.cdiv(OW, R)

    # eight rows, if the code stays within 1024 products, and 128 SMs with two warps a scheduler: a short
    # patch reads more rows per row that it writes, but idle lanes read nothing at all
    BH = min(8, triton.next_power_of_2(OH))
    while BH > 1 and (BH * R * TH * TW > 1024 or threads() < 128 * 256):
        BH //= 2
    num_warps = 4
    while num_warps > 1 and threads() < 128 * 32 * num_warps:
        num_warps //= 2
    return {"TH": TH, "TW": TW, "BH": BH, "R": R, "BP": 32 * num_warps, "num_warps": num_warps}


def launch_grid(tile: dict[str, int], planes: int, OH: int, OW: int) -> tuple[int]:
    """Return (programs,) for the patches of all planes."""
    patches = planes * triton.cdiv(OH, tile["BH"]) * triton.cdiv(OW, tile["R"])
    return (triton.cdiv(patches, tile["BP"]),)


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
        # by the shape of the input
        self.plans: dict[torch.Size, tuple] = {}

    def plan(self, shape: torch.Size) -> tuple:
        """Return output size, grid and constants for inputs of a shape."""
        layer = self.conv2d
        batch, _, H, W = shape
        axes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        OH, OW = (output_extent(*axis) for axis in zip((H, W), *axes, strict=True))
        tile = tiles(layer, batch, W, OH, OW)
        (KH, KW), (SH, SW), (PH, PW), (DH, DW) = axes
        constants = {
            "H": H,
            "W": W,
            "OC": layer.out_channels,
            "MULTIPLIER": layer.out_channels // layer.in_channels,
            "OH": OH,
            "OW": OW,
            "KH": KH,
            "KW": KW,
            "SH": SH,
            "SW": SW,
            "PH": PH,
            "PW": PW,
            "DH": DH,
            "DW": DW,
            "HAS_BIAS": layer.bias is not None,
        }
        grid = launch_grid(tile, batch * layer.out_channels, OH, OW)
        return (batch, layer.out_channels, OH, OW), grid, constants | tile

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, H, W] to [N, OC, OH, OW]."""
        layer = self.conv2d
        if x.shape not in self.plans:
            self.plans[x.shape] = self.plan(x.shape)
        size, grid, constants = self.plans[x.shape]
        y = torch.empty(size, dtype=x.dtype, device=x.device)
        planes = size[0] * size[1]
        weight = layer.weight.contiguous()
        register_patches_kernel[grid](x.contiguous(), weight, layer.bias, y, planes, **constants)
        return y
