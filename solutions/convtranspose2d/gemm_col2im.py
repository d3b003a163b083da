"""One dense GEMM into columns, then col2im: every output pixel gathers the columns that land on it.

The oldest way in which libraries compute this layer, in two kernels with a workspace between them:

    columns [pixel, (tap, out_channel)]  =  x [pixel, in_channel]  @  w [in_channel, (tap, out_channel)]
    y [out_pixel, out_channel]  =  bias  +  the columns that reach the pixel

at most ceil(KH / SH) * ceil(KW / SW) of them where stride and dilation share no factor; where they do, some
pixels have more and the others none. The GEMM has no gather and no zeros, and the sums a fixed order, which
those of scatter_atomics have not. Columns are read along the channels and pixels written along a row, so
that both take whole lines.

What bounds it is the memory between the two. 4 * N * H * W * KH * KW * OC bytes are written and read again,
2 * KH * KW / (SH * SW) times what an fp32 output has. So it loses where outputs are large and taps many (18
outputs for a dense 3x3 kernel), and has its chance where columns are few or stay in the L2 cache, and where
the GEMM is what takes the time: small images of many channels.

The workspace is bounded by `ModelNew.WORKSPACE_BYTES`. Columns are made and gathered for some images at a
time or, where those of one image are too many, for some of its output rows; the columns that neighbouring
parts share are then computed twice. One output row is the least, so only its columns may exceed the bound.

The pixels of one plane and a tile more must number fewer than 2**31, and so must the programs of a launch.
"""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit(do_not_specialize=["images", "top", "rows"])
def gemm_kernel(
    x,
    w,
    columns,
    images,
    top,
    rows,
    H: tl.constexpr,
    W: tl.constexpr,
    GROUPS: tl.constexpr,
    ICG: tl.constexpr,
    OCG: tl.constexpr,
    TAPS: tl.constexpr,
    ROUND: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute BM pixels of BN columns of one group, of the input rows from `top` on.

    x is [images, GROUPS * ICG, H, W], w [GROUPS, TAPS * OCG, ICG] as `pack` makes it and columns
    [images, rows, W, TAPS, GROUPS * OCG], all contiguous. The chunk's sizes are not specialised: one binary
    serves all chunks.
    """
    # column tiles of the same pixels run side by side, since they read the same x
    TILES: tl.constexpr = (TAPS * OCG + BN - 1) // BN
    i_m, i_n, i_g = tl.program_id(0) // TILES, tl.program_id(0) % TILES, tl.program_id(1)

    # [BM]
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < images * rows * W
    o_b, o_pixel = (o_m // (rows * W)).to(tl.int64), o_m % (rows * W)
    # [BN]
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < TAPS * OCG

    p_x = x + ((o_b * GROUPS + i_g) * (ICG * H * W) + top * W + o_pixel)[:, None]
    p_w = w + (i_g * (TAPS * OCG) + o_n)[None, :] * ICG
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i_k in range(0, ICG, BK):
        # [BK]
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < ICG
        b_x = tl.load(p_x + o_k.to(tl.int64)[None, :] * (H * W), mask=m_m[:, None] & m_k[None, :], other=0.0)
        if ROUND:
            # to nearest, since the tensor core drops the 13 low bits of fp32; a NaN stays one
            b_near = (b_x.to(tl.int32, bitcast=True) + 0x1000 & -0x2000).to(tl.float32, bitcast=True)
            b_x = tl.where(b_x == b_x, b_near, b_x)
        b_w = tl.load(p_w + o_k[:, None], mask=m_k[:, None] & m_n[None, :], other=0.0)
        acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION)

    # the channels of all groups lie side by side, so that col2im need not know of groups
    o_column = o_n + o_n // OCG * ((GROUPS - 1) * OCG) + i_g * OCG
    p_columns = columns + o_m.to(tl.int64)[:, None] * (TAPS * GROUPS * OCG) + o_column[None, :]
    tl.store(p_columns, acc, mask=m_m[:, None] & m_n[None, :])


@triton.jit
def first_tap(o_y, K: tl.constexpr, S: tl.constexpr, PERIOD: tl.constexpr, INVERSE: tl.constexpr):
    """Return the first tap that reaches pixels o_y of an axis, counted with the padding; K where none can.

    Such taps solve tap * dilation = o_y (mod S): every PERIOD-th from the first, or none.
    """
    GCD: tl.constexpr = S // PERIOD
    return tl.where(o_y % GCD == 0, o_y // GCD % PERIOD * INVERSE % PERIOD, K)


@triton.jit(do_not_specialize=["top", "rows", "out_top", "out_rows"])
def col2im_kernel(
    columns,
    bias,
    y,
    top,
    rows,
    out_top,
    out_rows,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    OC: tl.constexpr,
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
    HAS_BIAS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Sum up BM pixels of BN channels of one image, of the output rows from `out_top` on.

    columns is [images, rows, W, KH * KW, OC], of the input rows from `top` on, bias [OC] and
    y [images, OC, OH, OW], all contiguous.
    """
    tiles = tl.cdiv(out_rows * OW, BM)
    i_b, i_m, i_n = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles, tl.program_id(1)

    # [BM]
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < out_rows * OW
    o_h, o_w = out_top + o_m // OW + PH, o_m % OW + PW
    o_first_h = first_tap(o_h, KH, SH, PERIOD_H, INVERSE_H)
    o_first_w = first_tap(o_w, KW, SW, PERIOD_W, INVERSE_W)
    # [1, BN]
    o_n = i_n * BN + tl.arange(0, BN)[None, :]
    m_n = o_n < OC

    p_columns = columns + i_b * rows * (W * KH * KW * OC) + o_n
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i_h in range(tl.cdiv(KH, PERIOD_H)):
        o_kh = o_first_h + i_h * PERIOD_H
        o_dh = o_h - o_kh * DH
        m_h = m_m & (o_kh < KH) & (o_dh >= 0) & (o_dh < H * SH)
        o_row = (o_dh // SH - top) * W
        for i_w in range(tl.cdiv(KW, PERIOD_W)):
            o_kw = o_first_w + i_w * PERIOD_W
            o_dw = o_w - o_kw * DW
            m_w = m_h & (o_kw < KW) & (o_dw >= 0) & (o_dw < W * SW)
            o_column = (o_row + o_dw // SW).to(tl.int64) * (KH * KW) + (o_kh * KW + o_kw)
            acc += tl.load(p_columns + o_column[:, None] * OC, mask=m_w[:, None] & m_n, other=0.0)

    if HAS_BIAS:
        acc += tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    p_y = y + ((i_b * OC + o_n) * (OH * OW) + out_top * OW) + o_m[:, None]
    tl.store(p_y, acc.to(y.dtype.element_ty), mask=m_m[:, None] & m_n)


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int, extra: int) -> int:
    """Return one side of the output; `extra` is output_padding."""
    return (extent - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1


def period(stride: int, dilation: int) -> int:
    """Return after how many taps one reaches the same pixels again: stride / gcd(stride, dilation)."""
    return next(p for p in range(1, stride + 1) if p * dilation % stride == 0)


def power_of_2(least: int, size: int, most: int) -> int:
    """Return the smallest power of two that covers `size`, kept within [least, most]."""
    return max(least, min(most, triton.next_power_of_2(size)))


def input_rows(out_rows: range, H: int, kernel: int, stride: int, padding: int, dilation: int) -> range:
    """Return the input rows from which some tap reaches these output rows; of length 0 where none does."""
    first = -((dilation * (kernel - 1) - padding - out_rows.start) // stride)
    return range(max(0, first), min(H, (out_rows.stop - 1 + padding) // stride + 1))


def parts(size: int, most: int) -> list[range]:
    """Cut `size` into ranges of at most `most`, as few and as equal as they can be."""
    step = triton.cdiv(size, triton.cdiv(size, most))
    return [range(start, min(start + step, size)) for start in range(0, size, step)]


def chunks(
    batch: int, OH: int, axis: tuple[int, int, int, int, int], row_bytes: int, limit_bytes: int
) -> list[tuple[range, range]]:
    """Return pairs of images and output rows whose columns fit the limit; an input row has `row_bytes`.

    `axis` is what `input_rows` takes of the height. A single output row may exceed the limit.
    """
    image_bytes = len(input_rows(range(OH), *axis)) * row_bytes
    if image_bytes <= limit_bytes:
        return [(images, range(OH)) for images in parts(batch, limit_bytes // max(1, image_bytes))]
    _, kernel, stride, _, dilation = axis
    # r output rows are reached from (r - 1 + dilation * (kernel - 1)) // stride + 1 input rows or fewer
    most = limit_bytes // row_bytes * stride - dilation * (kernel - 1)
    return [(range(b, b + 1), out_rows) for b in range(batch) for out_rows in parts(OH, max(1, most))]


def pack(weight: torch.Tensor, groups: int, tf32: bool) -> torch.Tensor:
    """Reorder w [GROUPS * ICG, OCG, KH, KW] to [GROUPS, KH * KW * OCG, ICG]; `tf32` rounds to nearest."""
    taps = weight.detach().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    packed = taps.permute(0, 3, 2, 1).clone(memory_format=torch.contiguous_format)
    if tf32:
        near = (packed.view(torch.int32) + 0x1000 & -0x2000).view(torch.float32)
        packed = torch.where(packed.isnan(), packed, near)
    return packed.flatten(1, 2)


def gemm(
    x: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, rows: range, taps: int, tf32: bool
) -> None:
    """Write the columns of these rows of x [images, IC, H, W]; weight is packed, columns a workspace."""
    images, _, H, W = x.shape
    GROUPS, N, ICG = weight.shape
    M = images * len(rows) * W
    # 16-bit values are exact in TF32, so only fp32 tensors can need the three products of tf32x3, which
    # hold each factor in two parts
    split = x.dtype == torch.float32 and not tf32
    BM, BN, BK = power_of_2(16, M, 64), power_of_2(16, N, 64), power_of_2(16, ICG, 16 if split else 32)
    # (column tiles of pixel tiles, groups)
    gemm_kernel[(triton.cdiv(M, BM) * triton.cdiv(N, BN), GROUPS)](
        x,
        weight,
        columns,
        images,
        rows.start,
        len(rows),
        H=H,
        W=W,
        GROUPS=GROUPS,
        ICG=ICG,
        OCG=N // taps,
        TAPS=taps,
        ROUND=tf32,
        PRECISION="tf32x3" if split else "tf32",
        BM=BM,
        BN=BN,
        BK=BK,
        num_warps=4,
        num_stages=1 if ICG <= BK else 2,
    )


def col2im(
    columns: torch.Tensor,
    layer: nn.ConvTranspose2d,
    y: torch.Tensor,
    H: int,
    W: int,
    rows: range,
    out_rows: range,
) -> None:
    """Write these rows of y [images, OC, OH, OW] from the columns of these rows of an input [H, W]."""
    images, OC, OH, OW = y.shape
    (KH, KW), (SH, SW), (PH, PW), (DH, DW) = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    PERIOD_H, PERIOD_W = period(SH, DH), period(SW, DW)
    # 32 channels are a line of columns, and 64 pixels two of y: 16 sums a thread
    BN = power_of_2(1, OC, 32)
    BM = power_of_2(1, len(out_rows) * OW, 2048 // BN)
    # (pixel tiles of images, channel tiles)
    col2im_kernel[(images * triton.cdiv(len(out_rows) * OW, BM), triton.cdiv(OC, BN))](
        columns,
        layer.bias,
        y,
        rows.start,
        len(rows),
        out_rows.start,
        len(out_rows),
        H=H,
        W=W,
        OH=OH,
        OW=OW,
        OC=OC,
        KH=KH,
        KW=KW,
        SH=SH,
        SW=SW,
        PH=PH,
        PW=PW,
        DH=DH,
        DW=DW,
        PERIOD_H=PERIOD_H,
        PERIOD_W=PERIOD_W,
        INVERSE_H=pow(DH * PERIOD_H // SH, -1, PERIOD_H),
        INVERSE_W=pow(DW * PERIOD_W // SW, -1, PERIOD_W),
        HAS_BIAS=layer.bias is not None,
        BM=BM,
        BN=BN,
        num_warps=4,
    )


def gemm_col2im(
    x: torch.Tensor, layer: nn.ConvTranspose2d, weight: torch.Tensor, tf32: bool, limit_bytes: int
) -> torch.Tensor:
    """Apply the layer with its weight packed to x [N, IC, H, W]; return [N, OC, OH, OW] in the dtype of x."""
    N, _, H, W = x.shape
    KH, KW = layer.kernel_size
    axes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    OH, OW = (output_extent(*a) for a in zip((H, W), *axes, layer.output_padding, strict=True))
    y = torch.empty((N, layer.out_channels, OH, OW), device=x.device, dtype=x.dtype)

    axis = H, *(size[0] for size in axes)
    row_values = W * KH * KW * layer.out_channels
    plan = [
        (images, input_rows(out_rows, *axis), out_rows)
        for images, out_rows in chunks(N, OH, axis, 4 * row_values, limit_bytes)
    ]
    most = max(len(images) * len(rows) for images, rows, _ in plan) * row_values
    columns = torch.empty(most, device=x.device, dtype=torch.float32)
    for images, rows, out_rows in plan:
        x_part, y_part = x[images.start : images.stop], y[images.start : images.stop]
        if rows:
            gemm(x_part, weight, columns, rows, KH * KW, tf32)
        col2im(columns, layer, y_part, H, W, rows, out_rows)
    return y


def weight_stamp(weight: torch.Tensor) -> tuple[int, int]:
    """Return what changes when the weights are replaced or written in place."""
    # tensors made in inference mode count no versions
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version


class ModelNew(nn.Module):
    """ConvTranspose2d with its whole constructor; the layer only holds the parameters."""

    # 80 us of an H100's memory: long beside the gap between two launches, and little beside its 80 GB
    WORKSPACE_BYTES = 256 * 2**20

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
        layer = self.conv_transpose2d
        tf32 = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
        return gemm_col2im(x.contiguous(), layer, self.pack(tf32), tf32, self.WORKSPACE_BYTES)
