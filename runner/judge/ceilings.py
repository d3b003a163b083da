"""What this device reaches at its best today: bandwidths and products, measured when a judge starts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch

#: Copy and fill work on this many times L2, and a ceiling is the best of a few tries.
L2_TIMES = 8
TRIES = 5
SIDE = 8192
#: fp32 on CUDA cores is an order of magnitude slower than on tensor cores.
FP32_SIDE = 4096
EVENT_PAIRS = 400


def measure(device: torch.device) -> dict[str, float]:
    """Measure copy and fill in GB/s (bytes read and written) and matrix products in TFLOP/s, by arithmetic.

    `event_tick_us` is the smallest step between different times of two events. Takes about half a second.
    Operands are random: a GPU is faster on zeros.
    """
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    source = torch.rand(L2_TIMES * l2_bytes // 4, device=device)
    target = torch.empty_like(source)
    size = source.numel() * 4
    found = {
        "copy_gb_per_s": 2 * size / _best_ns(partial(target.copy_, source)),
        "fill_gb_per_s": size / _best_ns(partial(target.fill_, 1.0)),
    }
    allowed = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, tf32, side in (
        ("fp32", torch.float32, False, FP32_SIDE),
        ("tf32", torch.float32, True, SIDE),
        ("fp16", torch.float16, True, SIDE),
        ("bf16", torch.bfloat16, True, SIDE),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        found[f"{name}_tflops"] = _product(dtype, side, device)
    torch.backends.cuda.matmul.allow_tf32 = allowed
    del source, target
    torch.cuda.empty_cache()
    rounded = {name: round(value, 1) for name, value in found.items()}
    return rounded | {"event_tick_us": _tick_us()}


def _product(dtype: torch.dtype, side: int, device: torch.device) -> float:
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _best_ns(partial(torch.mm, a, b, out=out)) / 1e3


def _tick_us() -> float:
    """Return the smallest step between the times of empty pairs of events, in us."""
    pairs = [
        [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        for _ in range(EVENT_PAIRS)
    ]
    for begin, end in pairs:
        begin.record()
        end.record()
    torch.cuda.synchronize()
    times_us = sorted({round(begin.elapsed_time(end) * 1e3, 4) for begin, end in pairs})
    return min((b - a for a, b in itertools.pairwise(times_us)), default=0.0)


def _best_ns(work: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    work()
    times_ms: list[float] = []
    for _ in range(TRIES):
        begin.record()
        work()
        end.record()
        end.synchronize()
        times_ms.append(begin.elapsed_time(end))
    return min(times_ms) * 1e6
