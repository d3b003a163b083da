"""Sub-pixel decomposition: one dense GEMM over just the taps each output phase has.

Output column ow = q * SW + phase is reached from input columns q + shift, and tap kw has exactly one
phase, (kw * DW - PW) mod SW, and one shift, -floor((kw * DW - PW) / SW). So a program takes BM values
of q in output rows of one class, oh mod SH, whose taps kh are an arithmetic progression, and sums

    x [q, (shift, in_channel)]  @  w [(shift, in_channel), (phase, out_channel)]

over those kh. The input is read in place and without gaps. The weights are packed once, with zeros
where a phase lacks a shift. Only phases with taps are columns; the others are joined to them as zeros
when the accumulator [q, phase, out_channel] becomes [q * phase, out_channel], which is the order of
the output in memory, so that a warp's store covers whole lines. Rows that no tap reaches are written
without a GEMM. Where the output dominates, programs are small and not pipelined: occupancy hides the
latency of one program behind the stores of others.

Inputs are taken to be finite: a NaN would also reach the phases whose weight at its shift is zero.
"""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def locate(
    i_m,
    o_m,
    OH: tl.constexpr,
    OW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    BM: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Return image, output row and q of the rows o_m of GEMM tile i_m.

    With ROWS a tile lies in one output row, and tiles follow the output. Without, it runs through the
    pixels of one class of rows, across rows and images, and the classes alternate.
    """
    QH, QW = tl.cdiv(OH, SH), tl.cdiv(OW, SW)
    if ROWS:
        row_tiles = tl.cdiv(QW, BM)
        i_row = i_m // row_tiles
        # 0 * o_m: of the shape of o_m like the others
        o_b, o_oh, o_q = i_row // OH + 0 * o_m, i_row % OH + 0 * o_m, i_m % row_tiles * BM + o_m
    else:
        o_pixel = i_m // SH * BM + o_m
        o_row = o_pixel // QW
        o_b, o_oh, o_q = o_row // QH, o_row % QH * SH + i_m % SH, o_pixel % QW
    return o_b, o_oh, o_q


@triton.jit
def phase_gemm_kernel(
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
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    PERIOD_H: tl.constexpr,
    PERIOD_W: tl.constexpr,
    INVERSE_H: tl.constexpr,
    SPAN: tl.constexpr,
    SHIFTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PHASES: tl.constexpr,
    JOINS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROUND: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BM: tl.constexpr,
    BOC: tl.constexpr,
    BE: tl.constexpr,
    BI: tl.constexpr,
):
    """Write BM values of q, in all phases, of BOC channels of one group.

    x is [N, GROUPS * ICG, H, W], w [GROUPS, KH, SHIFTS, PHASES, OCG, CHANNELS] as `pack` makes it,
    bias [GROUPS * OCG] and y [N, GROUPS * OCG, OH, OW], all contiguous. One step of the reduction is
    BE shifts of BI channels. Each join doubles the slots of a phase with empty phases. All sizes but
    the batch are constants: the offsets between channels are then part of the load and store
    instructions. On problem 81 that saves two fifths of the registers and of the instructions.
    """
    i_m, i_oc, i_g = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    SLOTS: tl.constexpr = PHASES << JOINS
    GCD_H: tl.constexpr = SH // PERIOD_H

    i_b, i_oh, i_q = locate(i_m, 0, OH, OW, SH, SW, BM, ROWS)
    i_class = i_oh % SH
    # taps of the class solve kh * DH = i_class + PH (mod SH): every PERIOD_H-th from the first, or none
    i_first = (i_class + PH) // GCD_H * INVERSE_H % PERIOD_H
    taps = tl.where((i_class + PH) % GCD_H == 0, tl.cdiv(KH - i_first, PERIOD_H), 0)

    # [1, BOC]
    o_oc = i_oc * BOC + tl.arange(0, BOC)[None, :]
    m_oc = o_oc < OCG
    o_oc += i_g * OCG
    b_bias = tl.zeros((1, BOC), dtype=tl.float32)
    if HAS_BIAS:
        b_bias = tl.load(bias + o_oc, mask=m_oc, other=0.0).to(tl.float32)
    # [BM * SLOTS, 1]
    o_p = tl.arange(0, BM * SLOTS)[:, None]

    if (taps == 0) & ROWS:
        o_dense = i_q * SW + o_p
        m_dense = (o_p < BM * SW) & (o_dense < OW) & m_oc
        p_dense = y + ((i_b.to(tl.int64) * (GROUPS * OCG) + o_oc) * OH + i_oh) * OW
        b_dense = tl.broadcast_to(b_bias, (BM * SLOTS, BOC))
        tl.store(p_dense + o_dense, b_dense.to(y.dtype.element_ty), mask=m_dense)
    else:
        IC_STEPS: tl.constexpr = (ICG + BI - 1) // BI
        STEPS: tl.constexpr = (SHIFTS + BE - 1) // BE * IC_STEPS
        LEAD: tl.constexpr = (PW + SW - 1) // SW
        # [BM], and the input row of the first tap; the others lie above it
        o_b, o_oh, o_q = locate(i_m, tl.arange(0, BM), OH, OW, SH, SW, BM, ROWS)
        o_ih = o_oh // SH + (i_class + PH - i_first * DH) // SH
        m_b = (o_b < N) & (o_q < tl.cdiv(OW, SW))
        # [BM, 1], [1, BK] and [1, BN]
        p_x = (x + ((o_b.to(tl.int64) * GROUPS + i_g) * ICG * H + o_ih) * W + o_q)[:, None]
        o_shift, o_ic = tl.arange(0, BE * BI) // BI, tl.arange(0, BE * BI) % BI
        o_phase, o_n = tl.arange(0, PHASES * BOC) // BOC, tl.arange(0, PHASES * BOC) % BOC + i_oc * BOC
        # [BK, BN]
        o_w = ((o_shift[:, None] * PHASES + o_phase[None, :]) * OCG + o_n[None, :]) * CHANNELS + o_ic[:, None]
        p_w = w + i_g * (KH * SHIFTS * PHASES * OCG * CHANNELS) + o_w

        acc = tl.zeros((BM, PHASES * BOC), dtype=tl.float32)
        for i_k in range(taps * STEPS):
            i_tap, i_step = i_k // STEPS, i_k % STEPS
            i_e, i_i = i_step // IC_STEPS * BE, i_step % IC_STEPS * BI
            i_up = i_tap * (DH // GCD_H)
            # [BM, BK]: shifts go down from LEAD or less, by one, or by DW / SW where that is more
            o_left = LEAD - ((i_e + o_shift) * SPAN + (LEAD * SW - PW)) // SW
            o_iw = o_q[:, None] + o_left[None, :]
            m_x = (m_b & (o_ih >= i_up) & (o_ih < H + i_up))[:, None] & (o_iw >= 0) & (o_iw < W)
            if ICG % BI:
                m_x &= (i_i + o_ic < ICG)[None, :]
            o_x = (i_i + o_ic).to(tl.int64) * (H * W) + (o_left - i_up * W)
            b_x = tl.load(p_x + o_x[None, :], mask=m_x, other=0.0)
            if ROUND:
                # to nearest, since the tensor core drops the 13 low bits of fp32
                b_x = (b_x.to(tl.int32, bitcast=True) + 0x1000 & -0x2000).to(tl.float32, bitcast=True)
            i_kh = i_first + i_tap * PERIOD_H
            i_w = (i_kh * SHIFTS + i_e) * (PHASES * OCG * CHANNELS) + i_i
            b_w = tl.load(p_w + i_w, mask=(o_n < OCG)[None, :], other=0.0)
            acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION)

        # [BM, PHASES, BOC, slots of a phase] -> [BM * SLOTS, BOC]
        b_y = tl.reshape(acc, (BM, PHASES, BOC, 1))
        for i_join in tl.static_range(JOINS):
            b_y = tl.join(b_y, tl.zeros_like(b_y)).reshape(BM, PHASES, BOC, 2 << i_join)
        b_y = tl.permute(b_y, (0, 1, 3, 2)).reshape(BM * SLOTS, BOC)
        if HAS_BIAS:
            b_y += b_bias

        o_yb, o_yh, o_yq = locate(i_m, o_p // SLOTS, OH, OW, SH, SW, BM, ROWS)
        o_u = o_p % SLOTS
        if PHASES == SW:
            o_ow = o_yq * SW + o_u
        else:
            # number the columns of w from 0 and the zeros beside them from PHASES; this walks through
            # the phases of the taps first, then through those of the other residues of gcd(SW, DW)
            o_c, o_z = o_u >> JOINS, o_u & ((1 << JOINS) - 1)
            o_u = tl.where(o_z == 0, o_c, PHASES + o_c * ((1 << JOINS) - 1) + o_z - 1)
            o_ow = o_yq * SW + (o_u % PERIOD_W * DW + o_u // PERIOD_W + -PW % SW) % SW
        m_y = (o_yb < N) & (o_yh < OH) & (o_u < SW) & (o_ow < OW)
        p_y = y + (o_yb.to(tl.int64) * (GROUPS * OCG) * OH + o_yh) * OW + o_ow
        tl.store(p_y + o_oc.to(tl.int64) * (OH * OW), b_y.to(y.dtype.element_ty), mask=m_y & m_oc)


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int, extra: int) -> int:
    """Return one side of the output; `extra` is output_padding."""
    return (extent - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1


def period(stride: int, dilation: int) -> int:
    """Return after how many taps a phase comes again: stride / gcd(stride, dilation)."""
    return next(p for p in range(1, stride + 1) if p * dilation % stride == 0)


def shift(tap: int, stride: int, padding: int, dilation: int) -> int:
    """Return the input column, less q, that a tap reads."""
    return -((tap * dilation - padding) // stride)


def power_of_2(least: int, size: int, most: int) -> int:
    """Return the smallest power of two that covers `size`, kept within [least, most]."""
    return max(least, min(most, triton.next_power_of_2(size)))


def geometry(layer: nn.ConvTranspose2d) -> dict[str, int]:
    """Return the constants of the kernel that the layer alone decides."""
    KH, KW = layer.kernel_size
    (SH, SW), (PH, PW), (DH, DW) = layer.stride, layer.padding, layer.dilation
    ICG, OCG = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    PERIOD_H, PERIOD_W = period(SH, DH), period(SW, DW)
    shifts = KW if DW >= SW else shift(0, SW, PW, DW) - shift(KW - 1, SW, PW, DW) + 1
    PHASES = triton.next_power_of_2(min(KW, PERIOD_W))
    JOINS = triton.next_power_of_2(triton.cdiv(SW, PHASES)).bit_length() - 1
    # 32 products a step, a register each for a thread's row of x; 64 if those are all of a tap, and rows so
    # long that a program has few (problem 81: 0.383 instead of 0.444 ms in fp32, 0.359 instead of 0.366 in
    # TF32). tl.dot asks for 16
    whole_tap = triton.next_power_of_2(shifts) * triton.next_power_of_2(ICG) <= 64
    products = 64 if whole_tap and PHASES << JOINS >= 8 else 32
    BE = power_of_2(1, shifts, products // power_of_2(1, ICG, 32))
    BI = power_of_2(triton.cdiv(16, BE), ICG, 32)
    return {
        "GROUPS": layer.groups,
        "ICG": ICG,
        "OCG": OCG,
        "KH": KH,
        "SH": SH,
        "SW": SW,
        "PH": PH,
        "PW": PW,
        "DH": DH,
        "DW": DW,
        "PERIOD_H": PERIOD_H,
        "PERIOD_W": PERIOD_W,
        "INVERSE_H": pow(DH * PERIOD_H // SH, -1, PERIOD_H),
        "SPAN": max(SW, DW),
        "SHIFTS": triton.cdiv(shifts, BE) * BE,
        "CHANNELS": triton.cdiv(ICG, BI) * BI,
        "PHASES": PHASES,
        "JOINS": JOINS,
        "BE": BE,
        "BI": BI,
    }


def pack(weight: torch.Tensor, layout: dict[str, int], tf32: bool) -> torch.Tensor:
    """Reorder w [GROUPS * ICG, OCG, KH, KW] to [GROUPS, KH, SHIFTS, PHASES, OCG, CHANNELS].

    A column is the phase itself where there are as many columns as phases, else the number of the
    first tap of that phase. With `tf32` values are rounded to nearest.
    """
    GROUPS, ICG, OCG, KH = (layout[name] for name in ("GROUPS", "ICG", "OCG", "KH"))
    SW, PW, DW, PHASES = (layout[name] for name in ("SW", "PW", "DW", "PHASES"))
    packed = weight.new_zeros(GROUPS, KH, layout["SHIFTS"], PHASES, OCG, layout["CHANNELS"])
    # [KW, GROUPS, KH, OCG, ICG]
    taps = weight.detach().reshape(GROUPS, ICG, OCG, KH, -1).permute(4, 0, 3, 2, 1)
    for kw, tap in enumerate(taps):
        e = kw if DW >= SW else shift(0, SW, PW, DW) - shift(kw, SW, PW, DW)
        phase = (kw * DW - PW) % SW if PHASES == SW else kw % layout["PERIOD_W"]
        packed[:, :, e, phase, :, :ICG] = tap
    if tf32:
        packed.view(torch.int32).add_(0x1000).bitwise_and_(-0x2000)
    return packed


def tiles(
    layout: dict[str, int], batch: int, OH: int, OW: int, itemsize: int, split: bool
) -> dict[str, int | bool]:
    """Choose tile, order and pipeline for an output; `split` says that a product takes three."""
    GROUPS, OCG, PHASES = layout["GROUPS"], layout["OCG"], layout["PHASES"]
    SLOTS = PHASES << layout["JOINS"]
    pixels = batch * triton.cdiv(OH, layout["SH"]) * triton.cdiv(OW, layout["SW"])
    depth = triton.cdiv(layout["KH"], layout["PERIOD_H"]) * layout["SHIFTS"] * layout["CHANNELS"]

    def programs() -> int:
        return layout["SH"] * triton.cdiv(pixels, BM) * triton.cdiv(OCG, BOC) * GROUPS

    # 32 KB of output, of 16 channels where phases are few: 8 channels read x twice as often, and 16 with half
    # the pixels were 5 % faster on problem 81 (0.365 against 0.386 ms on an H100)
    short = depth <= 128
    widest = min(triton.cdiv(64, PHASES), triton.cdiv(128, SLOTS))
    BOC = power_of_2(triton.cdiv(16, PHASES), OCG, widest)
    BM = power_of_2(16, min(pixels, 32768 // (itemsize * SLOTS * BOC)), 64 if split else 128)
    # below a wave of 128 SMs: narrower tiles first, since they read no weight twice, then shorter ones
    while programs() < 128 and PHASES * BOC > 16 and BOC > 1:
        BOC //= 2
    while programs() < 128 and BM > 16:
        BM //= 2
    tile = {"BM": BM, "BOC": BOC, "num_warps": 4, "num_stages": 1 if short else 2}
    if programs() <= 256 and layout["CHANNELS"] % 128 == 0:
        # alone on its SM a program has to keep that SM's share of the bandwidth busy: 32 KB in flight,
        # in three stages of fp32 that fit the 99 KB which a program may have on Ada
        steps = (BI for BI in (128, 64) if 3 * 4 * BI * (BM + PHASES * BOC) <= 96 * 1024)
        tile |= {"BI": next(steps, 32), "num_stages": 3}
    # a tile within a row spares a division for every slot, if not too much of a row's last tile is cut
    QW = triton.cdiv(OW, layout["SW"])
    return tile | {"ROWS": triton.cdiv(QW, BM) * BM * 9 <= QW * 10}


def launch_grid(
    layout: dict[str, int], tile: dict[str, int | bool], batch: int, OH: int, OW: int
) -> tuple[int, int, int]:
    """Return (tiles of all rows and images, channel tiles of a group, groups)."""
    QH, QW = triton.cdiv(OH, layout["SH"]), triton.cdiv(OW, layout["SW"])
    if tile["ROWS"]:
        row_tiles = batch * OH * triton.cdiv(QW, tile["BM"])
    else:
        row_tiles = layout["SH"] * triton.cdiv(batch * QH * QW, tile["BM"])
    return row_tiles, triton.cdiv(layout["OCG"], tile["BOC"]), layout["GROUPS"]


def weight_stamp(weight: torch.Tensor) -> tuple[int, int]:
    """Return what changes when the weights are replaced or written in place."""
    # tensors made in inference mode count no versions
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version  # noqa: SLF001


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
        self.layout = geometry(self.conv_transpose2d)
        # by arithmetic, and by shape, dtype and arithmetic of the input
        self.packed: dict[bool, torch.Tensor] = {}
        self.plans: dict[tuple, tuple] = {}
        self.stamp: tuple[int, int] | None = None

    def prepare(self) -> None:
        """Forget everything made from earlier weights and pack the present ones."""
        weight = self.conv_transpose2d.weight
        self.packed.clear()
        self.plans.clear()
        self.stamp = weight_stamp(weight)
        self.pack(weight.dtype == torch.float32 and torch.backends.cudnn.allow_tf32)

    def pack(self, tf32: bool) -> torch.Tensor:
        """Return the packed weights, made once for each arithmetic."""
        if tf32 not in self.packed:
            self.packed[tf32] = pack(self.conv_transpose2d.weight, self.layout, tf32)
        return self.packed[tf32]

    def plan(self, x: torch.Tensor, tf32: bool) -> tuple:
        """Return output size, grid, packed weights and constants for inputs like x."""
        layer = self.conv_transpose2d
        batch, _, H, W = x.shape
        axes = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding
        OH, OW = (output_extent(*axis) for axis in zip((H, W), *axes, strict=True))
        split = x.dtype == torch.float32 and not tf32
        tile = tiles(self.layout, batch, OH, OW, x.element_size(), split)
        constants = {
            "H": H,
            "W": W,
            "OH": OH,
            "OW": OW,
            "HAS_BIAS": layer.bias is not None,
            "ROUND": tf32,
            "PRECISION": "tf32x3" if split else "tf32",
        }
        grid = launch_grid(self.layout, tile, batch, OH, OW)
        return (batch, layer.out_channels, OH, OW), grid, self.pack(tf32), constants | self.layout | tile

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, H, W] to [N, OC, OH, OW]."""
        layer = self.conv_transpose2d
        if self.stamp != weight_stamp(layer.weight):
            self.prepare()
        tf32 = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
        key = x.shape, x.dtype, tf32
        if key not in self.plans:
            self.plans[key] = self.plan(x, tf32)
        size, grid, weight, constants = self.plans[key]
        y = torch.empty(size, dtype=x.dtype, device=x.device)
        phase_gemm_kernel[grid](x.contiguous(), weight, layer.bias, y, size[0], **constants)
        return y
