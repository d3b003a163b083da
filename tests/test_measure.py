"""Rounds under a clock of their own: what interleaving, pilots, nulls and limits do to the numbers."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import permutations
from math import exp, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import analyse, measure
from runner.analyse import FIRST_LOOK, compare
from runner.measure import (
    LONGEST_WINDOW_US,
    MAX_INVALID_SHARE,
    PILOT_ROUNDS,
    SOLUTION,
    WINDOW_US,
    Disturbed,
    Settings,
    Window,
    calls_per_sample,
)
from runner.schema import Samples, Timed, Verdict


@dataclass
class FakeBench:
    """Variants take `times_us` a call behind a null of their process; time passes, nothing else happens.

    Each window is `drift` times longer than the one before. `noise` is a standard deviation, as a share.
    """

    times_us: dict[str, float]
    processes: dict[str, str] = field(default_factory=dict)
    nulls_us: dict[str, float] = field(default_factory=dict)
    drift: float = 1.0
    noise: float = 0.0
    max_calls: int = 16
    now_s: float = 0.0
    windows: int = 0
    disturbed: set[int] = field(default_factory=set)
    log: list[tuple[str, str, int]] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311 - repeatable

    def clock(self) -> float:
        return self.now_s

    def fresh(self, calls: int) -> None:
        self.log.append(("fresh", "", calls))

    def sample(self, variant: str, calls: int) -> Window:
        self.log.append(("sample", variant, calls))
        self.windows += 1
        if self.windows in self.disturbed:
            raise Disturbed
        device_us = calls * self.times_us[variant] * self.drift**self.windows
        device_us *= exp(self.random.gauss(0, self.noise))
        window_us = device_us + self.null_us(variant)
        self.now_s += window_us / 1e6
        return Window(window_us, device_us, 5.0 * calls)

    def null(self, variant: str, calls: int) -> float:
        self.log.append(("null", variant, calls))
        self.now_s += self.null_us(variant) / 1e6
        return self.null_us(variant)

    def null_us(self, variant: str) -> float:
        return self.nulls_us.get(self.process_of(variant), 20.0)

    def process_of(self, variant: str) -> str:
        return self.processes.get(variant, "own" if variant == SOLUTION else "trusted")

    def l2(self, calls: int) -> str:
        return "cold" if calls == 1 else "warm"


LONG_S = 1e9
NEVER = -1.0  # a half-width that no look finds
BASELINES = ("eager", "cudnn", "channels_last")
ELIGIBLE = ("cudnn", "channels_last")
TIMES_US = {SOLUTION: 100.0, "eager": 300.0, "cudnn": 200.0, "channels_last": 250.0}


def take(bench: FakeBench, *, seed: int = 0, budget_s: float = LONG_S, **settings: float) -> Timed:
    rng = random.Random(seed)  # noqa: S311 - repeatable
    chosen = Settings(budget_s=budget_s, **settings)  # type: ignore[arg-type]
    return measure.measure(bench, BASELINES, ELIGIBLE, rng, chosen, bench.clock)


def by_variant(timed: Timed) -> dict[str, Samples]:
    return {s.variant: s for s in timed.samples}


def rounds_of(bench: FakeBench) -> list[list[str]]:
    """The variants in the order of each round, the pilot's first; estimates are single calls."""
    rounds: list[list[str]] = []
    for kind, variant, calls in bench.log:
        if kind == "fresh":
            rounds.append([])
        elif kind == "sample" and calls > 1:
            rounds[-1].append(variant)
    return [order for order in rounds if order]


@pytest.mark.parametrize("drift", [1.01, 0.99])
def test_a_clock_that_changes_by_one_per_cent_a_call_keeps_a_twofold_speedup(drift: float) -> None:
    """Over the rounds the times grow or shrink more than a hundredfold; a ratio of medians would show it."""
    times_us = {v: t * (1.0 if drift > 1 else 1e6) for v, t in TIMES_US.items()}
    bench = FakeBench(times_us, drift=drift, nulls_us={"own": 0.0, "trusted": 0.0})
    timed = take(bench, target=NEVER)
    samples = by_variant(timed)
    found = compare(samples[SOLUTION].times_us, samples["cudnn"].times_us, "cudnn")
    assert max(samples[SOLUTION].times_us) / min(samples[SOLUTION].times_us) > 10
    assert found.rounds == timed.rounds == measure.MAX_ROUNDS
    # the solution is 1.5 windows earlier or later than the baseline at most, in random order
    assert found.speedup == pytest.approx(2.0, rel=0.011)
    assert found.low <= 2.0 <= found.high
    assert found.verdict == Verdict.FASTER


