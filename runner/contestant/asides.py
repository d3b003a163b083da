"""The contestant's own clock, a claim, and times beside it that decide nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from runner.channel import Call


class Timer:
    """The contestant's own clock, a claim: CUDA events on a GPU, the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self._begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._begin.record()
        self._start_ns = time.perf_counter_ns()

    def end(self) -> None:
        """All that is to be timed has been issued."""
        if self.device.type == "cuda":
            self._end.record()

    def stop(self) -> int:
        """Wait for the device; returns ns."""
        if self.device.type != "cuda":
            return time.perf_counter_ns() - self._start_ns
        torch.cuda.synchronize(self.device)
        return int(self._begin.elapsed_time(self._end) * 1e6)


#: Cycles of a GPU clock in a ns, rounded up: a plug that is too long costs nothing but time.
_CYCLES_PER_NS = 2
_LONGEST_PLUG_NS = 50_000_000


def _warm(forward: Callable[..., Any], slots: list[list[Any]]) -> int:
    """Time calls on the first slot alone, after one that brings it into L2, behind a plug of their own."""
    start = time.perf_counter_ns()
    held = [forward(*slots[0])]
    torch.cuda.synchronize()
    plug_ns = min(2 * len(slots) * (time.perf_counter_ns() - start), _LONGEST_PLUG_NS)
    torch.cuda._sleep(plug_ns * _CYCLES_PER_NS)  # type: ignore[no-untyped-call] # noqa: SLF001 - bounded
    timer = Timer(torch.device("cuda"))
    for _ in slots:
        held[:] = [forward(*slots[0])]
    timer.end()
    return timer.stop()


def _steady(forward: Callable[..., Any], slots: list[list[Any]]) -> int:
    """Time a batch and its issuing on the host's clock."""
    torch.cuda.synchronize()
    start = time.perf_counter_ns()
    held = [forward(*slot) for slot in slots]
    torch.cuda.synchronize()
    took_ns = time.perf_counter_ns() - start
    held.clear()
    return took_ns


def _graph(forward: Callable[..., Any], slots: list[list[Any]]) -> int:
    """Time the replay of a captured batch; -1 where it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            held = [forward(*slot) for slot in slots]
        graph.replay()
        timer = Timer(torch.device("cuda"))
        graph.replay()
        timer.end()
        took_ns = timer.stop()
        held.clear()
    except Exception:  # noqa: BLE001 - whatever a forward does that a capture forbids
        return -1
    return took_ns


def measure(kind: int, forward: Callable[..., Any], slots: list[list[Any]], held: list[torch.Tensor]) -> int:
    """Return a time in ns that decides nothing; -1 where there is no memory for it, or no capture.

    `held`, the outputs of the call before, are let go first: large ones find no room twice.
    """
    held.clear()
    try:
        return ASIDES[kind](forward, slots)
    except torch.OutOfMemoryError:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # what was issued must not reach into the next call
        return -1


ASIDES: dict[int, Callable[[Callable[..., Any], list[list[Any]]], int]] = {
    Call.WARM: _warm,
    Call.STEADY: _steady,
    Call.GRAPH: _graph,
}
