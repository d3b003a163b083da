"""Rounds -> samples: interleaved, in random order, until the interval is narrow or the time is up.

Nothing here knows torch or a GPU: a `Bench` rings and waits, so the logic is tested with a fake one.
A sample is the judge's window around `calls` calls, less the null window of the same process, and beside
it what the contestant's own events say. `analyse.decided` tells which of the two series is used.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from runner import analyse
from runner.channel import Call
from runner.phases import BUSY, ROUNDS, Phases
from runner.schema import TARGET, Samples, Timed

SOLUTION = "solution"
#: A second solution, which the first is compared with.
RIVAL = "rival"
#: A window this long makes the handshake's noise of a few us a fraction of a per cent.
WINDOW_US = 2000.0
#: and no variant's window is longer than this for the sake of the fastest one.
LONGEST_WINDOW_US = 60_000.0
#: The pilot warms up until two blocks of rounds running agree; the last two choose the headline.
PILOT_BLOCK = 3
MAX_PILOT_BLOCKS = 8
SETTLED_WITHIN = 0.01
MAX_ROUNDS = 96
SINGLE_ROUNDS, SINGLE_ATTEMPTS = 9, 3
#: of the most rounds there can be, pilot and estimates included
MAX_INVALID_SHARE = 0.1

_Result = TypeVar("_Result")


class Disturbed(Exception):
    """A round was disturbed from outside; it is run again."""


class Stalled(Exception):
    """A variant waits for its own results before all is launched: no gate can stand before it."""


class Machine(Protocol):
    """What is known of the device after a round."""

    @property
    def sm_clock_mhz(self) -> int:
        """The SM clock, 0 where it is not known."""

    @property
    def reasons(self) -> int:
        """Why it is what it is: NVML's clock event reasons, a bit each."""


class Bench(Protocol):
    """What rounds are made of. `process_of` names the process that a variant runs in.

    `cold_us` is what a call alone may lose by parameters that a batch would find in L2, `busy_s` how long
    the device is known to have had work so far.
    """

    max_calls: int
    cold_us: float
    busy_s: float

    def fresh(self, calls: int) -> None:
        """Draw new inputs for the next round's calls."""

    def warm_up(self, variant: str, calls: int) -> None:
        """Run `calls` calls that nobody times. May raise Disturbed."""

    def sample(self, variant: str, calls: int) -> Window:
        """Run `calls` calls. May raise Disturbed and Stalled."""

    def null(self, variant: str, calls: int) -> Window:
        """Run an empty call in the variant's process."""

    def aside(self, variant: str, calls: int, kind: Call) -> float | None:
        """Return a time per call, in us, that decides nothing: WARM or STEADY."""

    def state(self) -> Machine:
        """Read the machine after a round. May raise Disturbed."""

    def is_trusted(self, variant: str) -> bool:
        """Whether the variant's claims are the judge's own."""

    def process_of(self, variant: str) -> str:
        """Name the variant's process."""

    def l2(self, calls: int) -> str:
        """Say what `calls` calls find in L2."""


@dataclass(frozen=True)
class Window:
    """One sample in us: the judge's window, the contestant's word on device time, the time to issue it."""

    window_us: float
    claim_us: float
    issue_us: float


@dataclass(frozen=True)
class Settings:
    """How long to measure. `target` is the half-width of the interval in log ratio."""

    target: float = TARGET
    budget_s: float = 1.0
    max_rounds: int = MAX_ROUNDS


@dataclass
class _Round:
    windows: dict[str, Window]
    nulls: dict[str, Window]
    machine: Machine


@dataclass
class _Patience:
    """Has what was disturbed run again, `most` times in all, and remembers why."""

    most: float
    spent: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def insist(self, attempt: Callable[[], _Result]) -> _Result:
        """Attempt until undisturbed, or let Disturbed pass once patience is spent."""
        while True:
            try:
                return attempt()
            except Disturbed as disturbed:
                self.spent += 1
                self.reasons[str(disturbed)] += 1
                if self.spent > self.most:
                    raise


