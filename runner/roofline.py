"""Bytes, operations and a card -> the floor no result may pass, and the bound to measure against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.cards import Card

#: Tolerance of the floor for a bandwidth a little above the data sheet's.
FLOOR_FACTOR = 0.95

#: Arithmetic of a cell -> ways to do one multiplication in it: products taken, and in which arithmetic. An
#: fp32 product is also the sum of three products of tf32 or bf16 halves (3xTF32, bf16x3).
PRODUCTS = {
    "fp32": {"fp32": 1, "tf32": 3, "bf16": 3},
    "tf32": {"fp32": 1, "tf32": 1, "bf16": 3},
    "fp16": {"fp16": 1},
    "bf16": {"bf16": 1},
}


@dataclass(frozen=True)
class Bound:
    """The least time in microseconds that traffic and arithmetic leave; `limiter` names the larger part."""

    time_us: float
    limiter: str
    memory_us: float
    arithmetic_us: float


def floor_us(input_bytes: int, output_bytes: int, card: Card) -> float:
    """Return the time in microseconds below which a result is INVALID.

    `input_bytes` are the inputs and parameters that matter, each once. With B the bytes in all and C the
    L2: 0.95 * max((B - C) / DRAM bandwidth, B / L2 bandwidth). C is taken off because outputs may still lie
    in the L2 when the clock stops; the second term needs a card that states its L2 bandwidth.
    """
    total_bytes = input_bytes + output_bytes
    dram_us = _transfer_us(max(0, total_bytes - card.l2_bytes), card.dram_gb_per_s)
    l2_us = _transfer_us(total_bytes, card.l2_gb_per_s) if card.l2_gb_per_s else 0.0
    return FLOOR_FACTOR * max(dram_us, l2_us)


def bound_us(flops: int, traffic_bytes: int, card: Card, arithmetic: str) -> Bound:
    """Return the roofline bound of `flops` operations and `traffic_bytes` through DRAM.

    `arithmetic` is a cell's (`Cell.arithmetic`). Algorithms that need fewer operations than `flops` may
    pass it. Raises ValueError for an unknown arithmetic.
    """
    memory_us = _transfer_us(traffic_bytes, card.dram_gb_per_s)
    arithmetic_us = flops / (attainable_tflops(card, arithmetic) * 1e6)
    limiter = "memory" if memory_us >= arithmetic_us else "arithmetic"
    return Bound(max(memory_us, arithmetic_us), limiter, memory_us, arithmetic_us)


def measured_us(flops: int, traffic_bytes: int, ceilings: Mapping[str, float], arithmetic: str) -> float:
    """Return the bound by what the device itself reached when its judge started (`runner.judge.ceilings`)."""
    tflops = attainable({name: ceilings[f"{name}_tflops"] for name in PRODUCTS}, arithmetic)
    memory_us = _transfer_us(traffic_bytes, ceilings["copy_gb_per_s"])
    return max(memory_us, flops / (tflops * 1e6))


def attainable_tflops(card: Card, arithmetic: str) -> float:
    """Return the card's peak for a cell's arithmetic, by the fastest way that is accurate enough for it."""
    return attainable(card.peak_tflops, arithmetic)


def attainable(tflops: Mapping[str, float], arithmetic: str) -> float:
    """Return the best rate for a cell's arithmetic. Raises ValueError for an unknown one."""
    if arithmetic not in PRODUCTS:
        raise ValueError(f"unknown arithmetic {arithmetic!r}: one of {', '.join(PRODUCTS)}")
    return max(tflops[used] / count for used, count in PRODUCTS[arithmetic].items())


def share_of_bound(time_us: float, bound: Bound) -> float:
    """Return how much of the attainable speed a time reaches: 1 on the roofline."""
    return bound.time_us / time_us


def _transfer_us(size_bytes: int, gb_per_s: float) -> float:
    return size_bytes / (gb_per_s * 1e3)
