"""Implicit GEMM: output positions by output channels, each tile of the input gathered as it is needed.

Rows of the GEMM are the output positions (batch, out_position), columns the output channels of a group,
and the reduction runs over (in_channel, tap), the order in which the weights lie in memory. The address of
a factor is a sum: where the window of the position begins, plus how far from there its channel and tap
lie. So divisions are per row and per column of a tile, and a factor takes a 64-bit addition and the
comparisons with the ends of the signal.

Positions are dimension 0 of the tile of x on purpose: a gathered address shows the compiler no contiguity,
and then it gives the lanes of a warp to dimension 0, where neighbours in memory are.

The positions of one output channel, over the whole batch, and a tile more must number fewer than 2**31.
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
    L: tl.constexpr,
    ICG: tl.constexpr,
    OCG: tl.constexpr,
    OL: tl.constexpr,
    KL: tl.constexpr,
    SL: tl.constexpr,
    PL: tl.constexpr,
    DL: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute BM positions of BN channels of one group.

    x is [N, GROUPS * ICG, L], w [GROUPS * OCG, ICG, KL], bias [GROUPS * OCG] and
    y [N, GROUPS * OCG, OL], all contiguous. All sizes but the batch are constants: every step
    divides by the number of taps, and offsets between channels become part of the instructions.
    """
    i_m, i_n = tl.program_id(0), tl.program_id(1)
    i_g = tl.program_id(2) if GROUPS > 1 else 0
    K: tl.constexpr = ICG * KL

    # [BM]
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < N * OL
    o_position = o_m % OL
    o_bg = (o_m // OL).to(tl.int64) * GROUPS + i_g
    # the first tap's input position, which may lie in the padding
    o_left = o_position * SL - PL
    p_x = x + o_bg * (ICG * L) + o_left
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
        o_right = o_k % KL * DL
        o_x = (o_k // KL).to(tl.int64) * L + o_right

        # [BM, BK]
        o_il = o_left[:, None] + o_right[None, :]
        m_x = m_m[:, None] & m_k[None, :] & (o_il >= 0) & (o_il < L)
        b_x = tl.load(p_x[:, None] + o_x[None, :], mask=m_x, other=0.0)
        # [BK, BN]
        b_w = tl.load(p_w[None, :] + o_k[:, None], mask=m_k[:, None] & m_n[None, :], other=0.0)

        acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION)

    if HAS_BIAS:
        acc += tl.load(bias + o_oc, mask=m_n, other=0.0).to(tl.float32)[None, :]

    # [BM, BN]
    p_y = y + (o_bg * (OCG * OL) + o_position)[:, None] + (o_n.to(tl.int64) * OL)[None, :]
    tl.store(p_y, acc.to(y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return the output's length."""
    return (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def choose_tile(positions: int, group_channels: int, groups: int, split: bool) -> dict[str, int]:
    """Return the tile of an output and its warps; `split` says that a product takes three."""
    # every channel tile gathers x anew, so it takes all the channels of a group, up to 128; tl.dot asks for
    # 16. With 128 positions TF32 leaves most layers registers for one program on an SM of Ada.
    BM, BN = 64, max(16, min(128, triton.next_power_of_2(group_channels)))
    # below a program for each of 128 SMs the longer side is halved: of tiles of a size squares read least
    while max(BM, BN) > 32 and triton.cdiv(positions, BM) * triton.cdiv(group_channels, BN) * groups < 128:
        BM, BN = (BM // 2, BN) if BM >= BN else (BM, BN // 2)
    # a thread decodes every column of x that it loads: with 16 of them at most, and 32 sums, most layers
    # leave registers for two programs; tf32x3 holds each factor in two parts, so it takes half the columns
    return {"BM": BM, "BN": BN, "BK": 16 if split else 32, "num_warps": 8 if BM * BN > 2048 else 4}


def launch_grid(positions: int, group_channels: int, groups: int, tile: dict[str, int]) -> tuple[int, ...]:
    """Return (position tiles, channel tiles of a group, groups); the last only if there are several."""
    tiles = triton.cdiv(positions, tile["BM"]), triton.cdiv(group_channels, tile["BN"])
    return tiles if groups == 1 else (*tiles, groups)


def implicit_gemm(x: torch.Tensor, layer: nn.Conv1d) -> torch.Tensor:
    """Apply the layer to x [N, IC, L]; the result is [N, OC, OL] in the dtype of x."""
    x = x.contiguous()
    weight = layer.weight.contiguous()
    N, _, L = x.shape
    _, ICG, KL = weight.shape
    (SL,), (PL,), (DL,) = layer.stride, layer.padding, layer.dilation
    OL = output_extent(L, KL, SL, PL, DL)
    OCG = layer.out_channels // layer.groups
    y = torch.empty((N, layer.out_channels, OL), device=x.device, dtype=x.dtype)

    positions = N * OL
    # only products of fp32 values can need the three products of tf32x3
    split = x.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32
    tile = choose_tile(positions, OCG, layer.groups, split)
    grid = launch_grid(positions, OCG, layer.groups, tile)
    implicit_gemm_kernel[grid](
        x,
        weight,
        layer.bias,
        y,
        N,
        L=L,
        ICG=ICG,
        OCG=OCG,
        OL=OL,
        KL=KL,
        SL=SL,
        PL=PL,
        DL=DL,
        GROUPS=layer.groups,
        HAS_BIAS=layer.bias is not None,
        PRECISION="tf32x3" if split else "tf32",
        **tile,
        num_stages=2,
    )
    return y


class ModelNew(nn.Module):
    """Conv1d with its whole constructor; the layer only holds the parameters."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = kernel_size, stride, padding, dilation
        self.conv1d = nn.Conv1d(in_channels, out_channels, *sizes, groups, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, IC, L] to [N, OC, OL]."""
        return implicit_gemm(x, self.conv1d)
