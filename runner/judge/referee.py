"""One cell, from inputs to a result: build, check, and on a GPU time."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from runner import arithmetic, load, measure
from runner.channel import Call, Frame
from runner.judge import check, edges
from runner.judge.bench import Bench, Limits
from runner.judge.case import Case, make_room, shortage
from runner.judge.company import Company
from runner.judge.contestants import Contestant, Foul
from runner.judge.inspector import Inspector
from runner.judge.timing import Timing
from runner.phases import Phases
from runner.schema import HIDDEN, NOT_RANKED, Cell, Checked, Failed, Launch, Status, Timed

CHECK_CALLS = 3
FULL = "full"
ROLES = (measure.SOLUTION, measure.RIVAL)


@dataclass(frozen=True)
class Ruling:
    """What the referee found about one cell; a right answer writes `output_bytes`."""

    failed: Failed | None
    checked: Checked | None = None
    timed: Timed | None = None
    isolation: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    output_bytes: int = 0


class Referee:
    """Rules on cells of one problem on one device."""

    def __init__(self, device: str, limits: Limits, *, confined: bool = True) -> None:
        self.device = torch.device(device)
        self.company = Company(device, limits, confined=confined)
        self.case: Case | None = None
        self.granted: dict[int, bool | None] = {}
        self.phases = Phases()

    @property
    def limits(self) -> Limits:
        """Seconds and bytes that contestants may take."""
        return self.company.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self.company.limits = limits

    def rule(
        self,
        problem: load.Problem,
        solution: load.Solution,
        cell: Cell,
        baselines: tuple[str, ...],
        entropy: bytes,
    ) -> Ruling:
        """Build, check and time one solution on one cell."""
        unsupported = self._begin(problem, cell, entropy)
        if unsupported is not None:
            return Ruling(unsupported)
        isolation: dict[str, Any] = {}
        try:
            contestant = self.company.contestant(solution)
            isolation = contestant.isolation
            return self._try(contestant, solution, baselines)
        except Foul as foul:
            return Ruling(foul.ruling(self.company.dismiss(solution)), isolation=isolation)
        except torch.OutOfMemoryError as error:
            # the plan has room for the judge: what is missing was taken since the solution came
            self.company.dismiss(solution)
            self.company.drop_trusted()
            reason = "beside this solution the judge had too little device memory"
            return Ruling(Failed(Status.OOM, "judge", reason, str(error)[:500]), isolation=isolation)
        except Exception:
            # the judge's own fault: whoever is in the middle of a call cannot be used again
            self.company.dismiss(solution)
            self.company.drop_trusted()
            raise

    def _begin(self, problem: load.Problem, cell: Cell, entropy: bytes) -> Failed | None:
        """Have all ready for a cell but the solutions."""
        self._prove_sms(self.limits.sms)
        self.phases = Phases()
        with self.phases.phase("oracle"):
            unsupported = self.prepare_case(problem, cell, entropy)
        if unsupported is None:
            self._current().begin(entropy)
        return unsupported

    def _try(self, contestant: Contestant, solution: load.Solution, baselines: tuple[str, ...]) -> Ruling:
        """Check a solution and time it; what a reader must know of either is a flag."""
        case, isolation = self._current(), contestant.isolation
        if self._lacks(isolation):
            return Ruling(_unranked(isolation), isolation=isolation)
        checked, inspector = self._check(solution)
        flags = self._told([contestant])
        timed = None
        if case.device.type == "cuda" and baselines and case.cell.sweep != HIDDEN:
            timed = self._phased(self.timing(flags).time(inspector, solution, baselines))
        self.company.leave(solution)
        if contestant.copied_outputs:
            flags.append("copied_output")
        written = sum(y.numel() * y.element_size() for y in case.expected)
        return Ruling(None, checked, timed, isolation, tuple(flags), written)

    def _lacks(self, isolation: dict[str, Any]) -> bool:
        """Whether a contestant is less confined than the limits ask for."""
        return self.limits.processes > 1 and isolation["level"] != FULL

    def _told(self, contestants: Sequence[Contestant]) -> list[str]:
        """Flag what a reader must know of contestants that have been checked, and of where they ran."""
        sms = self.limits.sms
        found = {
            "autotune_first_config": any(launch.code for one in contestants for launch in one.launches),
            "mutated_global_state": any(one.mutated_switches for one in contestants),
            f"emulated_sms={sms}": sms,
            f"{NOT_RANKED}: the SM count is not proved": sms and not self.granted.get(sms),
        }
        return [name for name, holds in found.items() if holds]

    def _phased(self, timed: Timed | None) -> Timed | None:
        return None if timed is None else replace(timed, phases_s=self.phases.so_far())

    def _prove_sms(self, sms: int) -> None:
        """See where the edge of a wave lies on a part of the GPU, again with each cell until it is known."""
        if not sms or sms in self.granted:
            return
        self.granted[sms] = None
        try:
            times_us = edges.around(self.rule_apart, sms)
        finally:
            del self.granted[sms]
        if not any(map(math.isnan, times_us.values())):
            self.granted[sms] = edges.is_edge(times_us)

    def rule_apart(self, problem: load.Problem, solution: load.Solution, cell: Cell) -> Timed | None:
        """Time a solution against PyTorch as shipped, in processes that are gone afterwards.

        A green context, for one, is for the life of a process.
        """
        ruling = self.rule(problem, solution, cell, ("eager",), os.urandom(16))
        self.company.dismiss(solution)
        self.company.drop_trusted()
        return ruling.timed

    def entropy_of(self, entropy: bytes) -> str:
        """All that a ruling was drawn from: 16 bytes for the parameters, 16 for the solution's inputs."""
        return ((self.case.entropy if self.case else b"") + entropy).hex()

    def _current(self) -> Case:
        assert self.case is not None  # noqa: S101 - set by prepare_case
        return self.case

    def prepare_case(self, problem: load.Problem, cell: Cell, entropy: bytes) -> Failed | None:
        """Make the cell's private side, shared by solutions that follow on the same cell."""
        if self.case is not None and self.case.cell == cell and self.case.problem.digest == problem.digest:
            return None
        self.case = None
        self.company.release_trusted()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        reason = shortage(problem, cell, self.device)
        if reason:
            return Failed(Status.UNSUPPORTED, "plan", reason)
        with contextlib.suppress(torch.OutOfMemoryError):
            case = Case(problem, cell, self.device, entropy)
            if problem.foreign:  # of the suite's own `admit` tells, and more
                case.require_distinct_answers()
            self.case = case
            make_room(self.device)
            return None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return Failed(
            Status.UNSUPPORTED,
            "plan",
            f"the reference, in float64 too, finds no room on {self.device}: take one of more memory",
        )

    def compare(
        self, problem: load.Problem, pair: tuple[load.Solution, load.Solution], cell: Cell, entropy: bytes
    ) -> Ruling:
        """Time one solution against another, in the same rounds; on a CPU both are only checked."""
        unsupported = self._begin(problem, cell, entropy)
        if unsupported is not None:
            return Ruling(unsupported)
        isolation: dict[str, Any] = {}
        try:
            both = [self.company.contestant(s, role) for role, s in zip(ROLES, pair, strict=True)]
            isolation = next((c.isolation for c in both if self._lacks(c.isolation)), both[0].isolation)
            if self._lacks(isolation):
                return Ruling(_unranked(isolation), isolation=isolation)
            checked, inspectors = self.face(pair)
            flags = self._told(both)
            timed = None
            if self.device.type == "cuda":
                timed = self._phased(self.timing(flags).duel(pair, inspectors))
            for role, solution in zip(ROLES, pair, strict=True):
                self.company.leave(solution, role)
        except Foul as foul:
            return Ruling(foul.ruling(self.part(pair)), isolation=isolation)
        except Exception:
            self.part(pair)
            self.company.drop_trusted()
            raise
        return Ruling(None, checked, timed, isolation, tuple(flags))

    def face(self, pair: tuple[load.Solution, load.Solution]) -> tuple[Checked, tuple[Inspector, Inspector]]:
        """Check two solutions on the current cell, each in a process of its own; a Foul says whose it is."""
        found = []
        for place, role, solution in zip("AB", ROLES, pair, strict=True):
            try:
                found.append(self._check(solution, role))
            except Foul as foul:
                whose = f"{place} ({solution.name})"
                raise Foul(foul.status, foul.stage, f"{whose}: {foul.reason}", foul.detail) from foul
        (checked, mine), (_, other) = found
        return checked, (mine, other)

    def part(self, pair: tuple[load.Solution, load.Solution]) -> str:
        """Kill both processes; returns the end of what they printed."""
        return "".join(self.company.dismiss(one, role) for role, one in zip(ROLES, pair, strict=True))

    def timing(self, flags: list[str]) -> Timing:
        """What times solutions on the current cell."""
        return Timing(self.company, self._current(), self.enter, flags, self.phases)

    def enter(self, solution: load.Solution, role: str = measure.SOLUTION) -> tuple[Inspector, float | None]:
        """Build a solution for the current cell, on a bench of its own.

        Returns what inspects it and what `prepare` took, in us.
        """
        case = self._current()
        with self.phases.phase("build"):
            contestant = self.company.contestant(solution, role)
            job = case.job(solution.source, solution.digest, solution.name, "ModelNew", ())
            prepare_us = self.company.build(case, contestant, job)
            bench = Bench(case, self.limits)
        inspector = Inspector(bench, role)
        bench.join(role, contestant, checker=inspector)
        return inspector, prepare_us

    def _check(self, solution: load.Solution, role: str = measure.SOLUTION) -> tuple[Checked, Inspector]:
        """Check several calls in full: the first on the problem's own inputs, the others on extreme ones.

        Timed calls, which are checked too, have the whole mixture.
        """
        inspector, prepare_us = self.enter(solution, role)
        with self.phases.phase("check"):
            tally, close = self._hold_calls(inspector)
            make_room(self.device)  # of float64, which contestant and baselines need from here on
        frames = inspector.bench.seats[role][0].launches
        launches = tuple(map(_launch, frames))
        return Checked(tally.errors, close, CHECK_CALLS, launches, prepare_us), inspector

    def _hold_calls(self, inspector: Inspector) -> tuple[check.Tally, bool]:
        """Return the errors of the checked calls, and whether KernelBench would pass the first."""
        case, bench, role, tally = self._current(), inspector.bench, inspector.variant, check.Tally()
        close = False
        for index in range(CHECK_CALLS):
            if index:
                case.draw(1, bench.master, index - 1)
            else:
                case.draw_own(bench.master)
            _call_alone(bench, role, Call.FORWARD if index else Call.WITNESS)
            inspector.hold(tally)
            if index == 0:
                close = tally.kernelbench_close
                bench.prove_outputs(role)
        return tally, close

    def close(self) -> None:
        """Let all processes go."""
        self.company.close()


def _unranked(isolation: dict[str, Any]) -> Failed:
    missing = ", ".join(isolation["missing"]) or "a layer"
    return Failed(Status.ERROR, "isolation", f"a ranked run needs full isolation; missing here: {missing}")


def _call_alone(bench: Bench, role: str, kind: Call) -> None:
    """Call the solution with nothing else to do for the device: what keeps it busy is not the judge's."""
    gated, bench.gated = bench.gated, False
    try:
        bench.call(role, kind, 1)
    except measure.Disturbed as disturbed:
        whose = "work of this solution goes on, or of another process"
        raise Foul(Status.TIMEOUT, "check", f"{disturbed}: {whose}") from disturbed
    finally:
        bench.gated = gated


def _launch(frame: Frame) -> Launch:
    x, y, z, warps, registers, spills, shared = frame.args[:7]
    known = registers >= 0
    return Launch(
        frame.text,
        (x, y, z),
        warps,
        registers if known else None,
        spills if known else None,
        shared if shared >= 0 else None,
        arithmetic.read(frame.payload),
    )
