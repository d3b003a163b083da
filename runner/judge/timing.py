"""From a checked solution to its times: rounds against the baselines, in one process or in several."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import secrets
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol

import torch

from runner import analyse, load, measure
from runner.channel import Call, Frame
from runner.judge.bench import Bench, NoBaseline
from runner.judge.case import Case, make_room
from runner.judge.company import Company
from runner.judge.contestants import Foul
from runner.judge.inspector import Inspector
from runner.phases import Phases
from runner.schema import NOT_RANKED, Kernel, Timed

#: The baseline that runs beside two solutions.
CALIBRATOR = "cudnn"


class Enter(Protocol):
    """Builds a solution for the current cell in a contestant, new if the last one was dismissed."""

    def __call__(
        self, solution: load.Solution, role: str = measure.SOLUTION
    ) -> tuple[Inspector, float | None]:
        """Return what inspects it and what `prepare` took, in us."""


class Timing:
    """Times solutions on one case. What a reader of the times must know becomes a flag."""

    def __init__(
        self, company: Company, case: Case, enter: Enter, flags: list[str], phases: Phases | None = None
    ) -> None:
        self.company, self.case, self.enter, self.flags = company, case, enter, flags
        self.phases = phases or Phases()

    def time(self, inspector: Inspector, solution: load.Solution, baselines: tuple[str, ...]) -> Timed | None:
        """Time a solution that has been checked, or say in a flag why there are no times.

        Where the limits ask for several processes, each has a new one for the solution and a new one for
        the baselines; the headline is chosen in the first. A baseline that fails is left out, and a flag
        says so, while there is one that may lead. Raises Foul.
        """
        while True:
            try:
                return self._runs(inspector, solution, baselines)
            except NoBaseline as failure:
                self.company.drop_trusted()
                self.flags.append(f"no_baseline: {failure}")
                baselines = tuple(b for b in baselines if b != failure.variant)
                if not failure.variant or not any(_flag(b, "HEADLINE") for b in baselines):
                    return None
                if self.company.limits.processes > 1:  # this run may have failed in a later one
                    inspector = self._anew(solution)
            except measure.Disturbed as disturbed:
                self.flags.append(f"disturbed: {disturbed}")
                return None

    def _runs(self, inspector: Inspector, solution: load.Solution, baselines: tuple[str, ...]) -> Timed:
        """Run the rounds in each process, then what is asked beside the clock."""
        runs = [self._rounds(inspector, baselines)]
        for _ in range(self.company.limits.processes - 1):
            self.company.drop_trusted()
            inspector = self._anew(solution)
            kept = tuple(s.variant for s in runs[0].samples if not s.config.get("pilot"))
            again = tuple(b for b in baselines if b in kept)
            runs.append(self._rounds(inspector, again, runs[0].headline))
        with self.phases.phase("trace"):
            kernels = self._kernels(inspector.bench, solution)
        with self.phases.phase("graph"):
            runs[-1] = self._replay(inspector.bench, solution, runs[-1])
        return replace(_joined(runs), kernels=kernels)

    def _anew(self, solution: load.Solution, role: str = measure.SOLUTION) -> Inspector:
        """Build the solution in a new process; what could not stand behind a gate need not try again."""
        self.company.dismiss(solution, role)
        inspector, _ = self.enter(solution, role)
        inspector.bench.gated &= not any("syncs" in flag for flag in self.flags)
        return inspector

    def _remark(self, flag: str) -> None:
        if flag not in self.flags:
            self.flags.append(flag)

    def duel(
        self,
        pair: tuple[load.Solution, load.Solution],
        inspectors: tuple[Inspector, Inspector],
        *,
        in_order: bool = False,
    ) -> Timed | None:
        """Time a solution that has been checked against another, `cudnn` beside them.

        Where the limits ask for several processes, all three have a new one in each run. Raises Foul.
        """
        try:
            runs = [self._bout(*inspectors, in_order=in_order)]
            for _ in range(self.company.limits.processes - 1):
                self.company.drop_trusted()
                mine, other = (self._anew(s, i.variant) for s, i in zip(pair, inspectors, strict=True))
                runs.append(self._bout(mine, other, in_order=in_order))
        except NoBaseline as failure:
            self.company.drop_trusted()
            self.flags.append(f"no_baseline: {failure}")
        except measure.Disturbed as disturbed:
            self.flags.append(f"disturbed: {disturbed}")
        else:
            return _joined(runs)
        return None

    def _bout(self, mine: Inspector, other: Inspector, *, in_order: bool) -> Timed:
        """Run the rounds of two solutions in the processes that they have."""
        bench = mine.bench
        contestant, seat = other.bench.seats[other.variant]
        rival = Inspector(bench, other.variant)
        bench.join(other.variant, contestant, seat, rival)
        self._seat(bench, (CALIBRATOR,))
        variants = (other.variant, CALIBRATOR)
        timed = self._measure(bench, variants, (other.variant,), variants, in_order=in_order)
        for inspector in (mine, rival):
            self._check_last(inspector, timed.samples[0].calls)
        self._tell(bench, timed)
        return replace(timed, checked_calls=mine.checked + rival.checked)

    def _rounds(self, inspector: Inspector, baselines: tuple[str, ...], headline: str = "") -> Timed:
        """Run the rounds against baselines; the headline is chosen among them unless it is given."""
        bench = inspector.bench
        self._seat(bench, baselines)
        # asked for baselines of which none may be the headline, compare with those
        eligible = tuple(b for b in baselines if _flag(b, "HEADLINE")) or baselines
        always = tuple(b for b in baselines if _flag(b, "COLUMN"))
        timed = self._measure(bench, baselines, (headline,) if headline else eligible, always)
        self._check_last(inspector, timed.samples[0].calls)
        self._tell(bench, timed)
        if inspector.cramped:
            self._remark("unchecked_rounds")
        samples = tuple(replace(s, config={**s.config, **self._config(s.variant)}) for s in timed.samples)
        return replace(timed, samples=samples, checked_calls=inspector.checked)

    def _tell(self, bench: Bench, timed: Timed) -> None:
        """Flag what a reader must know of the rounds."""
        found = {
            "unsettled": not timed.settled,
            f"{NOT_RANKED}: batch_gain": timed.batched,
            "power_capped": bench.power_capped,
        }
        for flag in (name for name, holds in found.items() if holds):
            self._remark(flag)

    def _seat(self, bench: Bench, baselines: tuple[str, ...]) -> None:
        bench.forget_trusted()
        with self.phases.phase("baselines"):
            trusted = self.company.trusted(self.case, baselines)
        for seat, name in enumerate(baselines):
            bench.join(name, trusted, seat)
        bench.seated[trusted.identity] = -1

    def _measure(
        self,
        bench: Bench,
        variants: tuple[str, ...],
        eligible: tuple[str, ...],
        always: tuple[str, ...],
        *,
        in_order: bool = False,
    ) -> Timed:
        """Measure without interruption; without a gate if a variant cannot stand behind one."""
        limits = self.company.limits
        rng = None if in_order else random.Random(secrets.randbits(64))  # noqa: S311 - an order, no secret
        settings = measure.Settings(target=limits.target, budget_s=limits.timing_s)
        self._look_around(bench)
        gc.collect()
        gc.disable()
        try:
            while True:
                try:
                    return measure.measure(
                        bench, variants, eligible, always, rng, settings, phases=self.phases
                    )
                except measure.Stalled as stalled:
                    self._unstall(bench, str(stalled))
        finally:
            gc.enable()
            self._look_around(bench)

    def _look_around(self, bench: Bench) -> None:
        """Flag whoever else computes on the device; rounds have one look before them and one behind."""
        if bench.machine.strangers({os.getpid(), *self.company.pids}):
            self._remark("other_processes")

    def _unstall(self, bench: Bench, variant: str) -> None:
        """Try smaller batches, since a queue of launches is finite; then do without a gate.

        A solution that waits for the device has launching in its times and the baselines', and no rank.
        """
        bench.stalls.clear()
        if bench.max_calls > 1:
            bench.max_calls = 1
            return
        bench.gated = False
        self._remark(f"{NOT_RANKED}: syncs" if variant == measure.SOLUTION else f"syncs: {variant}")

    def _check_last(self, inspector: Inspector, calls: int) -> None:
        """The last call is checked in full, like the first."""
        with self.phases.phase("check"):
            inspector.bench.fresh(calls)
            inspector.bench.warm_up(inspector.variant, calls)
            with contextlib.suppress(torch.OutOfMemoryError):
                inspector.inspect(calls, thorough=True)
                return
            # all is timed: what the baselines hold is room
            self.company.drop_trusted()
            inspector.bench.forget_trusted()
            make_room(self.case.device)
            inspector.inspect(calls, thorough=True)

    def _replay(self, bench: Bench, solution: load.Solution, timed: Timed) -> Timed:
        """Add the time of a captured batch, last of all: a capture that fails may take its process along."""
        samples = []
        for one in timed.samples:
            graph_us = None
            if one.variant in (measure.SOLUTION, timed.headline) and one.variant in bench.seats:
                with contextlib.suppress(Foul):
                    graph_us = bench.aside(one.variant, one.calls, Call.GRAPH)
                if graph_us is None:
                    self._lose(bench, solution, one.variant)
            samples.append(replace(one, graph_us=graph_us))
        return replace(timed, samples=tuple(samples))

    def _kernels(self, bench: Bench, solution: load.Solution) -> dict[str, tuple[Kernel, ...]]:
        """Name the kernels of each variant, after all that is timed: the profiler slows a host down."""
        named: dict[str, tuple[Kernel, ...]] = {}
        for variant in tuple(bench.seats):
            if variant in bench.seats:  # still: its process may have been lost with another's
                try:
                    frames = bench.kernels(variant)
                    if all(frame.code for frame in frames):  # a first trace in a thread may come back empty
                        frames = bench.kernels(variant)
                    named[variant] = tuple(_kernel(frame) for frame in frames if not frame.code)
                except Foul:
                    self._lose(bench, solution, variant)
        if not named.get(measure.SOLUTION):
            self.flags.append("untraced")
        return named

    def _lose(self, bench: Bench, solution: load.Solution, variant: str) -> None:
        """Let a process go that a question beside the clock has spoilt, with all that sit in it."""
        lost, _ = bench.seats[variant]
        bench.seats = {name: seat for name, seat in bench.seats.items() if seat[0] is not lost}
        if variant == measure.SOLUTION:
            self.company.dismiss(solution)
        else:
            self.company.drop_trusted()

    def _config(self, variant: str) -> dict[str, Any]:
        """What a row must say of a variant: TF32, and for baselines cuDNN's flags and the layout."""
        config: dict[str, Any] = {"allow_tf32": self.case.cell.arithmetic != "fp32"}
        if variant != measure.SOLUTION:
            module = import_module(f"runner.baselines.{variant}")
            config |= {**module.FLAGS, "layout": module.LAYOUT}
        return config


def _joined(runs: Sequence[Timed]) -> Timed:
    return analyse.together(runs) if len(runs) > 1 else runs[0]


def _kernel(frame: Frame) -> Kernel:
    launches, time_ns, x, y, z, *facts = frame.args
    library = frame.payload.rstrip(b"\0").decode("ascii")
    return Kernel(frame.text, library, launches, round(time_ns / 1e3, 2), (x, y, z), *facts)


def _flag(baseline: str, name: str) -> bool:
    """What a baseline's file says of it: `HEADLINE`, `COLUMN`."""
    return bool(getattr(import_module(f"runner.baselines.{baseline}"), name))
