"""What this machine's numbers are worth: equals, known ratios, order, processes, clocks, wave edges.

`python -m runner.judge.selftest cuda:0 [PART...]` prints one JSON line a finding; `python -m runner
selftest` shows them. Nothing here is a benchmark of a solution: the same text stands on both sides.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from runner import analyse, gpu_lock, load, measure
from runner.judge import boundary, edges, environment
from runner.judge.bench import Limits
from runner.judge.referee import Referee, Ruling
from runner.schema import PROTOCOL, TARGET, Cell, Shape, Timed

PROBLEM = "convtranspose2d"
FAST, SLOW = "phase_gemm", "gather_gemm"
#: A solution and a shape of `PROBLEM`, changed from its default: from about 20 us to 10 ms on an H100.
SUBJECTS: dict[str, tuple[str, Shape]] = {
    "b1": (FAST, {"batch": 1}),
    "b3": (FAST, {"batch": 3}),
    "b16": (FAST, {}),
    "b40": (FAST, {"batch": 40}),
    "g22": (SLOW, {"batch": 22}),
}
REPEATS, RATIO_REPEATS, PROCESSES = 12, 10, 10
#: Standard deviation that an estimate of equals may have, from SHORT_US a call on and below.
EQUAL_SD, SHORT_US, SHORT_SD = 0.003, 80.0, 0.01
FALSE_CALLS = 0.05
#: The judge's clock is good for a number alone where its bounds and its ratios of equals are off by no more.
CLOCK_SHARE = 0.02
RATIOS = (1.01, 1.02, 1.05)
RATIO_SHARE = 0.9
ORDER_BIAS = 0.004
PROCESS_CV = 0.005
#: Two policies of cuDNN, and by how much the time of one may depend on which came first.
POLICIES, PLAN_SHARE = ("eager", "cudnn"), 0.02
#: Of a kernel's name, which a library may make very long.
NAME_CHARS = 48
#: Where the driver tells no clock, one that is near enough to choose the length of a sleep.
USUAL_MHZ = 1900
#: The truth of a ratio is a share of a sleep so many times as long, whose own error counts as little.
LONGER = 4

#: What a finding says of where it was found.
_FACTS = ("gpu", "driver", "cuda", "cudnn", "torch", "triton")

_SLEEPER = """

class ModelNew(ModelNew):
    def forward(self, x):
        y = super().forward(x)
        torch.cuda._sleep({cycles})
        return y
"""


@dataclass(frozen=True)
class Finding:
    """One line of the selftest; `passed` is None where the figure is only told."""

    test: str
    subject: str
    figure: str
    passed: bool | None


@dataclass(frozen=True)
class Clock:
    """The judge's clock alone: its bound over the claims, less 1, and its worst ratio of equals."""

    time_us: float
    excess: float
    worst: float


def reliable_from_us(clocks: Sequence[Clock]) -> float | None:
    """Return the time of a call from which on the judge's clock alone decides, or None."""
    least = None
    for one in sorted(clocks, key=lambda clock: clock.time_us, reverse=True):
        if max(abs(one.excess), one.worst) > CLOCK_SHARE:
            break
        least = one.time_us
    return least


