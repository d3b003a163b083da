"""From a checked solution to its times: rounds against the baselines, in one process or in several."""

from __future__ import annotations

import contextlib
import gc
import random
import secrets
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from runner import analyse, load, measure
from runner.channel import Call
from runner.judge.bench import Bench, NoBaseline
from runner.judge.case import Case
from runner.judge.company import Company
from runner.judge.contestants import Foul
from runner.judge.inspector import Inspector
from runner.schema import Timed

#: The baseline that runs beside two solutions.
CALIBRATOR = "cudnn"
#: Builds a solution for the current cell in a contestant, new if the last one was dismissed.
Enter = Callable[[load.Solution], tuple[Inspector, float | None]]


class Timing:
    """Times solutions on one case. What a reader of the times must know becomes a flag."""

    def __init__(self, company: Company, case: Case, enter: Enter, flags: list[str]) -> None:
        self.company, self.case, self.enter, self.flags = company, case, enter, flags

    def time(self, inspector: Inspector, solution: load.Solution, baselines: tuple[str, ...]) -> Timed | None:
        """Time a solution that has been checked, or say in a flag why there are no times.

        Where the limits ask for several processes, each has a new one for the solution and a new one for
        the baselines; the headline is chosen in the first. Raises Foul.
        """
        try:
            runs = [self._rounds(inspector, baselines)]
            for _ in range(self.company.limits.processes - 1):
                self.company.dismiss(solution)
                self.company.drop_trusted()
                inspector, _ = self.enter(solution)
                inspector.bench.gated = not any(flag.startswith("syncs") for flag in self.flags)
                again = tuple(b for b in baselines if b == runs[0].headline or not _may_lead(b))
                runs.append(self._rounds(inspector, again))
            runs[-1] = self._replay(inspector.bench, solution, runs[-1])
            return analyse.together(runs) if len(runs) > 1 else runs[0]
        except NoBaseline as failure:
            self.company.drop_trusted()
            self.flags.append(f"no_baseline: {failure}")
        except measure.Disturbed as disturbed:
            self.flags.append(f"disturbed: {disturbed}")
        return None

    def duel(self, mine: Inspector, other: Inspector, *, in_order: bool = False) -> Timed | None:
        """Time a solution that has been checked against another, `cudnn` beside them."""
        bench = mine.bench
        contestant, seat = other.bench.seats[other.variant]
        rival = Inspector(bench, other.variant)
        bench.join(other.variant, contestant, seat, rival)
        try:
            self._seat(bench, (CALIBRATOR,))
            variants = (other.variant, CALIBRATOR)
            timed = self._measure(bench, variants, (other.variant,), in_order=in_order)
        except NoBaseline as failure:
            self.company.drop_trusted()
            self.flags.append(f"no_baseline: {failure}")
        except measure.Disturbed as disturbed:
            self.flags.append(f"disturbed: {disturbed}")
        else:
            for inspector in (mine, rival):
                self._check_last(inspector, timed.samples[0].calls)
            return timed
        return None

    def _rounds(self, inspector: Inspector, baselines: tuple[str, ...]) -> Timed:
        """Run the rounds against baselines."""
        bench = inspector.bench
        self._seat(bench, baselines)
        # asked for baselines of which none may be the headline, compare with those
        eligible = tuple(b for b in baselines if _may_lead(b)) or baselines
        timed = self._measure(bench, baselines, eligible)
        self._check_last(inspector, timed.samples[0].calls)
        if not timed.settled:
            self.flags.append("unsettled")
        if timed.batched:
            self.flags.append("batch_gain")
        if bench.power_capped:
            self.flags.append("power_capped")
        samples = tuple(replace(s, config={**s.config, **self._config(s.variant)}) for s in timed.samples)
        return replace(timed, samples=samples, checked_calls=inspector.checked)

    def _seat(self, bench: Bench, baselines: tuple[str, ...]) -> None:
        trusted = self.company.trusted(self.case, baselines)
        for seat, name in enumerate(baselines):
            bench.join(name, trusted, seat)
        bench.seated[trusted.identity] = -1

    def _measure(
        self, bench: Bench, variants: tuple[str, ...], eligible: tuple[str, ...], *, in_order: bool = False
    ) -> Timed:
        """Measure without interruption; without a gate if a variant cannot stand behind one."""
        limits = self.company.limits
        rng = None if in_order else random.Random(secrets.randbits(64))  # noqa: S311 - an order, no secret
        settings = measure.Settings(target=limits.target, budget_s=limits.timing_s)
        gc.collect()
        gc.disable()
        try:
            return measure.measure(bench, variants, eligible, rng, settings)
        except measure.Stalled as stalled:
            bench.gated = False
            self.flags.append("syncs" if str(stalled) == measure.SOLUTION else f"syncs: {stalled}")
            return measure.measure(bench, variants, eligible, rng, settings)
        finally:
            gc.enable()

    @staticmethod
    def _check_last(inspector: Inspector, calls: int) -> None:
        """The last call is checked in full, like the first."""
        inspector.bench.fresh(calls)
        inspector.bench.warm_up(inspector.variant, calls)
        inspector.inspect(calls, thorough=True)

    def _replay(self, bench: Bench, solution: load.Solution, timed: Timed) -> Timed:
        """Add the time of a captured batch, last of all: a capture that fails may take its process along."""
        samples = []
        for one in timed.samples:
            graph_us = None
            if one.variant in (measure.SOLUTION, timed.headline):
                with contextlib.suppress(Foul):
                    graph_us = bench.aside(one.variant, one.calls, Call.GRAPH)
                if graph_us is None and one.variant == measure.SOLUTION:
                    self.company.dismiss(solution)
                elif graph_us is None:
                    self.company.drop_trusted()
            samples.append(replace(one, graph_us=graph_us))
        return replace(timed, samples=tuple(samples))

    def _config(self, variant: str) -> dict[str, Any]:
        """What a row must say of a variant: TF32, and for baselines cuDNN's flags and the layout."""
        config: dict[str, Any] = {"allow_tf32": self.case.cell.arithmetic != "fp32"}
        if variant != measure.SOLUTION:
            module = import_module(f"runner.baselines.{variant}")
            config |= {**module.FLAGS, "layout": module.LAYOUT}
        return config


def _may_lead(baseline: str) -> bool:
    """Whether a baseline may be the headline's denominator."""
    return bool(import_module(f"runner.baselines.{baseline}").HEADLINE)
