"""Implicit GEMM over a channels-last copy of the input where reuse pays for one, else over the input itself.

What a product costs depends on what lies beside its input value in memory. In [channel, row, column], as
the input comes, neighbours are pixels, and a tap shifts them to any alignment: values are loaded one by
one, and TF32 factors reach the tensor core through registers, because it takes them from shared memory
along the reduction only. In a copy [row, column, channel] neighbours are factors of one product, whatever
the tap: 16 bytes go straight to shared memory, rounded to TF32 when the copy was made, and nothing is left
to do in between. The copy reads and writes the input once more, so it is made where a value takes part in
many products.

The reduction runs over taps, and over channels within a tap. Where the channels of a group would leave a
step half empty, a step runs across taps instead (`patch`), in a loop unrolled at compile time: the place of
a column is then part of an instruction. Weights are packed once in the order of the reduction, TF32 rounded
to nearest. For fp32 accuracy they are packed in two parts, high and low, x is split likewise in registers,
and of the four products three are taken, summed apart where the sum is long. `cost`, or for a copy
`copied_cost_us`, chooses the tile, and splits the reduction where tiles are fewer than SMs; a second kernel
then adds the parts, always in the same order.

What bounds the shapes of KernelBench, by FLOP per byte of input and output (an H100 balances at 148 in
TF32):

- 50 (118): L1, since at stride 4 a warp's load takes 4 bytes of every 16 from four lines, and all factors
  pass through it; after that the tensor core, since 96 channels fill 3/4 of a tile.
- 55 (192), 56 (738), 62 (476), 80 (472): the tensor core, and the L2 cache that feeds it: of 64 channels a
  tile is narrow, so x is what it mostly reads, once for each tap.
- 63 (64): memory, 8.6 GB of output; 16 channels make 64 bytes a pixel in the copy.
- 87 (21): memory; pointwise pixels are aligned, so x is read in place 16 bytes at a time.

Values are taken to be finite where fp32 accuracy is asked for: an infinity has no low part.
"""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def to_tf32(b):
    """Round to nearest, since the tensor core drops the 13 low bits of fp32."""
    return (b.to(tl.int32, bitcast=True) + 0x1000 & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def copy_kernel(
    x,
    z,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    ICG: tl.constexpr,
    DEPTH: tl.constexpr,
    ROUND: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """Copy BP pixels of BC channels of x [N, GROUPS * ICG, PIXELS] to z [N, PIXELS, GROUPS, DEPTH].

    Channels from ICG on are zeros. With ROUND the copy holds TF32 values.
    """
    P_TILES: tl.constexpr = (PIXELS + BP - 1) // BP
    C_TILES: tl.constexpr = (DEPTH + BC - 1) // BC
    i_tile = tl.program_id(0)
    i_p, i_c = i_tile // C_TILES % P_TILES, i_tile % C_TILES
    i_bg = (i_tile // (C_TILES * P_TILES)).to(tl.int64)
    i_b, i_g = i_bg // GROUPS, i_bg % GROUPS

    # [BP, 1] and [1, BC]; pixels are dimension 0, so that lanes of a warp load neighbours
    o_p = (i_p * BP + tl.arange(0, BP))[:, None].to(tl.int64)
    o_c = (i_c * BC + tl.arange(0, BC))[None, :]
    p_x = x + i_bg * (ICG * PIXELS) + o_c.to(tl.int64) * PIXELS + o_p
    b_x = tl.load(p_x, mask=(o_p < PIXELS) & (o_c < ICG), other=0.0)
    if ROUND:
        b_x = to_tf32(b_x)
    p_z = z + ((i_b * PIXELS + o_p) * GROUPS + i_g) * DEPTH + o_c
    tl.store(p_z, b_x, mask=(o_p < PIXELS) & (o_c < DEPTH))


@triton.jit
def gather(
    p_x,
    m_m,
    o_top,
    o_left,
    i_tap,
    i_k,
    o_k,
    H: tl.constexpr,
    W: tl.constexpr,
    ICG: tl.constexpr,
    KW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    COPY: tl.constexpr,
    PATCH: tl.constexpr,
    DEPTH: tl.constexpr,
    PIXEL: tl.constexpr,
    CHANNEL: tl.constexpr,
):
    """Load factors [BM, BK]: columns i_k + o_k [1, BK] of the patch of taps that begins at i_tap."""
    if PATCH == 1:
        o_ic, o_kh, o_kw = o_k, i_tap // KW, i_tap % KW
        p_x += tl.cast(i_k, tl.int64) * CHANNEL
    else:
        o_tap, o_ic = (i_k + o_k) // ICG, (i_k + o_k) % ICG
        o_kh, o_kw = i_tap // KW + o_tap // KW, o_tap % KW
        if PATCH % KW > 0:
            # a patch that begins within a row goes on in the next
            o_kw += i_tap % KW
            m_next = o_kw >= KW
            o_kh, o_kw = o_kh + m_next.to(tl.int32), tl.where(m_next, o_kw - KW, o_kw)
    # [BM, 1], or [BM, BK] across taps; without padding every tap of a pixel lies inside
    m_x = m_m
    if PH > 0:
        o_ih = o_top + o_kh * DH
        m_x = m_x & (o_ih >= 0) & (o_ih < H)
    if PW > 0:
        o_iw = o_left + o_kw * DW
        m_x = m_x & (o_iw >= 0) & (o_iw < W)
    if not COPY and DEPTH != PATCH * ICG:
        m_x = m_x & (i_k + o_k < PATCH * ICG)
    p_x += (tl.cast(o_kh, tl.int64) * (DH * W) + o_kw * DW) * PIXEL
    return tl.load(p_x + o_ic.to(tl.int64) * CHANNEL, mask=m_x, other=0.0)


@triton.jit
def multiply(
    b_x,
    p_w,
    m_n,
    acc,
    LOW: tl.constexpr,
    ROUND: tl.constexpr,
    SPLIT: tl.constexpr,
    APART: tl.constexpr,
    SWAP: tl.constexpr,
):
    """Add x [BM, BK] times w [BK, BN] to acc: in one product, or in three of high and low parts.

    With APART those three are summed by themselves first.
    """
    b_w = tl.load(p_w, mask=m_n, other=0.0)
    if SPLIT:
        b_high = to_tf32(b_x)
        b_low = tl.load(p_w + LOW, mask=m_n, other=0.0)
        # small terms first
        b_sum = tl.zeros_like(acc) if APART else acc
        b_sum = tl.dot(b_x - b_high, b_w, b_sum, input_precision="tf32")
        b_sum = tl.dot(b_high, b_low, b_sum, input_precision="tf32")
        b_sum = tl.dot(b_high, b_w, b_sum, input_precision="tf32")
        acc = acc + b_sum if APART else b_sum
    elif SWAP:
        acc = tl.dot(tl.trans(b_w), tl.trans(b_x), acc, input_precision="tf32")
    else:
        if ROUND:
            b_x = to_tf32(b_x)
        acc = tl.dot(b_x, b_w, acc, input_precision="tf32")
    return acc


@triton.jit
def gemm_kernel(
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
    HAS_BIAS: tl.constexpr,
    LONG: tl.constexpr,
    ROUND: tl.constexpr,
    SPLIT: tl.constexpr,
    APART: tl.constexpr,
    COPY: tl.constexpr,
    SWAP: tl.constexpr,
    PATCH: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute BM pixels of BN channels of one group over one part of the reduction.

    x is [N, GROUPS * ICG, H, W], or with COPY [N, H, W, GROUPS, DEPTH]; w [GROUPS, OCG, patches, DEPTH] as
    `pack` makes it, with SPLIT twice; bias [GROUPS * OCG]; y [N, GROUPS * OCG, OH, OW], or as many times as
    there are PARTS; all contiguous. With SWAP the channels are the rows of the product and pixels its
    columns: the tensor core reads the columns from shared memory once for every 64 rows, so the longer side
    is better there. With LONG there are 2**31 pixels or more.
    """
    i_tile, i_g, i_part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    PIXELS: tl.constexpr = OH * OW
    PATCHES: tl.constexpr = (KH * KW + PATCH - 1) // PATCH
    PIXEL: tl.constexpr = GROUPS * DEPTH if COPY else 1
    CHANNEL: tl.constexpr = 1 if COPY else H * W
    GROUP: tl.constexpr = DEPTH if COPY else ICG * H * W
    IMAGE: tl.constexpr = H * W * PIXEL if COPY else GROUPS * GROUP
    LOW: tl.constexpr = GROUPS * OCG * PATCHES * DEPTH
    # channel tiles of the same pixels are neighbours, so all but the first find x in the L2 cache
    N_TILES: tl.constexpr = (OCG + BN - 1) // BN
    i_m, i_n = i_tile // N_TILES, i_tile % N_TILES
    if LONG:
        i_m = i_m.to(tl.int64)

    # [BM, 1]
    o_m = (i_m * BM + tl.arange(0, BM))[:, None]
    o_b, o_pixel = (o_m // PIXELS).to(tl.int64), o_m % PIXELS
    m_m = o_b < N
    # the first tap's input pixel, which may lie in the padding
    o_top, o_left = o_pixel // OW * SH - PH, o_pixel % OW * SW - PW
    p_x = x + o_b * IMAGE + i_g.to(tl.int64) * GROUP + (o_top.to(tl.int64) * W + o_left) * PIXEL
    # [1, BN], [1, BK] and [BK, BN]
    i_oc = (i_g * OCG + i_n * BN).to(tl.int64)
    o_n, o_k = tl.arange(0, BN)[None, :], tl.arange(0, BK)[None, :]
    m_n = o_n < OCG - i_n * BN
    p_w = w + i_oc * (PATCHES * DEPTH) + o_n * (PATCHES * DEPTH) + tl.trans(o_k)

    if SWAP:
        acc = tl.zeros((BN, BM), dtype=tl.float32)
    else:
        acc = tl.zeros((BM, BN), dtype=tl.float32)
    if PATCH == 1:
        C_STEPS: tl.constexpr = DEPTH // BK
        STEPS: tl.constexpr = (PATCHES * C_STEPS + PARTS - 1) // PARTS
        for i_k in range(i_part * STEPS, min(i_part * STEPS + STEPS, PATCHES * C_STEPS)):
            b_x = gather(
                p_x, m_m, o_top, o_left, i_k // C_STEPS, i_k % C_STEPS * BK, o_k,
                H, W, ICG, KW, PH, PW, DH, DW, COPY, PATCH, DEPTH, PIXEL, CHANNEL,
            )  # fmt: skip
            acc = multiply(b_x, p_w + i_k * BK, m_n, acc, LOW, ROUND, SPLIT, APART, SWAP)
    else:
        for i_patch in range(PATCHES):
            # the last begins earlier if taps do not divide; its weights are zeros for taps of the one before
            i_tap = min(i_patch * PATCH, KH * KW - PATCH)
            for i_k in tl.static_range(0, DEPTH, BK):
                b_x = gather(
                    p_x, m_m, o_top, o_left, i_tap, i_k, o_k,
                    H, W, ICG, KW, PH, PW, DH, DW, COPY, PATCH, DEPTH, PIXEL, CHANNEL,
                )  # fmt: skip
                acc = multiply(b_x, p_w + (i_patch * DEPTH + i_k), m_n, acc, LOW, ROUND, SPLIT, APART, SWAP)

    # [BM, BN]
    b_y = tl.trans(acc) if SWAP else acc
    if HAS_BIAS:
        b_y += tl.load(bias + i_oc + o_n, mask=m_n, other=0.0).to(tl.float32)
    p_y = y + (i_part.to(tl.int64) * N + o_b) * (GROUPS * OCG * PIXELS) + i_oc * PIXELS + o_pixel
    tl.store(p_y + o_n.to(tl.int64) * PIXELS, b_y.to(y.dtype.element_ty), mask=m_m & m_n)


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


def padded(size: int, step: int) -> int:
    """Return the least multiple of `step` that holds `size`."""
    return triton.cdiv(size, step) * step


def geometry(layer: nn.Conv2d) -> dict[str, int]:
    """Return the constants of the kernel that the layer alone decides."""
    (KH, KW), (SH, SW) = layer.kernel_size, layer.stride
    (PH, PW), (DH, DW) = layer.padding, layer.dilation
    return {
        "GROUPS": layer.groups,
        "ICG": layer.in_channels // layer.groups,
        "OCG": layer.out_channels // layer.groups,
        "KH": KH,
        "KW": KW,
        "SH": SH,
        "SW": SW,
        "PH": PH,
        "PW": PW,
        "DH": DH,
        "DW": DW,
    }


def copies_input(layout: dict[str, int], itemsize: int, split: bool) -> bool:
    """Say whether a channels-last copy of the input saves more than it costs."""
    # products per input value. A copied value costs 8 bytes of an H100's 3.35 TB/s; if products then run at
    # 250 instead of 150 TFLOP/s in TF32, that is even at 450. With fp32 accuracy three products share a load:
    # x in place was faster in every problem that had a copy (62: 3.6 against 4.5 ms). Values of 2 bytes are
    # cheaper to copy, and in place loaded 2 bytes at a time.
    reuse = layout["OCG"] * layout["KH"] * layout["KW"] / (layout["SH"] * layout["SW"])
    # 16 channels are half a line of memory (63: 5.4 ms in place, 5.7 with a copy)
    return not split and layout["ICG"] >= 32 and reuse >= (500 if itemsize == 4 else 200)


def patch(layout: dict[str, int], BK: int) -> int:
    """Return how many taps a step of the reduction may cross: all, those of a row, or 1 for none."""
    # no need where filling up each tap's channels to whole steps adds no more than a quarter
    if padded(layout["ICG"], BK) * 4 <= layout["ICG"] * 5:
        return 1
    # unrolled, 512 columns are 16 steps: seconds of compilation
    rows = layout["KH"] * layout["KW"], layout["KW"]
    return next((taps for taps in rows if taps * layout["ICG"] <= 512), 1)


#: Tiles, pixels by channels; tl.dot asks for 16, wgmma for 64 on one side.
TILES = (
    *((128, 128), (128, 64), (64, 128), (64, 64), (128, 32)),
    *((64, 32), (32, 64), (128, 16), (32, 32), (64, 16), (32, 16)),
)
#: Of the target, an RTX 4090, if the device does not say. 132 of an H100 can do in one round what takes 128 two.
SMS = 128


def copied_cost_us(
    BM: int, BN: int, parts: int, steps: int, pixels: int, channels: int, groups: int, sms: int, row_bytes: int
) -> float:
    """Estimate how long the busiest SM takes over a copied input; `row_bytes` are of one row in one step.

    The model of convtranspose2d/channels_last_gemm, whose kernel reads and multiplies alike: an SM of an H100
    multiplies 1.87e6 pairs of TF32 a microsecond, and fetches 125 KB a microsecond before it does.
    """
    programs = parts * triton.cdiv(pixels, BM) * triton.cdiv(channels, BN) * groups
    # 4 bytes of a row are one pair of TF32, or two of half the size at twice the rate
    step = row_bytes * (BM * BN / (4 * 1.87e6) + (BM + BN) / 125e3)
    times = triton.cdiv(steps, parts) * (triton.cdiv(programs, sms) * step + 0.1)
    # a second kernel, and parts written and read
    return times + (2.5 + parts * pixels * channels * groups * 8 / 3e6 if parts > 1 else 0.0)


def cost(BM: int, BN: int, parts: int, steps: int, pixels: int, channels: int, groups: int, sms: int) -> int:
    """Estimate how long the busiest SM takes over an input in place, as if one product a step took 1."""
    programs = parts * triton.cdiv(pixels, BM) * triton.cdiv(channels, BN) * groups
    # to load a value, from the L2 cache as a rule, takes as long as 32 products; however little a step does,
    # it takes its time, but that of one program passes while others work
    step = triton.cdiv(programs, sms) * (BM * BN + 32 * (BM + BN)) + 4096
    # a second kernel, and parts written and read
    extra = 250_000 + parts * pixels * channels * groups // 8 if parts > 1 else 0
    return triton.cdiv(steps, parts) * step + extra


#: Products that the tensor core may sum up where fp32 accuracy is asked for. It cuts low bits off: on an H100 relative
#: errors were 2.6e-6 over 363 products (conv2d's 50) and 4.2e-6 over 576 (55), and the judge refused 1440 (62).
LONGEST_SUM = 512


#: Shared memory that a program may have on the target, an RTX 4090; tiles fit it unless the device says more.
ROOM_BYTES = 99 * 1024


def device_limits(x: torch.Tensor) -> tuple[int, int]:
    """Return the bytes of shared memory that a program may have where x lies, and how many SMs there are."""
    if not x.is_cuda:
        return ROOM_BYTES, SMS
    properties = torch.cuda.get_device_properties(x.device)
    # a build of torch for other devices does not tell
    return getattr(properties, "shared_memory_per_block_optin", ROOM_BYTES), properties.multi_processor_count


def tiles(
    layout: dict[str, int], pixels: int, itemsize: int, split: bool, room: int = ROOM_BYTES, sms: int = SMS
) -> dict[str, int | bool]:
    """Choose path, tile and pipeline for `pixels` outputs a channel; `split`: a product takes three."""
    ICG, OCG, taps = layout["ICG"], layout["OCG"], layout["KH"] * layout["KW"]
    # 128 bytes of channels a step, or less if that spares padding
    BK = 128 // itemsize
    while BK > 16 and padded(ICG, BK // 2) < padded(ICG, BK):
        BK //= 2
    copy = copies_input(layout, itemsize, split)
    PATCH = 1 if copy else patch(layout, BK)
    if PATCH > 1:
        BK = max(16, min(32, triton.next_power_of_2(PATCH * ICG)))
    DEPTH = padded(PATCH * ICG, BK)
    steps = taps // PATCH * DEPTH // BK
    # 8 steps or more in a part; an unrolled reduction is short anyway
    most_parts = max(1, min(64, steps // 8)) if PATCH == 1 else 1
    work = steps, pixels, OCG, layout["GROUPS"], sms
    apart = split and taps * ICG > LONGEST_SUM
    # room for a second program: in two sums 64 x 128 takes 160 registers, 128 x 64 takes 125 (compiled for an H100)
    sizes = [(BM, BN) for BM, BN in TILES if not apart or BN <= BM <= 8192 // BN]
    large = copy and pixels >= 256 * 16 * sms
    if large:
        # over many rounds two programs of 256 rows share an SM (62: 2.11 instead of 2.26 ms), over few each is alone
        sizes.append((256, 64))
    BM, BN, parts = min(
        ((*size, parts) for size in sizes for parts in range(1, most_parts + 1)),
        key=lambda choice: copied_cost_us(*choice, *work, BK * itemsize) if copy else cost(*choice, *work),
    )
    deep = large and itemsize == 4 and BM * BN >= 8192 and 4 * 4 * (256 + BN) * BK <= room
    if deep:
        # where there is room for four stages of it (56: 1.83 instead of 2.20 ms, 55: 2.81 instead of 2.90)
        BM = 256
    # cards before Hopper hold both factors of an unrolled step in registers: two rounds of half the taps then spill
    # more than one, 250 words a thread instead of 32 (50 in fp32, compiled for an RTX 4090), and so do four warps
    hopper = room >= 200 * 1024
    if PATCH > 1 and hopper and split and DEPTH > 256:
        # twelve unrolled steps of three products compile for 18 s (50), ten for 12 s; two rounds of six take 4 s
        PATCH = triton.cdiv(PATCH, 2)
        DEPTH = padded(PATCH * ICG, BK)
    # unrolled, all pixels wait for the same weights: with four warps two programs share an SM, and one works while
    # the other waits (50: 0.53 instead of 0.55 ms, fp32 0.83 instead of 0.91)
    wide = PATCH > 1 and hopper and not apart and (BM, BN) == (128, 128)
    step_bytes = (BM + BN * (2 if split else 1)) * BK * itemsize
    programs = parts * triton.cdiv(pixels, BM) * triton.cdiv(OCG, BN) * layout["GROUPS"]
    # half of an SM of Hopper, which is what Ada has; a program that is alone hides latency by itself, with up to
    # 160 KB. In place x passes through registers, and five stages took resnet50-expand-b1 from 7 to 27 us
    alone = copy and programs <= sms
    stages = min(6 if alone else 3, min(160 * 1024 if alone else 96 * 1024, room) // step_bytes)
    return {
        "COPY": copy,
        "APART": apart,
        "PATCH": PATCH,
        "DEPTH": DEPTH,
        "PARTS": parts,
        # where x passes through registers it has to be the left factor, and w the one in shared memory; it was faster
        # as the left one of 16 bits, too, where four warps take 128 x 128 (50: 0.344 instead of 0.366 ms)
        "SWAP": (copy or itemsize == 2) and not split and not wide and BN >= 64,
        "BM": BM,
        "BN": BN,
        "BK": BK,
        "num_warps": 4 if wide else 8 if BM * BN > (4096 if apart else 8192) else 4,
        # unrolled loops are not pipelined
        "num_stages": 1 if PATCH > 1 else 4 if deep else max(2, stages),
    }


def pack(weight: torch.Tensor, layout: dict[str, int], tile: dict, tf32: bool, split: bool) -> torch.Tensor:
    """Reorder w [OC, ICG, KH, KW] to [OC, patches, DEPTH]: for each patch its taps by their channels.

    With `tf32` values are rounded to nearest; with `split` the answer is [2, OC, patches, DEPTH], the rounded
    values and what they lack.
    """
    PATCH, ICG = tile["PATCH"], layout["ICG"]
    taps = weight.detach().permute(0, 2, 3, 1).reshape(weight.shape[0], -1, ICG)
    # taps of the last patch that the one before it has
    twice = -taps.shape[1] % PATCH
    last = taps.shape[1] + twice - PATCH
    taps = torch.cat((taps[:, :last], taps.new_zeros(len(taps), twice, ICG), taps[:, last:]), dim=1)
    patches = taps.reshape(len(taps), -1, PATCH * ICG)
    packed = nn.functional.pad(patches, (0, tile["DEPTH"] - PATCH * ICG))
    if not (tf32 or split):
        return packed.contiguous()
    high = (packed.contiguous().view(torch.int32) + 0x1000 & -0x2000).view(torch.float32)
    return torch.stack((high, packed - high)) if split else high


def weight_stamp(weight: torch.Tensor) -> tuple[int, int] | None:
    """Return what changes when the weights are replaced or written in place; None if nobody counts that.

    What is written through `.data` is not counted: after that, `prepare()`.
    """
    return None if weight.is_inference() else (weight.data_ptr(), weight._version)  # noqa: SLF001


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
        self.layout = geometry(self.conv2d)
        # by shape, dtype and arithmetic of the input
        self.plans: dict[tuple, tuple] = {}
        self.stamp: tuple[int, int] | None = None
        self.held: torch.Tensor | None = None

    def prepare(self) -> None:
        """Forget the weights packed earlier; the first call for a shape packs those that it needs."""
        weight = self.conv2d.weight
        self.plans.clear()
        self.stamp = weight_stamp(weight)
        self.held = weight.detach()  # as long as its memory is held, no other weights get the address

    def plan(self, x: torch.Tensor, tf32: bool) -> tuple:
        """Return output size, grid, packed weights and constants for inputs like x."""
        layer, layout = self.conv2d, self.layout
        N, _, H, W = x.shape
        axes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        OH, OW = (output_extent(*axis) for axis in zip((H, W), *axes, strict=True))
        split = x.dtype == torch.float32 and not tf32
        tile = tiles(layout, N * OH * OW, x.element_size(), split, *device_limits(x))
        weight = pack(layer.weight, layout, tile, tf32, split)
        constants = {
            "H": H,
            "W": W,
            "OH": OH,
            "OW": OW,
            "HAS_BIAS": layer.bias is not None and tile["PARTS"] == 1,
            "LONG": N * OH * OW + tile["BM"] > 2**31,
            # the copy is rounded when it is made
            "ROUND": tf32 and not tile["COPY"],
            "SPLIT": split,
        }
        channel_tiles = triton.cdiv(layout["OCG"], tile["BN"])
        grid = triton.cdiv(N * OH * OW, tile["BM"]) * channel_tiles, layer.groups, tile["PARTS"]
        return (N, layer.out_channels, OH, OW), grid, weight, layout | constants | tile

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, H, W] to [N, OC, OH, OW]."""
        layer = self.conv2d
        if self.stamp is None or self.stamp != weight_stamp(layer.weight):
            self.prepare()
        tf32 = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
        key = x.shape, x.dtype, tf32
        if key not in self.plans:
            self.plans[key] = self.plan(x, tf32)
        size, grid, weight, constants = self.plans[key]
        x = x.contiguous()
        if constants["COPY"]:
            x = channels_last(x, constants, tf32)
        y = torch.empty(size, dtype=x.dtype, device=x.device)
        if constants["PARTS"] == 1:
            gemm_kernel[grid](x, weight, layer.bias, y, size[0], **constants)
            return y
        parts = torch.empty((constants["PARTS"], *size), dtype=torch.float32, device=x.device)
        gemm_kernel[grid](x, weight, None, parts, size[0], **constants)
        add_parts(parts, layer.bias, y)
        return y


def channels_last(x: torch.Tensor, constants: dict[str, int], tf32: bool) -> torch.Tensor:
    """Return x [N, GROUPS * ICG, H, W] as [N, H, W, GROUPS, DEPTH], zeros past ICG."""
    N, _, H, W = x.shape
    GROUPS, ICG, DEPTH = constants["GROUPS"], constants["ICG"], constants["DEPTH"]
    z = torch.empty((N, H, W, GROUPS, DEPTH), dtype=x.dtype, device=x.device)
    # 32 values a thread, in lines of 128 bytes or more on both sides where there are so many channels
    BC = min(64, triton.next_power_of_2(DEPTH))
    BP = 4096 // BC
    grid = (N * GROUPS * triton.cdiv(H * W, BP) * triton.cdiv(DEPTH, BC),)
    copy_kernel[grid](x, z, H * W, GROUPS, ICG, DEPTH, ROUND=tf32, BP=BP, BC=BC)
    return z


def add_parts(parts: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """Write the sum of parts [PARTS, N, OC, OH, OW], and bias [OC], to y [N, OC, OH, OW]."""
    _, OC, OH, OW = y.shape
    grid = (triton.cdiv(y.numel(), 512),)
    sum_kernel[grid](parts, bias, y, y.numel(), OC, OH * OW, bias is not None, parts.shape[0], BLOCK=512)