def test_all_orders_occur_and_each_round_has_every_variant_once() -> None:
    bench = FakeBench(TIMES_US)
    take(bench, target=NEVER, max_rounds=96)
    pilot, rounds = rounds_of(bench)[:PILOT_ROUNDS], rounds_of(bench)[PILOT_ROUNDS:]
    assert all(Counter(order) == Counter([SOLUTION, *BASELINES]) for order in pilot)
    counts = Counter(map(tuple, rounds))
    assert set(counts) == set(permutations([SOLUTION, "eager", "cudnn"]))
    assert min(counts.values()) >= 6  # 16 expected


def test_all_variants_of_a_round_get_the_same_fresh_inputs() -> None:
    bench = FakeBench(TIMES_US)
    take(bench)
    kinds = "".join(kind[0] for kind, _, calls in bench.log if calls > 1)
    assert kinds.startswith("f")
    assert all(part.count("s") in (3, 4) for part in kinds.split("f")[1:])


def test_the_headline_is_chosen_on_the_pilot_and_measured_anew() -> None:
    bench = FakeBench(TIMES_US)
    timed = take(bench)
    samples = by_variant(timed)
    assert timed.headline == "cudnn"
    assert set(samples) == {SOLUTION, *BASELINES}
    for variant in (SOLUTION, "cudnn", "eager"):
        assert len(samples[variant].times_us) == timed.rounds
        assert "pilot" not in samples[variant].config
    assert samples["channels_last"].config == {"pilot": True}
    assert len(samples["channels_last"].times_us) == PILOT_ROUNDS
    # the pilot's own samples of the headline are not among those that decide
    assert Counter(v for kind, v, calls in bench.log if kind == "sample" and calls > 1) == {
        **dict.fromkeys((SOLUTION, "cudnn", "eager"), PILOT_ROUNDS + timed.rounds),
        "channels_last": PILOT_ROUNDS,
    }


def test_the_fastest_baseline_is_no_headline_unless_eligible() -> None:
    timed = take(FakeBench({**TIMES_US, "eager": 50.0}))
    assert timed.headline == "cudnn"
    assert len(by_variant(timed)["eager"].times_us) == timed.rounds


def test_without_an_eligible_baseline_there_is_nothing_to_measure() -> None:
    bench = FakeBench(TIMES_US)
    with pytest.raises(ValueError, match="eligible"):
        measure.measure(bench, ("eager",), (), random.Random(0), Settings(), bench.clock)  # noqa: S311


def test_a_lucky_pilot_does_not_flatter_the_headline() -> None:
    """Among equals the pilot picks the luckiest; what is published are other rounds."""
    speedups = []
    for seed in range(40):
        bench = FakeBench(dict.fromkeys([SOLUTION, *BASELINES], 100.0), noise=0.05)
        bench.random.seed(seed)
        samples = by_variant(timed := take(bench, seed=seed))
        speedups.append(compare(samples[SOLUTION].times_us, samples[timed.headline].times_us, "b").speedup)
    assert abs(sum(map(log, speedups)) / len(speedups)) < 0.005


def test_a_disturbed_round_is_run_again_and_counted() -> None:
    calm = take(FakeBench(TIMES_US), target=NEVER, max_rounds=40)
    estimates = 4 * len(TIMES_US)
    pilot = PILOT_ROUNDS * len(TIMES_US)
    bench = FakeBench(TIMES_US, disturbed={estimates + pilot + n for n in (2, 30, 31)})
    timed = take(bench, target=NEVER, max_rounds=40)
    assert (timed.rounds, timed.invalid_rounds) == (40, 3)
    assert (calm.rounds, calm.invalid_rounds) == (40, 0)
    assert all(len(s.times_us) == 40 for s in timed.samples if "pilot" not in s.config)
    # samples of a half-finished round are dropped for all variants
    assert by_variant(timed)["eager"].times_us == pytest.approx(by_variant(calm)["eager"].times_us)


@pytest.mark.parametrize("first", [1, 17, 20])
def test_a_disturbed_estimate_or_pilot_is_run_again(first: int) -> None:
    timed = take(FakeBench(TIMES_US, disturbed={first}))
    assert timed.headline == "cudnn"
    assert timed.invalid_rounds == 1
    assert len(by_variant(timed)["channels_last"].times_us) == PILOT_ROUNDS


