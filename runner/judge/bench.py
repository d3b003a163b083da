"""The judge's clock: calls behind a gate, under one window, closed by the judge's own copy of the answer.

In the judge's stream stand, one behind the other: a gate, the inputs, random values over the outputs that
the solution had, a sweep of L2, and the word for which the contestant's stream waits. The contestant
launches everything, says so, and only then the clock starts and the gate opens. So a window has no launch
gaps, inputs exist only inside it, and nothing that was written to an output before is left.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import torch

from runner import cuda_ipc, measure
from runner.channel import Call, Frame, Output
from runner.judge import check
from runner.judge.case import Case
from runner.judge.contestants import Contestant, Foul
from runner.judge.fence import Fence
from runner.judge.machine import MIN_CLOCK_SHARE, Machine, State
from runner.plan import default_memory_bytes
from runner.schema import CALL_S, TARGET, Status

#: On an H200 the judge's smallest operation took 35 us alone and up to 2.4 ms behind a foreign kernel.
IDLE_US = 250.0
IDLE_WAIT_S = 1.0
#: An honest contestant launches a batch in a few ms; one that waits for its own results never ends.
ISSUE_WAIT_S = 0.25
MAX_STALLS = 2
PRICE_TRIES = 3
#: What inputs are copied to for their price; larger ones piece by piece, which takes as long.
DECOY_BYTES = 2**30
#: No slower than this are parameters read that a batch finds in L2 and a single call does not.
COLD_BYTES_PER_US = 1e6
#: Outputs lie where they lay one of this many calls ago, or the call does not count.
MAX_PLACES = 4


class NoBaseline(Exception):
    """The trusted process has failed, in a variant or before any; the solution is not to blame."""

    def __init__(self, foul: Foul, variant: str = "") -> None:
        last = foul.detail.strip().rpartition("\n")[2]
        where = f"{variant}: " if variant else ""
        super().__init__(f"{where}{foul.reason} {last}".strip())
        self.variant = variant


@dataclass(frozen=True)
class Limits:
    """Seconds that a phase may take, host memory that a contestant may hold, and how it is timed.

    `processes` are how many times both sides are started anew; `sms` restricts them to that many SMs.
    """

    build_s: float = 2 * CALL_S
    call_s: float = CALL_S
    timing_s: float = 1.0
    target: float = TARGET
    processes: int = 1
    sms: int = 0
    memory_bytes: int = field(default_factory=default_memory_bytes)


class Checker(Protocol):
    """Looks at what a variant that is not trusted has just answered."""

    def inspect(self, calls: int) -> None:
        """Raise Foul if something is wrong with it."""


class Bench:
    """The judge's side of a call. Variants that are not trusted are spoilt, checked and must not err.

    `busy_s` adds up the windows, and the waits for the device before them.
    """

    def __init__(self, case: Case, limits: Limits) -> None:
        self.case, self.limits = case, limits
        self.cuda = case.device.type == "cuda"
        self.gated = self.cuda
        self.max_calls = case.max_calls
        self.cold_us = self.busy_s = 0.0
        self.seats: dict[str, tuple[Contestant, int]] = {}
        self.seated: dict[int, int] = {}
        self.checkers: dict[str, Checker] = {}
        self.places: dict[str, dict[bytes, Fence]] = {}
        self.snapshots: list[torch.Tensor] = []
        self.fence = Fence([], self.snapshots)
        self.master = torch.empty(case.inputs.size * self.max_calls, dtype=torch.uint8, device=case.device)
        self.stalls: Counter[str] = Counter()
        self.prices_us: dict[tuple[str, int, int, int], float] = {}
        self.clocks_mhz: list[int] = []
        self.power_capped = False
        self.machine = Machine("")
        if self.cuda:
            properties = torch.cuda.get_device_properties(case.device)
            self.l2_bytes = int(properties.L2_cache_size)
            self.cold_us = min(case.parameters.size, self.l2_bytes) / COLD_BYTES_PER_US
            self.sweep = torch.ones(3 * self.l2_bytes // 4, dtype=torch.float32, device=case.device)
            self.sink = torch.empty((), device=case.device)
            self.decoy = torch.empty_like(self.master[:DECOY_BYTES])
            self.gate = torch.zeros(16, dtype=torch.int32, pin_memory=True)
            self.gate_words = self.gate.numpy()
            self.machine = Machine(str(properties.uuid))

    def join(
        self, variant: str, contestant: Contestant, seat: int = 0, checker: Checker | None = None
    ) -> None:
        """Make a variant known: a seat in a contestant. What has a checker is not trusted."""
        self.seats[variant] = (contestant, seat)
        self.seated.setdefault(contestant.identity, 0)
        if checker is not None:
            self.checkers[variant] = checker

    def is_trusted(self, variant: str) -> bool:
        """Whether the variant's claims are the judge's own."""
        return variant not in self.checkers

    def forget_trusted(self) -> None:
        """Drop what is known of trusted variants: their process may have gone, and its memory with it."""
        for variant in [v for v in self.seats if self.is_trusted(v)]:
            del self.seats[variant]
            self.places.pop(variant, None)
        self.fence = Fence([], self.snapshots)

    def process_of(self, variant: str) -> str:
        """Name the variant's process."""
        return str(self.seats[variant][0].identity)

    def l2(self, calls: int) -> str:
        """Say what a call finds in L2: inputs are swept out; parameters only by a footprint of twice L2."""
        footprint = calls * (self.case.inputs.size + self.case.output_bytes)
        return "cold" if calls == 1 or footprint > 2 * self.l2_bytes else "cold, parameters warm"

    def fresh(self, calls: int) -> None:
        """Draw new inputs for the next calls; all variants of a round get the same values."""
        self.case.draw(calls, self.master)
        if self.cuda:
            with contextlib.suppress(cuda_ipc.CudaError):  # a device without such lines
                cuda_ipc.reset_persisting_lines()

    def warm_up(self, variant: str, calls: int) -> None:
        """Call without a gate: what a first call loads, or allocates, may wait for the device."""
        gated, self.gated = self.gated, False
        try:
            self.call(variant, Call.NULL, calls)
            self.call(variant, Call.FORWARD, calls)
        finally:
            self.gated = gated

    def sample(self, variant: str, calls: int) -> measure.Window:
        """Time `calls` calls; those of a variant that is not trusted are checked."""
        window = self.call(variant, Call.FORWARD, calls)
        checker = self.checkers.get(variant)
        if checker is not None:
            checker.inspect(calls)
        return window

    def null(self, variant: str, calls: int) -> measure.Window:
        """Time an empty call under the same snapshot."""
        return self.call(variant, Call.NULL, calls)

    def aside(self, variant: str, calls: int, kind: Call) -> float | None:
        """Ask for a time that decides nothing, in us per call; None where there is none."""
        try:
            contestant, _ = self._take_seat(variant)
            contestant.ring(kind, calls)
            claim_ns = contestant.wait("aside", self.limits.call_s)
        except Foul:
            if variant in self.checkers:
                raise
            return None
        return None if claim_ns < 0 else claim_ns / 1e3 / calls

    def kernels(self, variant: str) -> list[Frame]:
        """Have a call's kernels named, beside the clock and after all that is timed."""
        contestant, _ = self._take_seat(variant)
        return contestant.trace(self.limits.call_s)

    def state(self) -> State:
        """Read the machine after a round. Raises Disturbed when the clocks were held down."""
        state = self.machine.state()
        if state.slowdown:
            raise measure.Disturbed(state.slowdown)
        known = self.clocks_mhz
        if (
            known
            and state.sm_clock_mhz
            and state.sm_clock_mhz < MIN_CLOCK_SHARE * sorted(known)[len(known) // 2]
        ):
            raise measure.Disturbed(f"the SM clock fell to {state.sm_clock_mhz} MHz")
        known.append(state.sm_clock_mhz)
        self.power_capped |= state.power_capped
        return state

    def call(self, variant: str, kind: Call, calls: int) -> measure.Window:
        """Ring once. A trusted variant's foul is NoBaseline; raises Disturbed and Stalled, too."""
        try:
            return self._call(variant, kind, calls)
        except Foul as foul:
            if variant in self.checkers:
                raise
            raise NoBaseline(foul, variant) from foul

    def _call(self, variant: str, kind: Call, calls: int) -> measure.Window:
        contestant, fill_us = self._summon(variant, calls)
        gated = self.gated and kind in (Call.FORWARD, Call.NULL)
        word = 1 + secrets.randbelow(2**31 - 1) if gated else 0
        if gated:
            cuda_ipc.wait_word(0, self.gate.data_ptr(), word)
        start = time.perf_counter_ns()
        try:
            self._fill(variant, contestant, calls)
            if gated:
                cuda_ipc.write_word(0, contestant.gate_address, word)
            elif self.cuda:
                torch.cuda.synchronize()
            rung = time.perf_counter_ns()
            contestant.ring(kind, calls, gate=word)
            issued = not self.cuda or contestant.wait_issued(
                "call", ISSUE_WAIT_S if gated else self._deadline_s(kind), watch=not gated
            )
            issue_ns = time.perf_counter_ns() - rung
        finally:
            if gated:
                start = time.perf_counter_ns()
                self.gate_words[0] = word
        if not issued and not gated:
            raise contestant.late("call", self._deadline_s(kind))
        claim_ns = contestant.wait("call", self._deadline_s(kind))
        moved = self._look(variant, contestant, calls) if kind != Call.NULL else self._glance(variant)
        fence = self.fence
        fence.close()
        if self.cuda:
            torch.cuda.synchronize()
        window_us = (time.perf_counter_ns() - start) / 1e3
        self.busy_s += window_us / 1e6
        if kind != Call.NULL and not fence.holds():
            raise Foul(Status.VIOLATION, "check", "the output was still being written after the answer")
        if not issued:
            self._stall(variant)
        if gated and moved:
            raise measure.Disturbed("outputs lie where none lay before")
        return measure.Window(window_us - fill_us, claim_ns / 1e3, issue_ns / 1e3)

    def _summon(self, variant: str, calls: int) -> tuple[Contestant, float]:
        """Have the variant's process ready, what is not trusted beside it stopped, and the device idle.

        Returns what the judge's own part of the window takes, too.
        """
        contestant, _ = self._take_seat(variant)
        for other in self.checkers:
            if other != variant:
                self.seats[other][0].pause()
        fill_us = self._price(variant, calls) if self.cuda else 0.0
        contestant.arm()
        if self.cuda:
            self._settle()
        return contestant, fill_us

    def _price(self, variant: str, calls: int) -> float:
        """Time what `_fill` does, in us, on memory that is the judge's alone: nobody can make it longer.

        It differs from variant to variant by what is spoilt, so a null does not hold it. The work stands
        behind a gate here, too, since launching it may take longer than the work.
        """
        rooms = [
            room
            for fence in self.places.get(variant, {}).values()
            for room in self.snapshots[: len(fence.views)]
        ]
        key = (variant, calls, len(rooms), sum(room.nbytes for room in rooms))
        if key not in self.prices_us:
            used = calls * self.case.inputs.size

            def fill() -> None:
                for room in rooms:
                    room.fill_(0)
                for part in torch.split(self.master[:used], DECOY_BYTES):
                    self.decoy[: len(part)].copy_(part)
                torch.sum(self.sweep, dim=0, out=self.sink)

            fill()  # loads the kernels: behind a gate loading could wait for the gate for ever
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            times_us = []
            for _ in range(PRICE_TRIES):
                word = 1 + secrets.randbelow(2**31 - 1)
                torch.cuda.synchronize()
                cuda_ipc.wait_word(0, self.gate.data_ptr(), word)
                try:
                    begin.record()
                    fill()
                    end.record()
                finally:
                    self.gate_words[0] = word
                end.synchronize()
                times_us.append(begin.elapsed_time(end) * 1e3)
            self.prices_us[key] = min(times_us)
        return self.prices_us[key]

    def _take_seat(self, variant: str) -> tuple[Contestant, int]:
        contestant, seat = self.seats[variant]
        if self.seated[contestant.identity] != seat:
            contestant.ring(Call.SELECT, seat=seat)
            contestant.wait("select", self.limits.call_s)
            self.seated[contestant.identity] = seat
        return contestant, seat

    def _fill(self, variant: str, contestant: Contestant, calls: int) -> None:
        """Spoil the outputs of the calls before, give the inputs, make L2 cold.

        Outputs of a baseline are spoilt too, so that the windows of all variants hold the same.
        """
        for fence in self.places.get(variant, {}).values():
            fence.spoil()
        used = calls * self.case.inputs.size
        contestant.blocks[1][:used].copy_(self.master[:used])
        if self.cuda:
            torch.sum(self.sweep, dim=0, out=self.sink)

    def _stall(self, variant: str) -> None:
        """Some stalls may be the host's fault; a variant that goes on waits for the device itself."""
        self.stalls[variant] += 1
        if self.stalls[variant] > MAX_STALLS:
            raise measure.Stalled(variant)
        raise measure.Disturbed(f"the launches of {variant} took too long")

    def _deadline_s(self, kind: Call) -> float:
        """A first call compiles, or tunes; those have no gate."""
        first = kind == Call.WITNESS or (self.cuda and not self.gated)
        return self.limits.build_s if first else self.limits.call_s

    def _settle(self) -> None:
        """Wait for an idle device; raises Disturbed while somebody else keeps it busy."""
        begun = time.perf_counter_ns()
        torch.cuda.synchronize()  # new inputs are still being drawn
        self.busy_s += (time.perf_counter_ns() - begun) / 1e9
        end = time.monotonic() + IDLE_WAIT_S
        while time.monotonic() < end:
            start = time.perf_counter_ns()
            self.sink.add_(0.0)
            torch.cuda.synchronize()
            if time.perf_counter_ns() - start < IDLE_US * 1e3:
                return
        raise measure.Disturbed("the device is not idle")

    def _look(self, variant: str, contestant: Contestant, calls: int) -> bool:
        """Find the outputs, and whether they lie where none were spoilt; views are made once for a place."""
        raw = contestant.raw_outputs(calls)
        places = self.places.setdefault(variant, {})
        known = places.get(raw)
        if known is not None:
            self.fence = known
            return False
        for other in [r for r in places if len(r) != len(raw)]:  # of batches of another size
            places.pop(other)
        while len(places) >= MAX_PLACES:
            places.pop(next(iter(places)))
        self.fence = places[raw] = Fence(self._views(contestant, raw, calls), self.snapshots)
        return variant in self.checkers

    def _glance(self, variant: str) -> bool:
        """What `_look` costs, for a null: its window holds the same."""
        contestant, _ = self.seats[variant]
        places = self.places.get(variant, {})
        self.fence = places.get(contestant.page.descriptors(len(self.fence.views)), self.fence)
        return False

    def _views(self, contestant: Contestant, raw: bytes, calls: int) -> list[torch.Tensor]:
        outputs = contestant.outputs(raw)
        wrong = check.form([(o.dtype, o.shape, o.strides) for o in outputs], self.case.expected * calls)
        if wrong:
            raise Foul(Status.WRONG, "check", wrong)
        return [contestant.view(o) for o in outputs]

    def prove_outputs(self, variant: str) -> None:
        """Prove that the buffers behind the last outputs are the contestant's own; spoils the outputs."""
        contestant, _ = self.seats[variant]
        first: dict[int, Output] = {}
        for raw in self.places[variant]:
            first |= {o.block: o for o in contestant.outputs(raw)}
        for out in first.values():
            contestant.prove(out, self.limits.call_s)

    def require_intact_inputs(self, variant: str, calls: int) -> None:
        """Compare the mapped inputs with the private master copy, or raise Foul."""
        contestant, _ = self.seats[variant]
        used = calls * self.case.inputs.size
        own, sent = (block[:used].view(torch.int64) for block in (contestant.blocks[1], self.master))
        if not torch.equal(own, sent):  # in words: what is compared takes a byte each
            raise Foul(Status.VIOLATION, "check", "the inputs were changed")