class Selftest:
    """Runs the parts on one device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.limits = Limits(target=TARGET)
        self.referee = Referee(device, self.limits)
        self.problem = load.find_problem(PROBLEM)
        self.solution = load.find_solution(FAST, PROBLEM)

    def parts(self) -> dict[str, Callable[[], Iterator[Finding]]]:
        """Name what there is to run."""
        return {
            "equals": self.equals,
            "order": self.order,
            "ratios": self.ratios,
            "processes": self.processes,
            "plans": self.plans,
            "edges": self.edges,
            "boundary": self.boundary,
        }

    def cell(self, subject: str) -> Cell:
        """Build a subject's cell."""
        shape = self.problem.outline.Shape(**SUBJECTS[subject][1])._asdict()
        return Cell("selftest", subject, shape, "fp32", "tf32")

    def duels(
        self,
        subject: str,
        other: load.Solution,
        repeats: int,
        *,
        single: bool = False,
        in_order: bool = False,
    ) -> list[Timed]:
        """Time the subject's solution against another text, again and again in the same two processes."""
        pair = (load.find_solution(SUBJECTS[subject][0], PROBLEM), other)
        assert self.referee.prepare_case(self.problem, self.cell(subject), os.urandom(16)) is None  # noqa: S101
        _, inspectors = self.referee.face(pair)
        if single:
            inspectors[0].bench.max_calls = 1
        flags: list[str] = []
        runs = [self.referee.timing(flags).duel(pair, inspectors, in_order=in_order) for _ in range(repeats)]
        self.referee.part(pair)
        return [run for run in runs if run is not None]

    def equals(self) -> Iterator[Finding]:
        """A solution against itself: spread, false verdicts, and both clocks."""
        wrong = total = 0
        clocks: dict[str, list[Clock]] = {"batched": [], "single": []}
        for subject, (name, _) in SUBJECTS.items():
            solution = load.find_solution(name, PROBLEM)
            runs = self.duels(subject, solution, REPEATS)
            found = [analyse.comparison(run, measure.RIVAL) for run in runs]
            time_us = _median_us(runs, measure.SOLUTION)
            spread = statistics.stdev(math.log(one.speedup) for one in found)
            limit = EQUAL_SD if time_us >= SHORT_US else SHORT_SD
            worst = max(abs(math.log(one.speedup)) for one in found)
            called = sum(str(one.verdict) in ("FASTER", "SLOWER") for one in found)
            inside = sum(one.low <= 1 <= one.high for one in found)
            wrong, total = wrong + called, total + len(found)
            calls = runs[0].samples[0].calls
            text = f"{time_us:.1f} us, {calls} calls a sample, {len(found)} repeats: SD {spread:.3%}, worst"
            text += f" {worst:.3%}, {inside} intervals hold 1, {called} called unequal, clock {runs[0].clock}"
            yield Finding("equals", subject, text, spread <= limit)
            alone = self.duels(subject, solution, 4, single=True)
            for how, found_of in (("batched", runs), ("single", alone)):
                clock = _clock(found_of)
                clocks[how].append(clock)
                text = f"{clock.time_us:.1f} us: bound {clock.excess:+.2%} of the claims;"
                text += f" equals by the judge's clock differ by {clock.worst:.2%} at most"
                yield Finding(f"judge's clock, {how}", subject, text, None)
        yield Finding("false verdicts", "all", f"{wrong} of {total}", wrong <= FALSE_CALLS * total)
        for how, seen in clocks.items():
            least_us = reliable_from_us(seen)
            text = "of none of these" if least_us is None else f"from {least_us:.0f} us on"
            yield Finding("judge's clock alone within 2 %", how, text, None)

    def order(self) -> Iterator[Finding]:
        """What it is worth to come first in every round."""
        runs = self.duels("b3", self.solution, 6, in_order=True)
        bias = statistics.mean(math.log(analyse.comparison(run, measure.RIVAL).speedup) for run in runs)
        yield Finding(
            "order bias", "b3", f"{bias:+.3%} with the solution always first", abs(bias) <= ORDER_BIAS
        )

    def ratios(self) -> Iterator[Finding]:
        """A solution against itself and a sleep, whose length is told by a longer one."""
        subject = "b16"
        runs = self.duels(subject, self._sleeper(1), RATIO_REPEATS)
        zero, time_us = _median_ratio(runs), _median_us(runs, measure.SOLUTION)
        clock_mhz = statistics.median([c for run in runs for c in run.sm_clocks_mhz] or [USUAL_MHZ])
        for ratio in RATIOS:
            cycles = round((ratio - 1) * time_us * clock_mhz)
            long = _median_ratio(self.duels(subject, self._sleeper(1 + LONGER * cycles), RATIO_REPEATS // 2))
            truth = zero + (long - zero) / LONGER
            runs = self.duels(subject, self._sleeper(1 + cycles), RATIO_REPEATS)
            found = [analyse.comparison(run, measure.RIVAL) for run in runs]
            inside = sum(one.low <= truth <= one.high for one in found)
            seen = sum(str(one.verdict) == "FASTER" for one in found)
            middle = _median_ratio(runs)
            text = f"{truth:.4f} in {inside} of {len(found)} intervals, median {middle:.4f}, off by"
            text += f" {abs(middle / truth - 1):.2%}, FASTER {seen}"
            yield Finding("known ratio", f"{subject} x{ratio}", text, inside >= RATIO_SHARE * len(found))

    def _sleeper(self, cycles: int) -> load.Solution:
        source = self.solution.source + _SLEEPER.format(cycles=cycles)
        return load.Solution("sleeper", Path("sleeper.py"), source)

    def processes(self) -> Iterator[Finding]:
        """The speed-up over cuDNN in fresh processes of both sides."""
        subject = "b16"
        self.referee.limits = replace(self.limits, processes=PROCESSES)
        ruling = self.referee.rule(
            self.problem, self.solution, self.cell(subject), ("cudnn",), os.urandom(16)
        )
        self.referee.limits = self.limits
        if ruling.timed is None:
            yield Finding("processes", subject, _no_times(ruling), passed=False)
            return
        speedups = [math.exp(ratio) for ratio in analyse.ratios_of_processes(ruling.timed, "cudnn")]
        spread = statistics.stdev(speedups) / statistics.mean(speedups)
        text = f"{len(speedups)} processes: speed-up {statistics.median(speedups):.3f}, CV {spread:.3%}"
        yield Finding("processes", subject, text, spread <= PROCESS_CV)

    def plans(self) -> Iterator[Finding]:
        """A thread keeps the cuDNN plan of its first call: each policy has its own, whoever comes first."""
        subject, runs = "b16", []
        for order in (POLICIES, POLICIES[::-1]):
            self.referee.company.drop_trusted()  # a new process has made no first call
            ruling = self.referee.rule(self.problem, self.solution, self.cell(subject), order, os.urandom(16))
            if ruling.timed is None:
                text = f"{order[0]} first: {_no_times(ruling)}"
                yield Finding("cuDNN plans", subject, text, passed=False)
                return
            runs.append(ruling.timed)
        for policy in POLICIES:
            first, second = (_median_us([run], policy) for run in runs)
            apart = abs(math.log(second / first))
            text = f"{first:.0f} us with {POLICIES[0]} first, {second:.0f} us with {POLICIES[1]} first:"
            text += f" {apart:.2%} apart; ran {_plan(runs, policy)}"
            yield Finding("cuDNN plans", f"{subject} {policy}", text, apart <= PLAN_SHARE)

    def edges(self) -> Iterator[Finding]:
        """Where a compute-bound kernel pays for a second wave: the SM count, and 128 in a green context."""
        sms = torch.cuda.get_device_properties(self.device).multi_processor_count
        for granted in (sms, 128) if sms > 128 else (sms,):
            self.referee.limits = replace(self.limits, sms=0 if granted == sms else granted)
            self.referee.granted[granted] = None  # no proof before what proves it
            times_us = edges.around(self.referee.rule_apart, granted)
            self.referee.limits = self.limits
            text = ", ".join(f"{n} programs {t:.1f} us" for n, t in times_us.items())
            yield Finding("wave edge", f"{granted} of {sms} SMs", text, edges.is_edge(times_us))

    def boundary(self) -> Iterator[Finding]:
        """What the sandbox costs."""
        cell = self.cell("b16")
        for found in boundary.costs(str(self.device), self.limits, self.problem, self.solution, cell):
            yield Finding(*found)


def _no_times(ruling: Ruling) -> str:
    reason = ruling.failed.reason if ruling.failed else ", ".join(ruling.flags)
    return f"no times: {reason}"


def _plan(runs: list[Timed], variant: str) -> str:
    """Name the kernels of a variant, once where all runs had the same."""
    plans = [" + ".join(k.name[:NAME_CHARS] for k in run.kernels.get(variant, ())) for run in runs]
    return ", then ".join(dict.fromkeys(plan or "unknown kernels" for plan in plans))


def _clock(runs: list[Timed]) -> Clock:
    """Compare the judge's clock with the claims, and with itself on equals."""
    pairs = [
        {s.variant: (s.bounds_us or s.times_us, s.claims_us or s.times_us) for s in run.samples}
        for run in runs
    ]
    mine = [p[measure.SOLUTION] for p in pairs]
    excess = statistics.median(analyse.median(b) / analyse.median(c) for b, c in mine) - 1
    ratios = [
        abs(math.log(analyse.median(p[measure.RIVAL][0]) / analyse.median(p[measure.SOLUTION][0])))
        for p in pairs
    ]
    return Clock(_median_us(runs, measure.SOLUTION), excess, max(ratios))


def _median_ratio(runs: list[Timed]) -> float:
    return analyse.median([analyse.comparison(run, measure.RIVAL).speedup for run in runs])


def _median_us(runs: list[Timed], variant: str) -> float:
    return analyse.median([t for run in runs for t in analyse.times_us(run, variant)])


def main(words: list[str]) -> None:
    """Run the parts named, or all; where it cannot have the device `{"busy": WHY}` or `{"unusable": WHY}`."""
    device, *chosen = words
    why = environment.unusable(device)
    if why:
        sys.stdout.write(json.dumps({"unusable": why}) + "\n")
        return
    try:
        with gpu_lock.hold(gpu_lock.uuid_of(device), device):
            _tell(device, chosen)
    except gpu_lock.DeviceBusy as busy:
        sys.stdout.write(json.dumps({"busy": str(busy)}) + "\n")


def _tell(device: str, chosen: list[str]) -> None:
    facts = environment.describe(device)
    machine = {"protocol": PROTOCOL, **{name: facts[name] for name in _FACTS}}
    torch.cuda.set_device(torch.device(device))
    selftest = Selftest(device)
    try:
        parts = selftest.parts()
        for name in chosen or parts:
            for finding in parts[name]():
                now = datetime.now(UTC).isoformat(timespec="seconds")
                sys.stdout.write(json.dumps(asdict(finding) | machine | {"time_utc": now}) + "\n")
                sys.stdout.flush()
    finally:
        selftest.referee.close()


if __name__ == "__main__":
    main(sys.argv[1:])
