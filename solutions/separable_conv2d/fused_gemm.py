"""Fused GEMM: the depthwise tile is computed in registers and is the left factor of the pointwise GEMM.

The pointwise layer is a GEMM of pixels by output channels, and the depthwise layer gives its left factor.
Written to memory and read again that factor costs as much as the input twice; here a program computes a
step of it, pixels by input channels, when it is needed. It is computed once for each channel tile, so a
program covers as many output channels as its registers take: up to 128, or 256 where it has twice the
warps or taps are dear.

Layers of many channels have few pixels. Their steps would run one after the other on a few SMs, each
waiting for its loads; so the input channels are divided into parts that run side by side, and a second
kernel adds these, always in the same order.

A patch is a few rows of R neighbours. The columns that its taps meet are covered by aligned pieces of V
pixels, one vector load each; a piece is split into its pixels, and a tap takes those it needs, which only
names registers. Rows of input that two rows of a patch need are loaded once: the compiler joins equal
loads. Patches are numbered through rows and images, so no side of an image leaves lanes idle.

Between the layers values are what the tensor core takes: of the type of x in 16 bits, as in the reference;
rounded to nearest TF32 or, without TF32, split for three products.

The pixels of one plane must number fewer than 2**31. Inputs are taken to be finite.
"""

import math

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def locate(i_p, o_p, OH: tl.constexpr, OW: tl.constexpr, BH: tl.constexpr, R: tl.constexpr):
    """Return image, first row and first column of the patches o_p, counted from patch i_p of all images."""
    PATCH_ROWS: tl.constexpr = (OH + BH - 1) // BH
    PATCH_COLUMNS: tl.constexpr = (OW + R - 1) // R
    PATCHES: tl.constexpr = PATCH_ROWS * PATCH_COLUMNS
    o_p += (i_p % PATCHES).to(tl.int32)
    o_image = (i_p // PATCHES).to(tl.int32) + o_p // PATCHES
    return o_image, o_p // PATCH_COLUMNS % PATCH_ROWS * BH, o_p % PATCH_COLUMNS * R


@triton.jit
def load_columns(p_x, m_row, o_iw, W: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, V: tl.constexpr):
    """Return the pixels of pieces FIRST to LAST of a row as a tuple, each [BQ, BI].

    p_x [BQ, BI] points to column o_iw [BQ, 1], from which the pieces are counted; a piece lies in the image
    or outside of it, where its pixels are 0.
    """
    pixels = ()
    for i_piece in tl.static_range(FIRST, LAST + 1):
        o_left = o_iw + i_piece * V
        m_piece = m_row & (o_left >= 0) & (o_left < W)
        p_piece = p_x + i_piece * V
        if V == 1:
            pixels += (tl.load(p_piece, mask=m_piece, other=0.0).to(tl.float32),)
        else:
            p_vector = p_piece[:, :, None] + tl.arange(0, V)[None, None, :]
            b_x = tl.load(p_vector, mask=m_piece[:, :, None], other=0.0).to(tl.float32)
            if V == 2:
                pixels += tl.split(b_x)
            else:
                b_even, b_odd = tl.split(tl.reshape(b_x, (b_x.shape[0], b_x.shape[1], 2, 2)))
                b_0, b_2 = tl.split(b_even)
                b_1, b_3 = tl.split(b_odd)
                pixels += (b_0, b_1, b_2, b_3)
    return pixels


@triton.jit
def interleave(pixels, JOINS: tl.constexpr):
    """Return 2**JOINS pixels [BQ, BI] of patches as [BQ * 2**JOINS, BI], one patch after the other."""
    BQ: tl.constexpr = pixels[0].shape[0]
    BI: tl.constexpr = pixels[0].shape[1]
    for i_join in tl.static_range(JOINS):
        pairs = ()
        for i_pair in tl.static_range(1 << (JOINS - 1 - i_join)):
            # the first dimension to be joined, the outermost, is the highest bit of a pixel's number
            pairs += (tl.join(pixels[i_pair], pixels[i_pair + (1 << (JOINS - 1 - i_join))]),)
        pixels = pairs
    b_patch = tl.reshape(pixels[0], (BQ, BI, 1 << JOINS))
    return tl.permute(b_patch, (0, 2, 1)).reshape(BQ << JOINS, BI)


@triton.jit
def depthwise_tile(
    x,
    w,
    bias,
    o_image,
    o_oh,
    o_ow,
    o_ic,
    m_x,
    H: tl.constexpr,
    W: tl.constexpr,
    IC: tl.constexpr,
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
    JOINS: tl.constexpr,
    BQ: tl.constexpr,
    BI: tl.constexpr,
    BH: tl.constexpr,
    R: tl.constexpr,
    V: tl.constexpr,
):
    """Return BI channels of BQ patches of BH rows and R columns as [BQ << JOINS, BI], where 2**JOINS is BH * R.

    x is [N, IC, H, W], w [IC, KH, KW] and bias [IC]; o_image, o_oh and o_ow are [BQ, 1], o_ic [1, BI].
    TH * TW taps are unrolled, and divide the KH * KW of the loop.
    """
    # the pieces that taps 0 to TW - 1 of R outputs meet
    FIRST: tl.constexpr = -PW // V
    LAST: tl.constexpr = ((R - 1) * SW + (TW - 1) * DW - PW) // V
    p_x = x + (o_image.to(tl.int64) * IC + o_ic) * (H * W)

    b_y = tl.zeros((BQ, BI), dtype=tl.float32)
    if HAS_BIAS:
        b_y += tl.load(bias + o_ic, mask=o_ic < IC, other=0.0).to(tl.float32)
    patch = (b_y,) * (BH * R)
    for i_block in range(KH // TH * (KW // TW)):
        i_kh, i_kw = i_block // (KW // TW) * TH, i_block % (KW // TW) * TW
        o_top = o_oh * SH + i_kh * DH - PH
        o_iw = o_ow * SW + i_kw * DW
        sums = ()
        for i_h in tl.static_range(BH):
            row = patch[i_h * R : i_h * R + R]
            for j_kh in tl.static_range(TH):
                o_ih = o_top + (i_h * SH + j_kh * DH)
                m_row = m_x & (o_ih >= 0) & (o_ih < H)
                pixels = load_columns(p_x + (o_ih * W + o_iw), m_row, o_iw, W, FIRST, LAST, V)
                for j_kw in tl.static_range(TW):
                    p_w = w + (o_ic * (KH * KW) + ((i_kh + j_kh) * KW + i_kw + j_kw))
                    b_w = tl.load(p_w, mask=o_ic < IC, other=0.0).to(tl.float32)
                    for i_r in tl.static_range(R):
                        b_y = row[0] + b_w * pixels[i_r * SW + j_kw * DW - PW - FIRST * V]
                        # R turns go once around the row
                        row = row[1:] + (b_y,)
            sums += row
        patch = sums
    return interleave(patch, JOINS)


@triton.jit
def round_tf32(b):
    """Round fp32 values to nearest TF32; the tensor core would drop the 13 low bits."""
    return (b.to(tl.int32, bitcast=True) + 0x1000 & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def fused_gemm_kernel(
    x,
    w_depth,
    b_depth,
    w_point,
    b_point,
    y,
    N,
    H: tl.constexpr,
    W: tl.constexpr,
    IC: tl.constexpr,
    OC: tl.constexpr,
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
    ROUND: tl.constexpr,
    PRECISION: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BM: tl.constexpr,
    BI: tl.constexpr,
    BOC: tl.constexpr,
    JOINS: tl.constexpr,
    BH: tl.constexpr,
    R: tl.constexpr,
    V: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Write BOC channels of BM pixels, in patches of BH rows and R columns, where 2**JOINS is BH * R.

    x is [N, IC, H, W], w_depth [IC, KH, KW], w_point [OC, IC], b_depth [IC] and b_point [OC], or both None, and
    y [N, OC, OH, OW], or as many times as there are PARTS; all contiguous. One step of the reduction is BI
    channels.
    """
    BQ: tl.constexpr = BM >> JOINS
    # channel tiles of the same patches run side by side, since they read the same x
    OC_TILES: tl.constexpr = (OC + BOC - 1) // BOC
    i_oc = tl.program_id(0) % OC_TILES
    i_p = (tl.program_id(0) // OC_TILES).to(tl.int64) * BQ
    i_part = tl.program_id(1)
    PART: tl.constexpr = (IC + BI * PARTS - 1) // (BI * PARTS) * BI

    # [BQ, 1] and [BI]
    o_image, o_oh, o_ow = locate(i_p, tl.arange(0, BQ)[:, None], OH, OW, BH, R)
    o_i = tl.arange(0, BI)
    # [BOC]
    o_oc = i_oc * BOC + tl.arange(0, BOC)
    m_oc = o_oc < OC

    acc = tl.zeros((BM, BOC), dtype=tl.float32)
    for i_ic in range(i_part * PART, min(i_part * PART + PART, IC), BI):
        o_ic = i_ic + o_i
        b_x = depthwise_tile(
            x, w_depth, b_depth, o_image, o_oh, o_ow, o_ic[None, :],
            (o_image < N) & (o_ic < IC)[None, :],
            H, W, IC, KH, KW, SH, SW, PH, PW, DH, DW, HAS_BIAS, TH, TW, JOINS, BQ, BI, BH, R, V,
        ).to(x.dtype.element_ty)  # fmt: skip
        # [BI, BOC]
        m_w = (o_ic < IC)[:, None] & m_oc[None, :]
        b_w = tl.load(w_point + (o_oc[None, :] * IC + o_ic[:, None]), mask=m_w, other=0.0)
        if ROUND:
            b_x, b_w = round_tf32(b_x), round_tf32(b_w)
        acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION)

    if HAS_BIAS and PARTS == 1:
        acc += tl.load(b_point + o_oc, mask=m_oc, other=0.0).to(tl.float32)[None, :]

    # [BM]: the patches again, pixel by pixel
    o_m = tl.arange(0, BM)
    o_image, o_oh, o_ow = locate(i_p, o_m // (BH * R), OH, OW, BH, R)
    o_oh += o_m // R % BH
    o_ow += o_m % R
    p_y = y + ((i_part.to(tl.int64) * N + o_image) * (OC * (OH * OW)) + (o_oh * OW + o_ow))
    m_y = (o_image < N) & (o_oh < OH) & (o_ow < OW)
    p_y = p_y[:, None] + (o_oc.to(tl.int64) * (OH * OW))[None, :]
    tl.store(p_y, acc.to(y.dtype.element_ty), mask=m_y[:, None] & m_oc[None, :])


@triton.jit
def sum_kernel(
    parts,
    bias,
    y,
    count,
    OC: tl.constexpr,
    PIXELS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add parts [PARTS, count] in order, and bias [OC], to `count` values of y [N, OC, PIXELS]."""
    o_y = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_y = o_y < count
    b_y = tl.zeros((BLOCK,), dtype=tl.float32)
    for i_part in tl.static_range(PARTS):
        b_y += tl.load(parts + i_part * count + o_y, mask=m_y, other=0.0)
    if HAS_BIAS:
        b_y += tl.load(bias + o_y // PIXELS % OC, mask=m_y, other=0.0).to(tl.float32)
    tl.store(y + o_y, b_y.to(y.dtype.element_ty), mask=m_y)


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return one side of the output."""
    return (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def unrolled_taps(KH: int, KW: int) -> tuple[int, int]:
    """Return how many taps a step unrolls along each axis; a loop goes through the others."""
    # past 64 taps the code of a step outgrows what shared loads save
    if KH * KW <= 64:
        return KH, KW
    # a divisor, since a tap beyond the kernel would have to be masked
    return 1, next(taps for taps in range(min(KW, 64), 0, -1) if KW % taps == 0)


def power_of_2(size: int, most: int) -> int:
    """Return the smallest power of two that covers `size`, kept within [16, most]; tl.dot asks for 16."""
    return max(16, min(most, triton.next_power_of_2(size)))


def tiles(layers: nn.Module, batch: int, W: int, OH: int, OW: int, split: bool) -> dict[str, int]:
    """Choose patch, tile, parts and unrolled taps for an output from W columns of input.

    `split` says that a product takes three.
    """
    layer = layers.depthwise
    TH, TW = unrolled_taps(*layer.kernel_size)
    # pieces tile a row of the input, and of the output if they are of 4. A loop over columns would put
    # them where no vector begins. A patch is never one pixel: the compiler would then convert each of the
    # pixels that it adds to the tensor core's layout, and not just their sum.
    V = 1 if TW < layer.kernel_size[1] or W % 2 else 2 if W % 4 or OW % 4 else 4
    # a second row shares input with the first
    R, BH = max(2, V), 1 if OH == 1 else 2
    IC, OC = layers.pointwise.in_channels, layers.pointwise.out_channels

    def programs(BM: int, BOC: int) -> int:
        return triton.cdiv(batch * triton.cdiv(OH, BH) * triton.cdiv(OW, R) * BH * R, BM) * triton.cdiv(OC, BOC)

    # 64 sums a thread, of four warps, so that two programs or more share an SM. Long steps: problem 86 took 2.8 ms
    # with 32 channels, 2.4 with 64 in fp32, and in fp16 0.95 and 0.88
    BM, BOC, BI, num_warps = 64, power_of_2(OC, 128), power_of_2(IC, 64), 4
    if math.prod(layer.kernel_size) > 9 or max(layer.dilation) > 1:
        # many taps, or such as share no input, are dear to repeat for other channels (nasnet-7x7-b1: 20 us instead
        # of 52, deeplab-aspp-b1: 36 instead of 60)
        BOC, BI = power_of_2(OC, 256), power_of_2(IC, 32)
    elif IC <= 64 and not split and programs(128, BOC) >= 256:
        # in a single step pixels share weights (86: 1.37 ms instead of 1.54)
        BM, num_warps = 128, 8
    elif OC > 128 and IC > 16 and not split and programs(64, 256) * triton.cdiv(IC, BI) >= 128:
        # fewer depthwise tiles, if that leaves no SM idle (xception-middle-b1: 20 us instead of 28)
        BOC, num_warps = 256, 8
    # where tiles are few, parts of the reduction run side by side, eight warps on each of 128 SMs
    steps = triton.cdiv(IC, BI)
    STEPS = triton.cdiv(steps, max(1, 1024 // num_warps // programs(BM, BOC)))
    PARTS = triton.cdiv(steps, STEPS)
    if split and STEPS > 1:
        # split factors leave registers for half a step while another follows (64x64@4w-full: 134 us instead of 215)
        BI = power_of_2(IC, 32)
    patch = {"BH": BH, "R": R, "V": V, "TH": TH, "TW": TW}
    return patch | {"BM": BM, "BI": BI, "BOC": BOC, "PARTS": PARTS, "num_warps": num_warps}


def launch_grid(tile: dict[str, int], batch: int, OC: int, OH: int, OW: int) -> tuple[int, int]:
    """Return the channel tiles of all tiles of patches, and the parts of the reduction."""
    patches = batch * triton.cdiv(OH, tile["BH"]) * triton.cdiv(OW, tile["R"])
    pixel_tiles = triton.cdiv(patches, tile["BM"] // (tile["BH"] * tile["R"]))
    return pixel_tiles * triton.cdiv(OC, tile["BOC"]), tile["PARTS"]


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
        # by shape, dtype and arithmetic of the input
        self.plans: dict[tuple, tuple] = {}

    def plan(self, x: torch.Tensor, tf32: bool) -> tuple:
        """Return output size, grid and constants for inputs like x."""
        layer = self.depthwise
        batch, IC, H, W = x.shape
        OC = self.pointwise.out_channels
        axes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        OH, OW = (output_extent(*axis) for axis in zip((H, W), *axes, strict=True))
        # only products of fp32 values can need the three products of tf32x3
        split = x.dtype == torch.float32 and not tf32
        tile = tiles(self, batch, W, OH, OW, split)
        (KH, KW), (SH, SW), (PH, PW), (DH, DW) = axes
        constants = {
            "H": H,
            "W": W,
            "IC": IC,
            "OC": OC,
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
            "JOINS": (tile["BH"] * tile["R"]).bit_length() - 1,
            "ROUND": tf32,
            "PRECISION": "tf32x3" if split else "tf32",
            # steps are few, and other programs hide the latency of one
            "num_stages": 1,
        }
        return (batch, OC, OH, OW), launch_grid(tile, batch, OC, OH, OW), constants | tile

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, H, W] to [N, OC, OH, OW]."""
        tf32 = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
        key = x.shape, x.dtype, tf32
        if key not in self.plans:
            self.plans[key] = self.plan(x, tf32)
        size, grid, constants = self.plans[key]
        y = torch.empty(size, dtype=x.dtype, device=x.device)
        weights = self.depthwise.weight.contiguous(), self.depthwise.bias
        weights += self.pointwise.weight.contiguous(), self.pointwise.bias
        PARTS = constants["PARTS"]
        if PARTS == 1:
            fused_gemm_kernel[grid](x.contiguous(), *weights, y, size[0], **constants)
            return y
        parts = torch.empty((PARTS, *size), dtype=torch.float32, device=x.device)
        fused_gemm_kernel[grid](x.contiguous(), *weights, parts, size[0], **constants)
        pixels, bias = size[2] * size[3], self.pointwise.bias
        sum_grid = (triton.cdiv(y.numel(), 512),)
        sum_kernel[sum_grid](parts, bias, y, y.numel(), size[1], pixels, bias is not None, PARTS, BLOCK=512)
        return y
