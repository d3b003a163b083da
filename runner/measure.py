"""Rounds -> samples: interleaved, in random order, until the interval is narrow or the time is up.

Nothing here knows torch or a GPU: a `Bench` rings and waits, so the logic is tested with a fake one.
A sample is the judge's window around `calls` calls, less the null window of the same process.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from runner import analyse
from runner.schema import Samples, Timed

SOLUTION = "solution"
#: A window this long makes the handshake's noise of a few us a fraction of a per cent.
WINDOW_US = 2000.0
#: and no variant's window is longer than this for the sake of the fastest one.
LONGEST_WINDOW_US = 60_000.0
PILOT_ROUNDS = 6
MAX_ROUNDS = 96
#: of the most rounds there can be, pilot and estimates included
MAX_INVALID_SHARE = 0.1

_Result = TypeVar("_Result")


class Disturbed(Exception):
    """A round was disturbed from outside; it is run again."""


class Bench(Protocol):
    """What rounds are made of. `process_of` names the process that a variant runs in."""

    max_calls: int

    def fresh(self, calls: int) -> None:
        """Draw new inputs for the next round's calls."""

    def sample(self, variant: str, calls: int) -> Window:
        """Run `calls` calls. May raise Disturbed."""

    def null(self, variant: str, calls: int) -> float:
        """The window of an empty call in the variant's process, in us."""

    def process_of(self, variant: str) -> str:
        """Name the variant's process."""

    def l2(self, calls: int) -> str:
        """Say whether `calls` calls find their inputs in L2: `cold` or `warm`."""


@dataclass(frozen=True)
class Window:
    """One sample in us: the judge's window, and what the contestant says of device time and issuing."""

    window_us: float
    claim_us: float
    issue_us: float


@dataclass(frozen=True)
class Settings:
    """How long to measure. `target` is the half-width of the interval in log ratio."""

    target: float = analyse.TARGET
    budget_s: float = 1.0
    max_rounds: int = MAX_ROUNDS


@dataclass
class _Round:
    windows: dict[str, Window]
    nulls_us: dict[str, float]


@dataclass
class _Patience:
    """Has what was disturbed run again, `most` times in all."""

    most: float
    spent: int = 0

    def insist(self, attempt: Callable[[], _Result]) -> _Result:
        """Attempt until undisturbed, or let Disturbed pass once patience is spent."""
        while True:
            try:
                return attempt()
            except Disturbed:
                self.spent += 1
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
    rng: random.Random,
    settings: Settings,
    clock: Callable[[], float] = time.monotonic,
) -> Timed:
    """Time the solution against `baselines`; the headline is chosen on a pilot and then measured anew.

    Of the eligible baselines only the headline goes on after the pilot; those that are not eligible
    (eager as shipped) always do. Raises ValueError when no baseline is eligible, and Disturbed when the
    disturbances allowed are spent before the first round.
    """
    end = clock() + settings.budget_s
    variants = [SOLUTION, *baselines]
    patience = _Patience(MAX_INVALID_SHARE * settings.max_rounds)
    estimates = {v: patience.insist(partial(_estimate, bench, v)) for v in variants}
    calls = calls_per_sample(min(estimates.values()), max(estimates.values()), bench.max_calls)
    pilot = [patience.insist(partial(_round, bench, variants, calls, rng)) for _ in range(PILOT_ROUNDS)]
    pilot_samples = _samples(pilot, variants, calls, bench)
    headline = analyse.headline(pilot_samples, eligible)
    kept = [v for v in variants if v not in eligible or v == headline]
    rounds: list[_Round] = []
    widths: list[float] = []
    while len(rounds) < settings.max_rounds and (len(rounds) < analyse.FIRST_LOOK or clock() < end):
        try:
            rounds.append(patience.insist(partial(_round, bench, kept, calls, rng)))
        except Disturbed:
            if not rounds:
                raise
            break
        if analyse.is_look(len(rounds)):
            widths.append(_width(_samples(rounds, kept, calls, bench), headline))
            if analyse.should_stop(widths, settings.target):
                break
    samples = _samples(rounds, kept, calls, bench)
    dropped = [s for s in pilot_samples if s.variant not in kept]
    return Timed(
        samples=(*samples, *(_as_pilot(s) for s in dropped)),
        headline=headline,
        rounds=len(rounds),
        invalid_rounds=patience.spent,
        checked_calls=0,
        handshake_us=max(s.null_us for s in samples),
    )


def _estimate(bench: Bench, variant: str) -> float:
    """Median of three single calls, in us, after one that warms the variant up."""
    bench.fresh(1)
    bench.sample(variant, 1)
    windows, nulls = [], []
    for _ in range(3):
        bench.fresh(1)
        windows.append(bench.sample(variant, 1).window_us)
        nulls.append(bench.null(variant, 1))
    return max(analyse.median(windows) - analyse.median(nulls), 1.0)


def _round(bench: Bench, variants: Sequence[str], calls: int, rng: random.Random) -> _Round:
    order = list(variants)
    rng.shuffle(order)
    windows: dict[str, Window] = {}
    nulls: dict[str, float] = {}
    bench.fresh(calls)
    for variant in order:
        windows[variant] = bench.sample(variant, calls)
        process = bench.process_of(variant)
        if process not in nulls:
            nulls[process] = bench.null(variant, calls)
    return _Round(windows, nulls)


def _samples(rounds: Sequence[_Round], variants: Sequence[str], calls: int, bench: Bench) -> list[Samples]:
    """Subtract the process's median null of the same rounds from each window."""
    samples = []
    for variant in variants:
        process = bench.process_of(variant)
        nulls = [r.nulls_us[process] for r in rounds]
        null = analyse.median(nulls)
        # A window shorter than the null carries no time; the floor keeps its logarithm finite.
        windows = [r.windows[variant] for r in rounds]
        samples.append(
            Samples(
                variant=variant,
                calls=calls,
                times_us=tuple(max((w.window_us - null) / calls, 0.01) for w in windows),
                claims_us=tuple(w.claim_us / calls for w in windows),
                null_us=null,
                null_mad_us=analyse.mad(nulls),
                issue_us=analyse.median([w.issue_us for w in windows]) / calls,
                l2=bench.l2(calls),
            )
        )
    return samples


def _as_pilot(samples: Samples) -> Samples:
    return Samples(**{**vars(samples), "config": {**samples.config, "pilot": True}})


def _width(samples: Sequence[Samples], headline: str) -> float:
    by_name = {s.variant: s for s in samples}
    return analyse.half_width(by_name[SOLUTION].times_us, by_name[headline].times_us)
