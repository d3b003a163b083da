"""One cell, from inputs to a result: build, check, and on a GPU time.

The referee keeps what neighbouring cells share: the contestant of each solution, and the trusted
contestant that holds the baselines, which stays built while several solutions run on one cell.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch

from runner import load, measure
from runner.channel import Call
from runner.judge import check
from runner.judge.bench import Bench, Limits, NoBaseline
from runner.judge.case import Case, shortage
from runner.judge.contestants import Contestant, Foul
from runner.judge.inputs import EXTREMES
from runner.judge.zygotes import Zygotes
from runner.schema import Cell, Checked, Failed, Launch, Status, Timed

CHECK_CALLS = 3
FULL_CHECK_EVERY = 16
#: Each keeps a CUDA context between its cells (0.7 GB on an H200); a fork cost less than a second there.
MAX_CONTESTANTS = 4


@dataclass(frozen=True)
class Ruling:
    """What the referee found about one cell."""

    failed: Failed | None
    checked: Checked | None = None
    timed: Timed | None = None
    isolation: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


class Referee:
    """Rules on cells of one problem on one device."""

    def __init__(self, device: str, limits: Limits) -> None:
        self.device = torch.device(device)
        self.limits = limits
        self.zygotes = Zygotes(device)
        self.contestants: dict[str, Contestant] = {}
        self.case: Case | None = None
        self.trusted: Contestant | None = None
        self.trusted_case: Case | None = None

    def rule(
        self,
        problem: load.Problem,
        solution: load.Solution,
        cell: Cell,
        baselines: tuple[str, ...],
        entropy: bytes,
    ) -> Ruling:
        """Build, check and time one solution on one cell."""
        unsupported = self._prepare_case(problem, cell, entropy)
        if unsupported is not None:
            return Ruling(unsupported)
        case = self._current()
        case.begin(entropy)
        flags: list[str] = []
        isolation: dict[str, Any] = {}
        checked: Checked | None = None
        try:
            contestant = self._contestant(solution)
            isolation = contestant.isolation
            bench = Bench(case, self.limits)
            bench.join(measure.SOLUTION, contestant, 0)
            checked = self._check(bench, contestant, solution)
            if any(launch.code for launch in contestant.launches):
                flags.append("autotune_first_config")
            timed = None
            if case.device.type == "cuda" and baselines and cell.sweep != "hidden":
                timed = self._time(bench, baselines, flags)
            contestant.leave(self.limits.call_s)
        except Foul as foul:
            self._dismiss(solution)
            return Ruling(Failed(foul.status, foul.stage, foul.reason, foul.detail), isolation=isolation)
        except Exception:
            # the judge's own fault: whoever is in the middle of a call cannot be used again
            self._dismiss(solution)
            self._drop_trusted()
            raise
        if bench.seats[measure.SOLUTION][0].copied_outputs:
            flags.append("copied_output")
        return Ruling(None, checked, timed, isolation, tuple(flags))

    def entropy_of(self, entropy: bytes) -> str:
        """All that a ruling was drawn from: 16 bytes for the parameters, 16 for the solution's inputs."""
        return ((self.case.entropy if self.case else b"") + entropy).hex()

    def _current(self) -> Case:
        assert self.case is not None  # noqa: S101 - set by _prepare_case
        return self.case

    def _prepare_case(self, problem: load.Problem, cell: Cell, entropy: bytes) -> Failed | None:
        """Make the cell's private side, shared by solutions that follow on the same cell."""
        if self.case is not None and self.case.cell == cell and self.case.problem.digest == problem.digest:
            return None
        self.case = None
        self._release_trusted()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        reason = shortage(problem, cell, self.device)
        if reason:
            return Failed(Status.UNSUPPORTED, "plan", reason)
        self.case = Case(problem, cell, self.device, entropy)
        return None

    def _contestant(self, solution: load.Solution) -> Contestant:
        known = self.contestants.pop(solution.digest, None)
        if known is None:
            while len(self.contestants) >= MAX_CONTESTANTS:
                self.contestants.pop(next(iter(self.contestants))).close()
            known = Contestant(self.zygotes, self.limits.memory_bytes)
        self.contestants[solution.digest] = known  # the last one used stands last
        return known

    def _dismiss(self, solution: load.Solution) -> None:
        contestant = self.contestants.pop(solution.digest, None)
        if contestant is not None:
            contestant.close()

    def _seat(self, contestant: Contestant, job: dict[str, Any]) -> float | None:
        """Build a job in a contestant and hand it the parameters."""
        case = self._current()
        contestant.build(job, 2 if case.device.type == "cuda" else 3, self.limits.build_s)
        for item in case.parameters.tensors:
            item.view(contestant.blocks[0]).copy_(case.state[item.name])
        if case.device.type == "cuda":
            torch.cuda.synchronize()
        return contestant.load(self.limits.build_s)

    def _check(self, bench: Bench, contestant: Contestant, solution: load.Solution) -> Checked:
        """Check several calls in full: the first on the problem's own inputs, the others on extreme ones.

        Timed calls, which are checked too, have the whole mixture.
        """
        case = bench.case
        prepare_us = self._seat(
            contestant, case.job(solution.source, solution.digest, solution.name, "ModelNew", ())
        )
        tally = check.Tally()
        close = False
        calls = CHECK_CALLS
        for index in range(calls):
            if index:
                case.draw(1, bench.master, EXTREMES[(index - 1) % len(EXTREMES)])
            else:
                case.draw_own(bench.master)
            self._call_alone(bench, Call.FORWARD if index else Call.WITNESS)
            self._hold(bench, contestant, tally, 0)
            if index == 0:
                close = tally.kernelbench_close
                bench.prove_outputs(measure.SOLUTION)
            bench.poison()
        return Checked(
            tally.errors,
            close,
            calls,
            tuple(_launch(f.text, f.args) for f in contestant.launches),
            prepare_us,
        )

    def _call_alone(self, bench: Bench, kind: Call) -> None:
        """Call the solution with nothing else to do for the device: what keeps it busy is the solution's."""
        try:
            bench.call(measure.SOLUTION, kind, 1)
        except measure.Disturbed as disturbed:
            raise Foul(Status.TIMEOUT, "check", str(disturbed)) from disturbed

    def _hold(
        self, bench: Bench, contestant: Contestant, tally: check.Tally, call: int, sample: int | None = None
    ) -> None:
        """Hold one call's snapshot against the oracle: all of it, or one sample."""
        case = bench.case
        bench.require_intact_inputs(contestant, call + 1)
        count = len(case.expected)
        outputs = bench.snapshots[call * count : (call + 1) * count]
        inputs = case.inputs.views(bench.master, call * case.inputs.size)
        if sample is not None:
            part = slice(sample, sample + 1)
            outputs = [y[part] for y in outputs]
            inputs = [x[part] if isinstance(x, torch.Tensor) else x for x in inputs]
        check.compare(outputs, inputs, case.oracle, case.reached, case.generator, tally)
        if tally.wrong:
            raise Foul(Status.WRONG, "check", tally.wrong)

    def _time(self, bench: Bench, baselines: tuple[str, ...], flags: list[str]) -> Timed | None:
        """Time the solution against the baselines, or say in a flag why there are no times."""
        try:
            return self._rounds(bench, baselines)
        except NoBaseline as failure:
            self._drop_trusted()
            flags.append(f"no_baseline: {failure}")
        except measure.Disturbed as disturbed:
            flags.append(f"disturbed: {disturbed}")
        return None

    def _rounds(self, bench: Bench, baselines: tuple[str, ...]) -> Timed:
        """Run the rounds, checking what is timed."""
        trusted = self._trusted(baselines)
        for seat, name in enumerate(baselines):
            bench.join(name, trusted, seat)
        bench.seated[trusted.identity] = -1
        rng = random.Random(secrets.randbits(64))  # noqa: S311 - an order, no secret
        inspector = _Inspector(self, bench, rng)
        bench.checker = inspector.inspect
        eligible = [b for b in baselines if import_module(f"runner.baselines.{b}").HEADLINE]
        # asked for baselines of which none may be the headline, compare with those
        eligible = eligible or list(baselines)
        settings = measure.Settings(target=self.limits.target, budget_s=self.limits.timing_s)
        timed = measure.measure(bench, baselines, eligible, rng, settings)
        inspector.thorough = True
        bench.fresh(timed.samples[0].calls)
        bench.sample(measure.SOLUTION, timed.samples[0].calls)
        samples = tuple(replace(s, config={**s.config, **self._config(s.variant)}) for s in timed.samples)
        return replace(timed, samples=samples, checked_calls=inspector.checked)

    def _config(self, variant: str) -> dict[str, Any]:
        """What a row must say of a variant: TF32, and for baselines cuDNN's flags and the layout."""
        config: dict[str, Any] = {"allow_tf32": self._current().cell.arithmetic != "fp32"}
        if variant != measure.SOLUTION:
            module = import_module(f"runner.baselines.{variant}")
            config |= {**module.FLAGS, "layout": module.LAYOUT}
        return config

    def _trusted(self, baselines: tuple[str, ...]) -> Contestant:
        """The baselines' process, built for the current cell."""
        case = self._current()
        if self.trusted is not None and self.trusted_case is case:
            return self.trusted
        if self.trusted is None:
            self.trusted = Contestant(self.zygotes, self.limits.memory_bytes)
        try:
            source, digest = case.problem.source, case.problem.digest
            self._seat(self.trusted, case.job(source, digest, "reference", "Model", baselines))
        except Foul as foul:
            raise NoBaseline(foul) from foul
        self.trusted_case = case
        return self.trusted

    def _release_trusted(self) -> None:
        if self.trusted is not None and self.trusted_case is not None:
            try:
                self.trusted.leave(self.limits.call_s)
            except Foul:
                self._drop_trusted()
        self.trusted_case = None

    def _drop_trusted(self) -> None:
        if self.trusted is not None:
            self.trusted.close()
        self.trusted = self.trusted_case = None

    def close(self) -> None:
        """Let all processes go."""
        for contestant in (*self.contestants.values(), *([self.trusted] if self.trusted else [])):
            contestant.close()
        self.zygotes.close()