def calls_per_sample(fastest_us: float, slowest_us: float, max_calls: int) -> int:
    """Choose the calls of a sample: enough for the window, all distinct inputs, not too long."""
    wanted = math.ceil(WINDOW_US / max(fastest_us, 0.1))
    affordable = int(LONGEST_WINDOW_US // max(slowest_us, 0.1))
    return max(1, min(wanted, affordable, max_calls))


def measure(
    bench: Bench,
    baselines: Sequence[str],
    eligible: Collection[str],
    always: Collection[str],
    rng: random.Random | None,
    settings: Settings,
    clock: Callable[[], float] = time.monotonic,
    phases: Phases | None = None,
) -> Timed:
    """Time the solution against `baselines`; one of the eligible is chosen on a pilot and then measured anew.

    After the pilot that one, the headline, goes on, and so do those that `always` do (eager as shipped):
    the faster of them is what a speed-up is over (`analyse.against_best`). The order
    within a round is drawn from `rng`; without one it stays as given, which only a test of its bias would
    want. `phases` is told what each part took. Raises ValueError when no baseline is eligible, Disturbed
    when the disturbances allowed are spent, and Stalled.
    """
    end = clock() + settings.budget_s
    phases = phases or Phases(clock)
    variants = [SOLUTION, *baselines]
    patience = _Patience(MAX_INVALID_SHARE * settings.max_rounds)
    with phases.phase("pilot"):
        estimates = {v: patience.insist(partial(_estimate, bench, v)) for v in variants}
        calls = calls_per_sample(min(estimates.values()), max(estimates.values()), bench.max_calls)
        pilot, settled = _pilot(bench, variants, calls, rng, patience)
    pilot_samples = _samples(pilot, variants, calls, bench)
    headline = analyse.headline(_by_events(bench, pilot_samples, eligible), eligible)
    kept = [v for v in variants if v in (SOLUTION, headline) or v in always]
    course = _Course(bench, rng, settings, patience, headline, phases, lambda: clock() < end)
    samples, rounds, batched = course.times(kept, calls)
    decides = analyse.clock_of(samples)
    dropped = [_as_pilot(analyse.by_clock(s, decides)) for s in pilot_samples if s.variant not in kept]
    with phases.phase("asides"):
        asides = [_aside(bench, s) if s.variant in (SOLUTION, headline) else s for s in samples]
    return Timed(
        samples=(*asides, *dropped),
        headline=headline,
        rounds=len(rounds),
        invalid_rounds=patience.spent,
        disturbances=dict(patience.reasons),
        checked_calls=0,
        handshake_us=max(s.null_us for s in samples),
        clock=decides,
        sm_clocks_mhz=tuple(r.machine.sm_clock_mhz for r in rounds if r.machine.sm_clock_mhz),
        clock_reasons=tuple(r.machine.reasons for r in rounds if r.machine.sm_clock_mhz),
        settled=settled,
        batched=batched,
        target=settings.target,
    )


@dataclass
class _Course:
    """Rounds under one set of rules."""

    bench: Bench
    rng: random.Random | None
    settings: Settings
    patience: _Patience
    headline: str
    phases: Phases
    has_time: Callable[[], bool]

    def times(self, variants: Sequence[str], calls: int) -> tuple[list[Samples], list[_Round], bool]:
        """Return what decides, the rounds it comes from, and whether a batch was cheaper than its calls."""
        busy_s = self.bench.busy_s
        with self.phases.phase(ROUNDS):
            rounds = self.run(variants, calls)
        self.phases.add(BUSY, self.bench.busy_s - busy_s)
        samples = _decided(self.bench, _samples(rounds, variants, calls, self.bench))
        if calls == 1:
            return samples, rounds, False
        with self.phases.phase("single calls"):
            alone = self.alone(variants)
        # claims show a gain of a few us that the judge's clock cannot, and the judge's clock what they hide
        pairs = [
            [analyse.by_claims(samples), analyse.by_claims(alone)],
            analyse.by_one_clock(samples, alone),
        ]
        cold_us = self.bench.cold_us
        if not any(_gains_by_batching(batch, single, self.headline, cold_us) for batch, single in pairs):
            if analyse.clock_of(samples) != analyse.clock_of(alone):
                return samples, rounds, False
            return [replace(s, single_us=_median_of(alone, s.variant)) for s in samples], rounds, False
        # nothing may be amortised over a batch: the slower way of calling counts
        samples, rounds, _ = self.times(variants, 1)
        return samples, rounds, True

    def run(self, variants: Sequence[str], calls: int) -> list[_Round]:
        """Run until the interval is narrow at two looks running, or rounds or time are up."""
        rounds: list[_Round] = []
        widths: list[float] = []
        while len(rounds) < self.settings.max_rounds and (
            len(rounds) < analyse.FIRST_LOOK or self.has_time()
        ):
            rounds.append(self.one(variants, calls))
            if analyse.is_look(len(rounds)):
                samples = _decided(self.bench, _samples(rounds, variants, calls, self.bench))
                widths.append(_width(samples, self.headline))
                if analyse.should_stop(widths, self.settings.target):
                    break
        return rounds

    def one(self, variants: Sequence[str], calls: int) -> _Round:
        """Run one round."""
        return self.patience.insist(partial(_round, self.bench, variants, calls, self.rng))

    def alone(self, variants: Sequence[str]) -> list[Samples]:
        """Sample single calls: what is gained by doing the calls of a batch together is not in them.

        The judge's clock is off by 10 to 40 us for one call: it decides only if no claims are believed in
        several attempts.
        """
        trusted = [v for v in variants if self.bench.is_trusted(v)][:1]
        few = list(dict.fromkeys([SOLUTION, self.headline, *trusted]))
        self.bench.fresh(1)
        for variant in few:
            self.patience.insist(partial(self.bench.warm_up, variant, 1))
        for _ in range(SINGLE_ATTEMPTS):
            rounds = [self.one(few, 1) for _ in range(SINGLE_ROUNDS)]
            samples = _decided(self.bench, _samples(rounds, few, 1, self.bench))
            if analyse.clock_of(samples) == analyse.CLAIM:
                break
        return samples


def _gains_by_batching(
    samples: Sequence[Samples], alone: Sequence[Samples], headline: str, cold_us: float
) -> bool:
    batch, single = ({s.variant: s for s in some} for some in (samples, alone))
    sides = (batch[SOLUTION], single[SOLUTION], batch[headline], single[headline])
    return analyse.gains_by_batching(*sides, cold_us)


def _median_of(samples: Sequence[Samples], variant: str) -> float | None:
    return next((analyse.median(s.times_us) for s in samples if s.variant == variant), None)


def _estimate(bench: Bench, variant: str) -> float:
    """Median of three single calls, in us, after one that warms the variant up."""
    bench.fresh(1)
    bench.warm_up(variant, 1)
    windows, nulls = [], []
    for _ in range(3):
        bench.fresh(1)
        windows.append(bench.sample(variant, 1).window_us)
        nulls.append(bench.null(variant, 1).window_us)
    return max(analyse.median(windows) - analyse.median(nulls), 1.0)


def _pilot(
    bench: Bench, variants: Sequence[str], calls: int, rng: random.Random | None, patience: _Patience
) -> tuple[list[_Round], bool]:
    """Run blocks of rounds until two running agree; returns those two, and whether all has settled."""
    bench.fresh(calls)
    for variant in variants:
        for _ in range(2):  # an allocator finds its order when it has all blocks
            patience.insist(partial(bench.warm_up, variant, calls))
    blocks: list[list[_Round]] = []
    agree = False
    while len(blocks) < MAX_PILOT_BLOCKS and not agree:
        blocks.append(
            [patience.insist(partial(_round, bench, variants, calls, rng)) for _ in range(PILOT_BLOCK)]
        )
        agree = len(blocks) > 1 and all(_agree(blocks[-2], blocks[-1], v) for v in variants)
    return [r for block in blocks[-2:] for r in block], agree and _clocks_agree(*blocks[-2:])


def _agree(before: Sequence[_Round], after: Sequence[_Round], variant: str) -> bool:
    """Compare the claims, which have no noise of the handshake; they decide nothing here."""
    return _near(*([r.windows[variant].claim_us for r in block] for block in (before, after)))


def _clocks_agree(before: Sequence[_Round], after: Sequence[_Round]) -> bool:
    """Compare the SM clocks. It is only told: what waits for memory settles before they do."""
    return _near(*([r.machine.sm_clock_mhz for r in block] for block in (before, after)))


def _near(before: Sequence[float], after: Sequence[float]) -> bool:
    first, second = analyse.median(before), analyse.median(after)
    return abs(first - second) <= SETTLED_WITHIN * max(first, second)


def _round(bench: Bench, variants: Sequence[str], calls: int, rng: random.Random | None) -> _Round:
    order = list(variants)
    if rng is not None:
        rng.shuffle(order)
    windows: dict[str, Window] = {}
    nulls: dict[str, Window] = {}
    bench.fresh(calls)
    for variant in order:
        windows[variant] = bench.sample(variant, calls)
        process = bench.process_of(variant)
        if process not in nulls:
            nulls[process] = bench.null(variant, calls)
    return _Round(windows, nulls, bench.state())


def _samples(rounds: Sequence[_Round], variants: Sequence[str], calls: int, bench: Bench) -> list[Samples]:
    """Subtract the process's median null of the same rounds from each window."""
    trusted = next((bench.process_of(v) for v in variants if bench.is_trusted(v)), None)
    honest_us = None if trusted is None else [r.nulls[trusted].window_us for r in rounds]
    samples = []
    for variant in variants:
        nulls_us = [r.nulls[bench.process_of(variant)].window_us for r in rounds]
        windows = [r.windows[variant] for r in rounds]
        null_us = analyse.null_of(nulls_us, None if bench.is_trusted(variant) else honest_us)
        # A window shorter than the null carries no time; the floor keeps its logarithm finite.
        samples.append(
            Samples(
                variant=variant,
                calls=calls,
                times_us=tuple(max((w.window_us - null_us) / calls, 0.01) for w in windows),
                claims_us=tuple(w.claim_us / calls for w in windows),
                null_us=null_us,
                null_mad_us=analyse.mad(nulls_us),
                issue_us=analyse.median([w.issue_us for w in windows]) / calls,
                l2=bench.l2(calls),
            )
        )
    return samples


def _aside(bench: Bench, samples: Samples) -> Samples:
    """Add the times that stand beside the one that decides."""
    warm_us, steady_us = (
        bench.aside(samples.variant, samples.calls, kind) for kind in (Call.WARM, Call.STEADY)
    )
    return replace(samples, warm_us=warm_us, steady_us=steady_us)


def _as_pilot(samples: Samples) -> Samples:
    return Samples(**{**vars(samples), "config": {**samples.config, "pilot": True}})


def _by_events(bench: Bench, samples: Sequence[Samples], eligible: Collection[str]) -> list[Samples]:
    """Have the events of the eligible decide, if all are trusted and have some.

    Who is trusted has no reason to lie, and the window's noise has chosen the slower one.
    """
    chosen = [s for s in samples if s.variant in eligible]
    known = all(bench.is_trusted(s.variant) and min(s.claims_us) > 0 for s in chosen)
    return [analyse.by_clock(s, analyse.CLAIM) for s in chosen] if known else chosen


def _decided(bench: Bench, samples: Sequence[Samples]) -> list[Samples]:
    trusted = [s.variant for s in samples if bench.is_trusted(s.variant)]
    return analyse.decided(samples, trusted)


def _width(samples: Sequence[Samples], headline: str) -> float:
    by_name = {s.variant: s.times_us for s in samples}
    rivals = [by_name[name] for name in (headline, analyse.AS_SHIPPED) if name in by_name]
    return analyse.half_width(by_name[SOLUTION], min(rivals, key=analyse.median))
