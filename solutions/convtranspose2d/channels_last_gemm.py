"""Sub-pixel decomposition for deep reductions: a channels-last copy, and a GEMM a phase, split where few run.

Along an axis with stride S, output q * S + phase is reached from inputs q + shift; a tap has exactly one
phase, (tap * D - P) mod S, and one shift, -floor((tap * D - P) / S). So one class of outputs, a phase along
each axis, is a dense GEMM over its taps by their channels, with a row for each q and a column for each output
channel. This file is for layers with many channels and few pixels, the inner layers of decoders, where the
reduction is long and the output small; where the output dominates, phase_gemm is the better solution.

**A copy.** In [channel, row, column], as x comes, factors of one product are an image apart: values are
copied one at a time, those of 2 bytes not even asynchronously, and TF32 wants channels in a row. The copy
puts them there, rounded, and costs a launch; x is a few MB. Everything is then copied by 16 bytes straight
to shared memory, where the tensor core finds both factors. Weights are packed once, in the order of the
steps: what a program reads of them in one step is one piece of memory.

**A class at a time.** Phases side by side as columns would share what they read of x and store whole lines,
but they need shifts in common: with kernel 4 and stride 2 each has two of three, and a third of the products
along either axis would be zeros. A class by itself multiplies only taps that it has, of those only the ones
that bring a row of its tile to x, and pays with stores S apart, whose lines the L2 cache completes. Where
channels are too few to fill the columns of a tile, phases fill them (`Axis.fold`). An axis of one pixel has
no stride: every output is a phase, and has at most one tap.

**Parts.** One image of 8 x 6 pixels fills few of 132 SMs, and each would read megabytes of weights. So the
reduction is split into parts of equally many steps, also where classes have unequally many taps; a second
kernel adds them in order and writes the output.

**fp32 accuracy.** Of (high + low) * (high + low), in TF32, three products are taken, and added up apart from
the sum, since that of the tensor core loses low bits. The left factor is
split in registers, the right one ahead of time, kept in two terms and the shorter side of the tile. Where
weights dominate, few rows face many columns: that is x, and reading weights takes no more than in TF32.

`cost_us` chooses fold, tile and parts. Inputs are taken to be finite: an infinity has no low term, and a NaN
would also reach the outputs whose weight at its shift is zero.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def to_tf32(b):
    """Round to nearest, since the tensor core drops the 13 low bits of fp32."""
    return (b.to(tl.int32, bitcast=True) + 0x1000 & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def channels_last_kernel(
    x,
    t,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    ICG: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROUND: tl.constexpr,
    TERMS: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """Copy BP pixels of BC channels of x [N, GROUPS * ICG, PIXELS] to t [N, PIXELS, GROUPS, TERMS, CHANNELS].

    Channels from ICG on are zeros. With ROUND the copy holds TF32 values; the second of two terms is what
    the first lacks.
    """
    P_TILES: tl.constexpr = (PIXELS + BP - 1) // BP
    i_p, i_bg = tl.program_id(0) % P_TILES, (tl.program_id(0) // P_TILES).to(tl.int64)
    i_b, i_g = i_bg // GROUPS, i_bg % GROUPS
    # [BP, 1] and [1, BC]; pixels are dimension 0, so that lanes of a warp load neighbours
    o_p = (i_p * BP + tl.arange(0, BP))[:, None].to(tl.int64)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)[None, :]
    p_x = x + i_bg * (ICG * PIXELS) + o_c.to(tl.int64) * PIXELS + o_p
    b_x = tl.load(p_x, mask=(o_p < PIXELS) & (o_c < ICG), other=0.0)
    b_t = to_tf32(b_x) if ROUND else b_x
    p_t = t + ((i_b * PIXELS + o_p) * GROUPS + i_g) * (TERMS * CHANNELS) + o_c
    m_t = (o_p < PIXELS) & (o_c < CHANNELS)
    tl.store(p_t, b_t, mask=m_t)
    if TERMS == 2:
        tl.store(p_t + CHANNELS, b_x - b_t, mask=m_t)


@triton.jit
def reach(
    i_class,
    i_q,
    i_last,
    EXTENT: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    PERIOD: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """Return first tap, number of taps and shift of the first, of those that bring one of i_q .. i_last to x.

    The taps of a class solve tap * D = i_class + P (mod S): every PERIOD-th from one on, or none. Each
    shifts by STEP less than the one before.
    """
    GCD: tl.constexpr = S // PERIOD
    STEP: tl.constexpr = D // GCD
    i_tap = (i_class + P) // GCD * INVERSE % PERIOD
    taps = tl.where((i_class + P) % GCD == 0, tl.cdiv(K - i_tap, PERIOD), 0)
    i_shift = (i_class + P - i_tap * D) // S
    skipped = tl.cdiv(tl.maximum(i_q + i_shift - (EXTENT - 1), 0), STEP)
    taps = tl.minimum(taps, tl.maximum(i_last + i_shift + STEP, 0) // STEP)
    return i_tap + skipped * PERIOD, tl.maximum(taps - skipped, 0), i_shift - skipped * STEP


@triton.jit
def multiply(b_left, b_right, b_low, acc, SPLIT: tl.constexpr):
    """Add left [M, BK] times right [N, BK] transposed; with SPLIT in three products, right in two terms."""
    b_right = tl.trans(b_right)
    if SPLIT:
        b_high = to_tf32(b_left)
        # small terms first, and not onto acc: on an H100 sums kept in the tensor core had errors of 1e-5 (65, 1344
        # products), where phase_gemm, which adds apart as `tf32x3` does, has 3e-7
        b_sum = tl.dot(b_left - b_high, b_right, input_precision="tf32")
        b_sum = tl.dot(b_high, tl.trans(b_low), b_sum, input_precision="tf32")
        return acc + tl.dot(b_high, b_right, b_sum, input_precision="tf32")
    return tl.dot(b_left, b_right, acc, input_precision="tf32")


@triton.jit
def gemm_kernel(
    t,
    w,
    bias,
    y,
    ROWS,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OCG: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    PERIOD_H: tl.constexpr,
    PERIOD_W: tl.constexpr,
    INVERSE_H: tl.constexpr,
    INVERSE_W: tl.constexpr,
    FH: tl.constexpr,
    FW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LONG: tl.constexpr,
    SPLIT: tl.constexpr,
    SWAP: tl.constexpr,
    PARTS: tl.constexpr,
    PART_STEPS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute BM values of q in BN columns of one class and group, over one part of the reduction.

    t is what `channels_last_kernel` makes of [N, GROUPS * ICG, H, W], w [GROUPS, KH, KW, CHANNELS / BK,
    terms, columns, BK] as `pack` makes it, where columns are (FH, FW, OCG), bias [GROUPS * OCG]. Rows are
    (N, QH, QW). y is [N, GROUPS * OCG, OH, OW], or with PARTS > 1 fp32 [PARTS, classes, GROUPS, columns,
    ROWS]. With SWAP the columns are the rows of the product. With LONG there are 2**31 rows or more.
    """
    i_tile, i_g, i_part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    QH, QW = tl.cdiv(OH, SH * FH), tl.cdiv(OW, SW * FW)
    COLUMNS: tl.constexpr = FH * FW * OCG
    N_TILES: tl.constexpr = (COLUMNS + BN - 1) // BN
    C_STEPS: tl.constexpr = CHANNELS // BK
    PIXEL: tl.constexpr = GROUPS * CHANNELS * (2 if SPLIT and SWAP else 1)
    STEP_W: tl.constexpr = COLUMNS * BK * (1 if SWAP or not SPLIT else 2)

    # column tiles and classes of the same rows are neighbours, so all but the first find x in the L2 cache
    i_n, i_class, i_m = i_tile % N_TILES, i_tile // N_TILES % (SH * SW), i_tile // (N_TILES * SH * SW)
    i_ch, i_cw = i_class // SW, i_class % SW
    if LONG:
        i_m = i_m.to(tl.int64)
    # the values of q in the tile: all of an axis where it goes on in the next image, or in the next line
    i_begin, i_end = i_m * BM, tl.minimum(i_m * BM + BM, ROWS) - 1
    i_line, i_stop = i_begin // QW, i_end // QW
    within = i_line // QH == i_stop // QH
    i_top, i_bottom = tl.where(within, i_line % QH, 0), tl.where(within, i_stop % QH, QH - 1)
    within = i_line == i_stop
    i_left, i_right = tl.where(within, i_begin % QW, 0), tl.where(within, i_end % QW, QW - 1)
    i_kh, taps_h, i_down = reach(i_ch, i_top, i_bottom, H, KH, SH, PH, DH, PERIOD_H, INVERSE_H)
    i_kw, taps_w, i_over = reach(i_cw, i_left, i_right, W, KW, SW, PW, DW, PERIOD_W, INVERSE_W)

    # [BM, 1], [1, BK] and [BN, 1]
    o_m = (i_m * BM + tl.arange(0, BM))[:, None]
    o_b, o_qh, o_qw = (o_m // (QH * QW)).to(tl.int64), o_m // QW % QH, o_m % QW
    m_m = o_m < ROWS
    o_ih, o_iw = (o_qh + i_down).to(tl.int32), (o_qw + i_over).to(tl.int32)
    o_k, o_n = tl.arange(0, BK)[None, :], (i_n * BN + tl.arange(0, BN))[:, None]
    p_t = t + ((o_b * H + o_ih) * W + o_iw) * PIXEL + i_g * (PIXEL // GROUPS) + o_k
    p_w = w + i_g.to(tl.int64) * (KH * KW * C_STEPS * STEP_W) + o_n * BK + o_k
    m_n = o_n < COLUMNS

    if SWAP:
        acc = tl.zeros((BN, BM), dtype=tl.float32)
    else:
        acc = tl.zeros((BM, BN), dtype=tl.float32)
    steps = (taps_h * taps_w * C_STEPS).to(tl.int32)
    # where a class has no taps, the first steps are still prepared: nothing may divide by zero
    width = tl.maximum(taps_w, 1).to(tl.int32)
    for i_k in range(i_part * PART_STEPS, tl.minimum(i_part * PART_STEPS + PART_STEPS, steps)):
        i_tap, i_c = i_k // C_STEPS, i_k % C_STEPS
        i_th, i_tw = i_tap // width, i_tap % width
        # later taps reach further up and left
        i_up, i_back = i_th * (DH * PERIOD_H // SH), i_tw * (DW * PERIOD_W // SW)
        m_t = m_m & (o_ih >= i_up) & (o_ih < H + i_up) & (o_iw >= i_back) & (o_iw < W + i_back)
        p_step = p_t + (i_c * BK - (i_up.to(tl.int64) * W + i_back) * PIXEL)
        b_t = tl.load(p_step, mask=m_t, other=0.0)
        i_w = ((i_kh + i_th * PERIOD_H) * KW + i_kw + i_tw * PERIOD_W) * C_STEPS + i_c
        p_piece = p_w + i_w.to(tl.int64) * STEP_W
        b_w = tl.load(p_piece, mask=m_n, other=0.0)
        if SWAP:
            b_low = tl.load(p_step + CHANNELS, mask=m_t, other=0.0) if SPLIT else b_t
            acc = multiply(b_w, b_t, b_low, acc, SPLIT)
        else:
            b_low = tl.load(p_piece + COLUMNS * BK, mask=m_n, other=0.0) if SPLIT else b_w
            acc = multiply(b_t, b_w, b_low, acc, SPLIT)

    if HAS_BIAS:
        o_n = i_n * BN + tl.arange(0, BN)
        b_bias = tl.load(bias + i_g * OCG + o_n % OCG, mask=o_n < COLUMNS, other=0.0).to(tl.float32)
        acc += b_bias[:, None] if SWAP else b_bias[None, :]
    # [BN * BM], so that lanes of a warp take neighbouring rows whatever layout the compiler prefers: in y
    # these are SW * FW values apart, columns a plane
    b_y = tl.reshape(acc if SWAP else tl.trans(acc), (BN * BM,))
    o_y = tl.arange(0, BN * BM)
    o_m, o_n = i_m * BM + o_y % BM, i_n * BN + o_y // BM
    m_y = (o_m < ROWS) & (o_n < COLUMNS)
    if PARTS > 1:
        i_block = ((i_part * (SH * SW) + i_class) * GROUPS + i_g).to(tl.int64)
        tl.store(y + (i_block * COLUMNS + o_n) * ROWS + o_m, b_y, mask=m_y)
    else:
        o_b, o_qh, o_qw = (o_m // (QH * QW)).to(tl.int64), o_m // QW % QH, o_m % QW
        o_oc, o_oh, o_ow = o_n, o_qh * (SH * FH) + i_ch, o_qw * (SW * FW) + i_cw
        p_y = y + (o_b * (GROUPS * OCG) + i_g * OCG) * (OH * OW) + (o_oh.to(tl.int64) * OW + o_ow)
        if FH * FW > 1:
            o_oc, o_fh, o_fw = o_n % OCG, o_n // (FW * OCG), o_n // OCG % FW
            o_oh, o_ow = o_oh + o_fh, o_ow + o_fw
            p_y += o_fh * OW + o_fw
        m_y &= (o_oh < OH) & (o_ow < OW)
        tl.store(p_y + o_oc.to(tl.int64) * (OH * OW), b_y.to(y.dtype.element_ty), mask=m_y)


@triton.jit
def add_parts_kernel(
    parts,
    bias,
    y,
    COUNT,
    ROWS,
    OH: tl.constexpr,
    OW: tl.constexpr,
    GROUPS: tl.constexpr,
    OCG: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    FH: tl.constexpr,
    FW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LONG: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the sum of parts [PARTS, SH, SW, GROUPS, FH, FW, OCG, ROWS], in order, and bias [GROUPS * OCG].

    y is [N, GROUPS * OCG, OH, OW]; with LONG it has 2**31 values or more.
    """
    QH, QW = tl.cdiv(OH, SH * FH), tl.cdiv(OW, SW * FW)
    OC: tl.constexpr = GROUPS * OCG
    o_y = tl.program_id(0).to(tl.int64 if LONG else tl.int32) * BLOCK + tl.arange(0, BLOCK)
    m_y = o_y < COUNT
    o_plane, o_pixel = o_y // (OH * OW), o_y % (OH * OW)
    o_b, o_oc, o_oh, o_ow = o_plane // OC, o_plane % OC, o_pixel // OW, o_pixel % OW
    # an axis has classes or a fold, so one of the two remainders is 0
    o_block = ((o_oh % SH * SW + o_ow % SW) * GROUPS + o_oc // OCG) * FH + o_oh % FH
    o_column = (o_block * FW + o_ow % FW) * OCG + o_oc % OCG
    o_row = (o_b * QH + o_oh // (SH * FH)) * QW + o_ow // (SW * FW)
    p_part = parts + o_column.to(tl.int64) * ROWS + o_row
    b_y = tl.zeros((BLOCK,), dtype=tl.float32)
    i_size = tl.cast(ROWS, tl.int64) * (SH * SW * FH * FW * OC)
    for i_part in tl.static_range(PARTS):
        b_y += tl.load(p_part + i_part * i_size, mask=m_y, other=0.0)
    if HAS_BIAS:
        b_y += tl.load(bias + o_oc, mask=m_y, other=0.0).to(tl.float32)
    tl.store(y + o_y, b_y.to(y.dtype.element_ty), mask=m_y)


class Axis(NamedTuple):
    """One axis as the GEMM walks it: output q * stride * fold + class + phase; class < stride, phase < fold.

    Where phases share a row as columns, `fold` is the layer's stride, and the taps are all shifts of all
    phases, from the highest down: those of a layer of stride and dilation 1.
    """

    extent: int
    out: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    fold: int = 1

    @property
    def pixels(self) -> int:
        """The values of q."""
        return triton.cdiv(self.out, self.stride * self.fold)

    @property
    def period(self) -> int:
        """After how many taps a class comes again."""
        return self.stride // math.gcd(self.stride, self.dilation)

    def taps(self) -> list[int]:
        """Return for each class how many taps bring some q to x."""
        counts = [0] * self.stride
        for tap in range(self.kernel):
            phase, e = place(tap, self.stride, self.padding, self.dilation)
            counts[phase] += -self.pixels < e < self.extent
        return counts


def place(tap: int, stride: int, padding: int, dilation: int) -> tuple[int, int]:
    """Return the phase of a tap and the input pixel, less q, that it reads."""
    shift, phase = divmod(tap * dilation - padding, stride)
    return phase, -shift


def walk(extent: int, kernel: int, stride: int, padding: int, dilation: int, extra: int, fold: bool) -> Axis:
    """Return the axis of a layer, its phases as columns with `fold`; `extra` is output_padding."""
    out = (extent - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
    if extent == 1:
        return Axis(extent, out, kernel, out, padding, dilation)
    if not fold or stride == 1:
        return Axis(extent, out, kernel, stride, padding, dilation)
    shifts = [place(tap, stride, padding, dilation)[1] for tap in range(kernel)]
    return Axis(extent, out, max(shifts) - min(shifts) + 1, 1, max(shifts), 1, stride)


class Product(NamedTuple):
    """The GEMMs of a call: rows and columns of each, groups, the steps of each class, arithmetic and SMs."""

    rows: int
    columns: int
    groups: int
    steps: list[int]
    BK: int
    itemsize: int
    split: bool
    sms: int


#: Tiles, rows by columns; tl.dot asks for 16, wgmma for 64 on one side.
TILES = (
    *((128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (32, 128), (64, 32), (32, 64)),
    *((128, 16), (16, 128), (64, 16), (16, 64), (32, 32), (32, 16), (16, 32), (16, 16)),
)
#: Numbers of parts.
PARTS = 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64


def swaps(BM: int, BN: int, split: bool) -> bool:
    """Say whether the columns of a tile are the left factor of its product.

    The tensor core takes 64 rows of the left factor at a time and reads all of the right one for each, so
    the longer side belongs on the right. Split, the right one is read in two terms: there the shorter does.
    """
    return BN >= 64 and (BM <= BN if split else BM >= BN or BM < 64)


def step_values(BM: int, BN: int, split: bool) -> int:
    """Return how many values a program reads for a product: both factors, split one of them in two terms."""
    return BM + BN + (0 if not split else BM if swaps(BM, BN, split) else BN)


def cost_us(product: Product, BM: int, BN: int, parts: int) -> float:
    """Estimate how long the busiest SM takes, by an H100's peaks."""
    part = max(1, triton.cdiv(max(product.steps), parts))
    tiled = triton.cdiv(product.rows, BM) * triton.cdiv(product.columns, BN) * product.groups
    programs = tiled * sum(max(1, triton.cdiv(steps, part)) for steps in product.steps)
    # an SM multiplies 1.87e6 pairs of TF32 a microsecond; of all 494 TFLOP/s, tiles of 128 x 32, 64 and 128
    # reach 111, 200 and 279 in convtranspose3d, as if it fetched 125 KB a microsecond before it multiplies
    pairs = 1.87e6 / 3 if product.split else 1.87e6 * 4 / product.itemsize
    step = product.BK * (BM * BN / pairs + step_values(BM, BN, product.split) * product.itemsize / 125e3)
    rounds = float(triton.cdiv(programs, product.sms))
    if product.split:
        # splitting takes registers, of which this tile needs fewest, and alone on its SM a program waits for it
        step *= 1.0 if (BM, BN) == (32, 64) else 1.15
        rounds = max(rounds, 1.5)
    # however little a step does, it takes its time, but that of one program passes while others work
    times = part * (rounds * step + 0.1)
    if parts == 1:
        return times
    # a second kernel, and parts written and read
    values = parts * product.rows * product.columns * product.groups * len(product.steps)
    return times + 2.5 + values * 8 / 3e6


def tiles(product: Product, BM: int, BN: int, parts: int) -> dict[str, int | bool]:
    """Return the constants of a tile, with its pipeline."""
    part = max(1, triton.cdiv(max(product.steps), parts))
    programs = triton.cdiv(product.rows, BM) * triton.cdiv(product.columns, BN)
    programs *= product.groups * len(product.steps) * parts
    step_bytes = step_values(BM, BN, product.split) * product.BK * product.itemsize
    # alone on its SM a program has to hide the latency of memory by itself, with what it may have on Ada;
    # others leave room for a second one there, unless that would be less than three stages
    room = 96 if programs <= product.sms else 48
    stages = min(6, max(room * 1024 // step_bytes, min(3, 96 * 1024 // step_bytes)), part + 1)
    return {
        "PARTS": parts,
        "PART_STEPS": part,
        "SWAP": swaps(BM, BN, product.split),
        "BM": BM,
        "BN": BN,
        "BK": product.BK,
        # half the split factor's rows for each warp: 0.139 instead of 0.166 ms on 128x128@8w-full
        "num_warps": 8 if BM * BN > (4096 if product.split else 8192) else 4,
        "num_stages": max(2, stages),
    }


def block_k(channels: int, itemsize: int) -> int:
    """Return the channels of a step: 128 bytes, or less if that spares padding; tl.dot asks for 16."""
    BK = 128 // itemsize
    while BK > 16 and triton.cdiv(channels, BK // 2) * (BK // 2) < triton.cdiv(channels, BK) * BK:
        BK //= 2
    return BK


def axes_of(layer: nn.ConvTranspose2d, shape: torch.Size, folds: tuple[bool, bool]) -> tuple[Axis, Axis]:
    """Return height and width of the layer on an input [N, IC, H, W]."""
    sizes = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding, folds
    height, width = (walk(*axis) for axis in zip(shape[2:], *sizes, strict=True))
    return height, width


def choose(
    layer: nn.ConvTranspose2d, shape: torch.Size, itemsize: int, split: bool, sms: int
) -> tuple[tuple[Axis, Axis], dict[str, int | bool]]:
    """Return axes and tile for an input [N, IC, H, W]; `split` says that a product takes three."""
    channels, OCG = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    BK = block_k(channels, itemsize)
    choices = []
    # channels that fill a tile need no phases beside them
    for folds in ((False, False), (False, True), (True, True))[: 3 if OCG < 64 else 1]:
        height, width = axes_of(layer, shape, folds)
        columns = height.fold * width.fold * OCG
        taps = [down * over for down in height.taps() for over in width.taps()]
        steps = [count * triton.cdiv(channels, BK) for count in taps]
        rows = shape[0] * height.pixels * width.pixels
        product = Product(rows, columns, layer.groups, steps, BK, itemsize, split, sms)
        # a factor in two terms, or the place of every phase, leaves fewer registers for sums
        most = 4096 if columns > OCG else 8192 if split else 16384
        for BM, BN in TILES:
            if BM * BN > most or (split and BM > 64 > BN):
                continue
            for parts in PARTS:
                # 4 steps or more in a part
                if parts == 1 or parts * 4 <= max(steps):
                    choices.append((cost_us(product, BM, BN, parts), (height, width), product, BM, BN, parts))
    _, axes, *tile = min(choices, key=lambda choice: choice[0])
    return axes, tiles(*tile)


def pack(
    weight: torch.Tensor, layer: nn.ConvTranspose2d, axes: tuple[Axis, Axis], BK: int, tf32: bool, terms: int
) -> torch.Tensor:
    """Reorder w [IC, OCG, KH, KW] to [GROUPS, taps, CHANNELS / BK, terms, (FH, FW, OCG), BK].

    With `tf32` values are rounded to nearest, and the second of two terms is what the first lacks.
    """
    groups, (height, width) = layer.groups, axes
    channels, OCG = layer.in_channels // groups, layer.out_channels // groups
    steps = triton.cdiv(channels, BK)
    sizes = height.kernel, width.kernel, height.fold, width.fold, OCG, steps * BK
    packed = weight.new_zeros(groups, *sizes)
    # [GROUPS, OCG, ICG, KH, KW]
    taps = weight.detach().reshape(groups, channels, OCG, *layer.kernel_size).transpose(1, 2)
    for kh in range(layer.kernel_size[0]):
        ih, fh = column(kh, height, layer.padding[0], layer.dilation[0])
        for kw in range(layer.kernel_size[1]):
            iw, fw = column(kw, width, layer.padding[1], layer.dilation[1])
            packed[:, ih, iw, fh, fw, :, :channels] = taps[..., kh, kw]
    packed = packed.view(groups, height.kernel * width.kernel, -1, steps, BK).transpose(2, 3).contiguous()
    if not tf32:
        return packed
    high = (packed.view(torch.int32) + 0x1000 & -0x2000).view(torch.float32)
    return torch.stack((high, packed - high), 3) if terms == 2 else high


def column(tap: int, axis: Axis, padding: int, dilation: int) -> tuple[int, int]:
    """Return where `pack` puts a tap of the layer: the tap of the axis, and the phase."""
    if axis.fold == 1:
        return tap, 0
    phase, shift = place(tap, axis.fold, padding, dilation)
    return axis.padding - shift, phase


def inverse(axis: Axis) -> int:
    """Return what takes a class to its first tap, modulo the period."""
    return pow(axis.dilation * axis.period // axis.stride, -1, axis.period)


def launch_grid(
    tile: dict[str, int | bool], rows: int, columns: int, classes: int, groups: int
) -> tuple[int, int, int]:
    """Return (tiles of all classes, groups, parts)."""
    tiles = triton.cdiv(rows, tile["BM"]) * triton.cdiv(columns, tile["BN"]) * classes
    return tiles, groups, tile["PARTS"]


def weight_stamp(weight: torch.Tensor) -> tuple[int, int]:
    """Return what changes when the weights are replaced or written in place."""
    # tensors made in inference mode count no versions
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version  # noqa: SLF001


class Plan(NamedTuple):
    """Packed weights, sizes of copy, parts and output, rows, and grid and constants of each kernel."""

    weight: torch.Tensor
    copied: tuple[int, ...]
    parts: tuple[int, ...] | None
    output: tuple[int, ...]
    rows: int
    copy_grid: tuple[int, int]
    copy: dict[str, int]
    gemm_grid: tuple[int, int, int]
    gemm: dict[str, int]
    add: dict[str, int]


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
        sizes = kernel_size, stride, padding, output_padding
        self.conv_transpose2d = nn.ConvTranspose2d(in_channels, out_channels, *sizes, groups, bias, dilation)
        # by fold, arithmetic and terms, and by shape, dtype and arithmetic of the input
        self.packed: dict[tuple, torch.Tensor] = {}
        self.plans: dict[tuple, Plan] = {}
        self.stamp: tuple[int, int] | None = None

    def prepare(self) -> None:
        """Forget the weights packed earlier; the first call for a shape packs those that it needs."""
        self.packed.clear()
        self.plans.clear()
        self.stamp = weight_stamp(self.conv_transpose2d.weight)

    def pack(self, axes: tuple[Axis, Axis], BK: int, tf32: bool, terms: int) -> torch.Tensor:
        """Return the packed weights, made once for each form."""
        key = axes[0].fold, axes[1].fold, BK, tf32, terms
        if key not in self.packed:
            layer = self.conv_transpose2d
            self.packed[key] = pack(layer.weight, layer, axes, BK, tf32, terms)
        return self.packed[key]

    def plan(self, x: torch.Tensor, tf32: bool) -> Plan:
        """Return what to launch for inputs like x."""
        layer, (N, _, H, W) = self.conv_transpose2d, x.shape
        channels, OCG = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        split = x.dtype == torch.float32 and not tf32
        sms = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 128
        axes, tile = choose(layer, x.shape, x.element_size(), split, sms)
        height, width = axes
        rows, classes = N * height.pixels * width.pixels, height.stride * width.stride
        columns = height.fold * width.fold * OCG
        CHANNELS = triton.cdiv(channels, tile["BK"]) * tile["BK"]
        terms = (2, 1) if split and tile["SWAP"] else (1, 2) if split else (1, 1)
        # 2048 values a program, of lines of 128 bytes or more on both sides where there are so many channels
        BC = min(64, triton.next_power_of_2(CHANNELS))
        BP = min(2048 // BC, triton.next_power_of_2(H * W))
        sizes = {"GROUPS": layer.groups, "OCG": OCG, "OH": height.out, "OW": width.out}
        sizes |= {"SH": height.stride, "SW": width.stride, "FH": height.fold, "FW": width.fold}
        bias = layer.bias is not None
        return Plan(
            self.pack(axes, tile["BK"], tf32 or terms[1] == 2, terms[1]),
            (N, H, W, layer.groups, terms[0], CHANNELS),
            (tile["PARTS"], classes, layer.groups, columns, rows) if tile["PARTS"] > 1 else None,
            (N, layer.out_channels, height.out, width.out),
            rows,
            (N * layer.groups * triton.cdiv(H * W, BP), triton.cdiv(CHANNELS, BC)),
            {"PIXELS": H * W, "GROUPS": layer.groups, "ICG": channels, "CHANNELS": CHANNELS}
            | {"ROUND": tf32 or terms[0] == 2, "TERMS": terms[0], "BP": BP, "BC": BC},
            launch_grid(tile, rows, columns, classes, layer.groups),
            {"H": H, "W": W, "CHANNELS": CHANNELS, "KH": height.kernel, "KW": width.kernel}
            | {"PH": height.padding, "PW": width.padding, "DH": height.dilation, "DW": width.dilation}
            | {"PERIOD_H": height.period, "PERIOD_W": width.period}
            | {"INVERSE_H": inverse(height), "INVERSE_W": inverse(width)}
            | {"HAS_BIAS": bias and tile["PARTS"] == 1, "LONG": rows + tile["BM"] > 2**31, "SPLIT": split}
            | sizes
            | tile,
            sizes
            | {"HAS_BIAS": bias, "LONG": N * layer.out_channels * height.out * width.out + 512 > 2**31}
            | {"PARTS": tile["PARTS"], "BLOCK": 512},
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, H, W] to [N, OC, OH, OW]."""
        layer = self.conv_transpose2d
        if self.stamp != weight_stamp(layer.weight):
            self.prepare()
        tf32 = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
        key = x.shape, x.dtype, tf32
        if key not in self.plans:
            self.plans[key] = self.plan(x, tf32)
        plan = self.plans[key]
        t = torch.empty(plan.copied, dtype=x.dtype, device=x.device)
        y = torch.empty(plan.output, dtype=x.dtype, device=x.device)
        channels_last_kernel[plan.copy_grid](x.contiguous(), t, **plan.copy)
        if plan.parts is None:
            gemm_kernel[plan.gemm_grid](t, plan.weight, layer.bias, y, plan.rows, **plan.gemm)
            return y
        parts = torch.empty(plan.parts, dtype=torch.float32, device=x.device)
        gemm_kernel[plan.gemm_grid](t, plan.weight, None, parts, plan.rows, **plan.gemm)
        add_grid = (triton.cdiv(y.numel(), plan.add["BLOCK"]),)
        add_parts_kernel[add_grid](parts, layer.bias, y, y.numel(), plan.rows, **plan.add)
        return y