class _Inspector:
    """Checks timed calls after the fact: first, last and one in sixteen in full, others by a random slice."""

    def __init__(self, referee: Referee, bench: Bench, rng: random.Random) -> None:
        self.referee, self.bench, self.rng = referee, bench, rng
        self.seen = 0
        self.checked = 0
        self.thorough = False

    def inspect(self, calls: int) -> None:
        """Check what was just timed, or raise Foul."""
        full = self.thorough or self.seen == 0 or self.rng.randrange(FULL_CHECK_EVERY) == 0
        self.seen += 1
        case, tally = self.bench.case, check.Tally()
        contestant, _ = self.bench.seats[measure.SOLUTION]
        call = self.rng.randrange(calls)
        if full:
            self.referee._hold(self.bench, contestant, tally, call)  # noqa: SLF001 - two parts of one judge
        elif case.reached is not None:
            sample = self.rng.randrange(len(case.expected[0]))
            self.referee._hold(self.bench, contestant, tally, call, sample)  # noqa: SLF001
        else:
            return
        self.checked += 1


def _launch(kernel: str, args: tuple[int, ...]) -> Launch:
    x, y, z, warps, registers, spills, shared = args[:7]
    known = registers >= 0
    return Launch(
        kernel,
        (x, y, z),
        warps,
        registers if known else None,
        spills if known else None,
        shared if shared >= 0 else None,
    )
