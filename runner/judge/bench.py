"""The judge's clock: one call under one window, closed by the judge's own copy of the answer."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from runner import measure
from runner.channel import Call
from runner.judge import check
from runner.judge.case import Case
from runner.judge.contestants import Contestant, Foul
from runner.schema import Status

#: On an H200 the judge's smallest operation took 35 us alone and up to 2.4 ms behind a foreign kernel.
IDLE_US = 250.0
IDLE_WAIT_S = 1.0
#: Outputs up to this are copied whole inside the window (0.2 ms at 3 TB/s);
WHOLE_BYTES = 256 * 2**20
#: of larger ones random lines of this size in all.
FENCE_BYTES = 4 * 2**20
LINE_BYTES = 128


def _default_memory_bytes() -> int:
    """Half of the host's memory, at most 8 GiB."""
    return min(8 * 2**30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") // 2)


class NoBaseline(Exception):
    """The trusted process has failed; the solution is not to blame, and has no times."""

    def __init__(self, foul: Foul) -> None:
        last = foul.detail.strip().rpartition("\n")[2]
        super().__init__(f"{foul.reason} {last}".strip())


@dataclass(frozen=True)
class Limits:
    """Seconds that a phase may take, and host memory that a contestant may hold."""

    build_s: float = 120.0
    call_s: float = 60.0
    timing_s: float = 1.0
    target: float = 0.01
    memory_bytes: int = field(default_factory=_default_memory_bytes)


class Bench:
    """The judge's side of a call: write inputs, ring, wait, snapshot, all under one clock."""

    def __init__(self, case: Case, limits: Limits) -> None:
        self.case, self.limits = case, limits
        self.cuda = case.device.type == "cuda"
        self.max_calls = case.max_calls
        self.seats: dict[str, tuple[Contestant, int]] = {}
        self.seated: dict[int, int] = {}
        self.known: dict[str, tuple[bytes, Fence]] = {}
        self.snapshots: list[torch.Tensor] = []
        self.fence = Fence([], self.snapshots)
        self.master = torch.empty(case.inputs.size * self.max_calls, dtype=torch.uint8, device=case.device)
        self.tail = min([64, *(i.size for i in case.inputs.tensors)])
        self.checker: Callable[[int], None] = lambda _: None
        if self.cuda:
            self.l2_bytes = int(torch.cuda.get_device_properties(case.device).L2_cache_size)
            self.sweep = torch.ones(3 * self.l2_bytes // 4, dtype=torch.float32, device=case.device)

    def join(self, variant: str, contestant: Contestant, seat: int) -> None:
        """Make a variant known: a seat in a contestant."""
        self.seats[variant] = (contestant, seat)
        self.seated.setdefault(contestant.identity, 0)

    def process_of(self, variant: str) -> str:
        """Name the variant's process."""
        return str(self.seats[variant][0].identity)

    def l2(self, calls: int) -> str:
        """Cold after the sweep for single calls; rotating slots keep a batch cold beyond twice L2."""
        footprint = calls * (self.case.inputs.size + self.case.output_bytes)
        return "cold" if calls == 1 or footprint > 2 * self.l2_bytes else "warm"

    def fresh(self, calls: int) -> None:
        """Draw new inputs for the next calls; all variants of a round get the same values."""
        self.case.draw(calls, self.master)

    def sample(self, variant: str, calls: int) -> measure.Window:
        """Time `calls` calls; the solution's are checked and then overwritten."""
        window_us, claim_ns = self.call(variant, Call.FORWARD, calls)
        issue_ns = self.seats[variant][0].issue_ns
        if variant == measure.SOLUTION:
            self.checker(calls)
            self.poison()
        return measure.Window(window_us, claim_ns / 1e3, issue_ns / 1e3)

    def null(self, variant: str, calls: int) -> float:
        """Time an empty call under the same snapshot."""
        return self.call(variant, Call.NULL, calls)[0]

    def call(self, variant: str, kind: Call, calls: int) -> tuple[float, int]:
        """Ring once; returns the window in us and the claim in ns. A baseline's foul is NoBaseline."""
        try:
            return self._call(variant, kind, calls)
        except Foul as foul:
            if variant == measure.SOLUTION:
                raise
            raise NoBaseline(foul) from foul

    def _call(self, variant: str, kind: Call, calls: int) -> tuple[float, int]:
        """Keep the window.

        It opens before the inputs are complete and closes after the judge's own copy of the
        outputs, or of random lines of large ones, so work done early has no inputs and an answer that
        comes early has no outputs.
        """
        contestant, seat = self.seats[variant]
        if self.seated[contestant.identity] != seat:
            contestant.ring(Call.SELECT, seat=seat)
            contestant.wait("select", self.limits.call_s)
            self.seated[contestant.identity] = seat
        used = calls * self.case.inputs.size
        mapped, master = contestant.blocks[1][:used].view(calls, -1), self.master[:used].view(calls, -1)
        mapped[:, self.tail :].copy_(master[:, self.tail :])
        mapped[:, : self.tail].random_(0, 256)
        contestant.arm()
        if self.cuda:
            self._settle()
        start = time.perf_counter_ns()
        mapped[:, : self.tail].copy_(master[:, : self.tail])
        if self.cuda:
            torch.cuda.synchronize()
        contestant.ring(kind, calls)
        claim_ns = contestant.wait("call", self._deadline_s(kind))
        if kind != Call.NULL:
            self._look(variant, contestant, calls)
        fence = self.fence
        fence.close()
        if self.cuda:
            torch.cuda.synchronize()
        window_us = (time.perf_counter_ns() - start) / 1e3
        if kind != Call.NULL and not fence.holds():
            raise Foul(Status.VIOLATION, "check", "the output was still being written after the answer")
        return window_us, claim_ns

    def _deadline_s(self, kind: Call) -> float:
        """A first call compiles."""
        return self.limits.build_s if kind == Call.WITNESS else self.limits.call_s

    def _settle(self) -> None:
        """Make L2 cold and the device idle; raises Disturbed while somebody else keeps it busy."""
        torch.sum(self.sweep)
        torch.cuda.synchronize()
        end = time.monotonic() + IDLE_WAIT_S
        while time.monotonic() < end:
            start = time.perf_counter_ns()
            self.sweep[:1].add_(0.0)
            torch.cuda.synchronize()
            if time.perf_counter_ns() - start < IDLE_US * 1e3:
                return
        raise measure.Disturbed("the device is not idle")

    def _look(self, variant: str, contestant: Contestant, calls: int) -> None:
        """Find the outputs; views are made once for as long as a variant's outputs stay where they are."""
        raw = contestant.raw_outputs(calls)
        known = self.known.get(variant)
        if known is None or known[0] != raw:
            known = self.known[variant] = (raw, Fence(self._views(contestant, raw, calls), self.snapshots))
        self.fence = known[1]

    def _views(self, contestant: Contestant, raw: bytes, calls: int) -> list[torch.Tensor]:
        outputs = contestant.outputs(raw)
        wrong = check.form([(o.dtype, o.shape, o.strides) for o in outputs], self.case.expected * calls)
        if wrong:
            raise Foul(Status.WRONG, "check", wrong)
        return [contestant.view(o) for o in outputs]

    def prove_outputs(self, variant: str) -> None:
        """Prove that the buffers behind the last outputs are the contestant's own; spoils the outputs."""
        contestant, _ = self.seats[variant]
        first = {o.block: o for o in contestant.outputs(self.known[variant][0])}
        for out in first.values():
            contestant.prove(out, self.limits.call_s)

    def poison(self) -> None:
        """Overwrite the outputs, which the contestant still holds, with plausible random values."""
        for view in self.fence.views:
            if view.is_floating_point():
                view.normal_(generator=self.case.generator)
            else:
                view.random_(0, 2, generator=self.case.generator)

    def require_intact_inputs(self, contestant: Contestant, calls: int) -> None:
        """Compare the mapped inputs with the private master copy, or raise Foul."""
        used = calls * self.case.inputs.size
        if not torch.equal(contestant.blocks[1][:used], self.master[:used]):
            raise Foul(Status.VIOLATION, "check", "the inputs were changed")


class Fence:
    """The judge's copy of a call's outputs, begun inside the window.

    Small outputs are copied whole before the clock stops. Of large ones random lines are, and the
    rest right after it: the copy then has to agree with those lines. Outputs hold random values
    before the call, so an answer sent while a share f of the lines was missing passes with
    probability (1 - f) to the number of lines, which is above 32000.
    """

    def __init__(self, views: list[torch.Tensor], snapshots: list[torch.Tensor]) -> None:
        self.views = views
        self.snapshots = snapshots
        for index, view in enumerate(views):
            if index == len(snapshots) or (snapshots[index].shape, snapshots[index].stride()) != (
                view.shape,
                view.stride(),
            ):
                room = torch.empty_strided(view.shape, view.stride(), dtype=view.dtype, device=view.device)
                snapshots[index : index + 1] = [room]
        total = sum(v.numel() * v.element_size() for v in views)
        sampled = total > WHOLE_BYTES and all(v.is_contiguous() for v in views)
        self.step = -(-total // FENCE_BYTES) if sampled else 1
        self.lines = [_lines(v) for v in views] if self.step > 1 else []
        self.taken = [torch.empty_like(rows[:: self.step]) for rows in self.lines]
        self.offset = 0

    def close(self) -> None:
        """Enqueue what belongs inside the window."""
        if self.step > 1:
            self.offset = secrets.randbelow(self.step)
            for taken, rows in zip(self.taken, self.lines, strict=True):
                chosen = rows[self.offset :: self.step]
                taken[: len(chosen)].copy_(chosen)
        elif self.views:
            torch._foreach_copy_(self.snapshots[: len(self.views)], self.views)

    def holds(self) -> bool:
        """Complete the copy; whether it agrees with what was taken inside the window."""
        if self.step == 1:
            return True
        for taken, rows, view, room in zip(self.taken, self.lines, self.views, self.snapshots, strict=False):
            room.copy_(view)
            chosen = _lines(room)[self.offset :: self.step]
            if len(rows) and not torch.equal(taken[: len(chosen)], chosen):
                return False
        return True


def _lines(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as lines of 128 bytes; a shorter rest at the end is left to the full copy."""
    flat = tensor.view(-1).view(torch.uint8)
    return flat[: len(flat) // LINE_BYTES * LINE_BYTES].view(-1, LINE_BYTES)