def test_too_many_disturbances_end_the_measurement() -> None:
    estimates_and_pilot = (4 + PILOT_ROUNDS) * len(TIMES_US)
    after = estimates_and_pilot + 3 * 15  # fifteen good rounds
    bench = FakeBench(TIMES_US, disturbed=set(range(after + 1, after + 10_000)))
    timed = take(bench, max_rounds=80)
    assert timed.rounds == 15
    assert timed.invalid_rounds == int(MAX_INVALID_SHARE * 80) + 1


@pytest.mark.parametrize("calm_windows", [0, 5, 20, (4 + PILOT_ROUNDS) * len(TIMES_US)])
def test_a_device_that_is_never_idle_is_disturbed(calm_windows: int) -> None:
    """There is no time to report, so none is made up."""
    with pytest.raises(Disturbed):
        take(FakeBench(TIMES_US, disturbed=set(range(calm_windows + 1, 10_000))))


def test_each_process_has_its_own_null() -> None:
    bench = FakeBench(TIMES_US, nulls_us={"own": 500.0, "trusted": 20.0})
    timed = take(bench)
    for variant, samples in by_variant(timed).items():
        assert samples.times_us == pytest.approx([TIMES_US[variant]] * len(samples.times_us))
        assert samples.claims_us == pytest.approx([TIMES_US[variant]] * len(samples.times_us))
        assert samples.null_us == (500.0 if variant == SOLUTION else 20.0)
        assert samples.null_mad_us == 0.0
        assert samples.issue_us == 5.0
    assert timed.handshake_us == 500.0


def test_one_null_is_taken_per_process_and_round() -> None:
    bench = FakeBench(TIMES_US)
    timed = take(bench)
    taken = defaultdict(int)
    for kind, variant, calls in bench.log:
        taken[bench.process_of(variant)] += kind == "null" and calls > 1
    assert taken == {"own": PILOT_ROUNDS + timed.rounds, "trusted": PILOT_ROUNDS + timed.rounds}


def test_a_window_shorter_than_the_null_has_a_time_above_zero() -> None:
    bench = FakeBench({**TIMES_US, SOLUTION: -1.0})
    assert set(by_variant(take(bench))[SOLUTION].times_us) == {0.01}


@given(st.floats(0, 1e7), st.floats(1, 100), st.integers(1, 64))
@settings(database=None)
def test_calls_fill_the_window_and_no_window_is_too_long(fastest_us: float, spread: float, most: int) -> None:
    calls = calls_per_sample(fastest_us, fastest_us * spread, most)
    assert 1 <= calls <= most
    if calls > 1:
        assert calls * fastest_us * spread <= LONGEST_WINDOW_US
        assert (calls - 1) * fastest_us < WINDOW_US
    if calls < most and (calls + 1) * max(fastest_us * spread, 0.1) <= LONGEST_WINDOW_US:
        assert calls * max(fastest_us, 0.1) >= WINDOW_US


@pytest.mark.parametrize(
    ("fastest_us", "slowest_us", "most", "calls"),
    [
        (2000, 2000, 64, 1),
        (1999, 1999, 64, 2),
        (100, 100, 64, 20),
        (100, 100, 8, 8),
        (10, 10_000, 64, 6),
        (1, 1e6, 64, 1),
    ],
)
def test_calls_of_a_sample(fastest_us: float, slowest_us: float, most: int, calls: int) -> None:
    assert calls_per_sample(fastest_us, slowest_us, most) == calls


def test_all_samples_have_the_same_calls() -> None:
    bench = FakeBench({**TIMES_US, SOLUTION: 500.0}, max_calls=64)
    timed = take(bench)
    assert {s.calls for s in timed.samples} == {10}  # cudnn is the fastest with 200 us
    assert {s.l2 for s in timed.samples} == {"warm"}
    assert {calls for _, _, calls in bench.log} == {1, 10}


def test_a_quiet_series_stops_at_the_second_look() -> None:
    assert take(FakeBench(TIMES_US, noise=0.001)).rounds == FIRST_LOOK + analyse.LOOK_EVERY


def test_a_noisy_series_goes_on_to_the_most_rounds() -> None:
    assert take(FakeBench(TIMES_US, noise=0.2), max_rounds=60).rounds == 60


@pytest.mark.parametrize("budget_s", [0.0, 0.05])
def test_the_budget_never_ends_before_the_first_look(budget_s: float) -> None:
    assert take(FakeBench(TIMES_US, noise=0.2), budget_s=budget_s).rounds == FIRST_LOOK


def test_the_budget_ends_the_rounds() -> None:
    bench = FakeBench(TIMES_US, noise=0.2)
    timed = take(bench, budget_s=0.5)
    assert FIRST_LOOK < timed.rounds < measure.MAX_ROUNDS
    assert bench.now_s == pytest.approx(0.5, abs=0.02)
