"""Rounds under a clock of their own: what interleaving, pilots, nulls and limits do to the numbers."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from itertools import permutations
from math import exp, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import analyse, measure
from runner.analyse import FIRST_LOOK, compare
from runner.channel import Call
from runner.measure import (
    LONGEST_WINDOW_US,
    PILOT_BLOCK,
    SOLUTION,
    WINDOW_US,
    Disturbed,
    Settings,
    Window,
    calls_per_sample,
)
from runner.phases import Phases
from runner.schema import Samples, Timed, Verdict


@dataclass(frozen=True)
class State:
    """The machine of a fake bench."""

    sm_clock_mhz: int
    reasons: int = 0


@dataclass
class FakeBench:
    """Variants take `times_us` a call behind a null of their process; time passes, nothing else happens.

    Each window is `drift` times longer than the one before. `noise` is a standard deviation, as a share. The
    solution claims `forged` of its device time.
    """

    times_us: dict[str, float]
    processes: dict[str, str] = field(default_factory=dict)
    nulls_us: dict[str, float] = field(default_factory=dict)
    drift: float = 1.0
    noise: float = 0.0
    forged: float = 1.0
    max_calls: int = 16
    cold_us: float = 0.0
    busy_s: float = 0.0
    now_s: float = 0.0
    windows: int = 0
    states: int = 0
    disturbed: set[int] = field(default_factory=set)
    lost_us: dict[str, float] = field(default_factory=dict)  # of a window, and by no event
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
            raise Disturbed("busy")
        device_us = calls * self.times_us[variant] * self.drift**self.windows
        device_us *= exp(self.random.gauss(0, self.noise))
        window_us = device_us + self.null_us(variant) + self.lost_us.get(variant, 0.0)
        self.now_s += window_us / 1e6
        self.busy_s += window_us / 1e6
        claim_us = device_us * (self.forged if variant == SOLUTION else 1.0)
        return Window(window_us, claim_us, 9.0 + 5.0 * calls)

    def warm_up(self, variant: str, calls: int) -> None:
        self.log.append(("warm up", variant, calls))

    def null(self, variant: str, calls: int) -> Window:
        self.log.append(("null", variant, calls))
        self.now_s += self.null_us(variant) / 1e6
        return Window(self.null_us(variant), 0.0, 9.0)

    def aside(self, variant: str, calls: int, kind: Call) -> float | None:
        self.log.append((kind.name, variant, calls))
        return None if kind == Call.STEADY and variant != SOLUTION else self.times_us[variant] * 0.9

    def state(self) -> State:
        self.states += 1
        return State(1980 - self.states, self.states % 2 * 4)

    def null_us(self, variant: str) -> float:
        return self.nulls_us.get(self.process_of(variant), 20.0)

    def is_trusted(self, variant: str) -> bool:
        return variant != SOLUTION

    def process_of(self, variant: str) -> str:
        return self.processes.get(variant, "own" if variant == SOLUTION else "trusted")

    def l2(self, calls: int) -> str:
        return "cold" if calls == 1 else "warm"


PILOT_ROUNDS = 2 * PILOT_BLOCK  # where the first two blocks agree
ESTIMATES = 3  # single calls of each variant
LONG_S = 1e9
NEVER = -1.0  # a half-width that no look finds
BASELINES = ("eager", "cudnn", "channels_last")
ELIGIBLE = ("cudnn", "channels_last")
ALWAYS = ("eager",)
TIMES_US = {SOLUTION: 100.0, "eager": 300.0, "cudnn": 200.0, "channels_last": 250.0}


def take(bench: FakeBench, *, seed: int = 0, budget_s: float = LONG_S, **settings: float) -> Timed:
    rng = random.Random(seed)  # noqa: S311 - repeatable
    chosen = Settings(budget_s=budget_s, **settings)  # type: ignore[arg-type]
    return measure.measure(bench, BASELINES, ELIGIBLE, ALWAYS, rng, chosen, bench.clock)


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
    assert kinds.startswith("fwwwwwwwwf")  # all are warm before the first round
    assert all(part.count("s") in (3, 4) for part in kinds.split("f")[2:])


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


def test_the_headline_is_the_fastest_by_its_events_whatever_its_windows_lose() -> None:
    times_us = {**TIMES_US, "channels_last": 205.0}
    bench = FakeBench(times_us, lost_us={"cudnn": 500.0})
    assert take(bench).headline == "cudnn"


def test_without_events_of_all_the_windows_choose_the_headline() -> None:
    class NoEvents(FakeBench):
        def sample(self, variant: str, calls: int) -> Window:
            found = super().sample(variant, calls)
            return replace(found, claim_us=0.0) if variant == "channels_last" else found

    assert take(NoEvents(TIMES_US)).headline == "cudnn"


def test_the_fastest_baseline_is_no_headline_unless_eligible() -> None:
    timed = take(FakeBench({**TIMES_US, "eager": 50.0}))
    assert timed.headline == "cudnn"
    assert len(by_variant(timed)["eager"].times_us) == timed.rounds


def test_without_an_eligible_baseline_there_is_nothing_to_measure() -> None:
    bench = FakeBench(TIMES_US)
    with pytest.raises(ValueError, match="eligible"):
        measure.measure(bench, ("eager",), (), (), random.Random(0), Settings(), bench.clock)  # noqa: S311


def test_a_lucky_pilot_does_not_flatter_the_headline() -> None:
    """Among equals the pilot picks the luckiest; what is published are other rounds."""
    speedups = []
    for seed in range(40):
        bench = FakeBench(dict.fromkeys([SOLUTION, *BASELINES], 100.0), noise=0.05)
        bench.random.seed(seed)
        samples = by_variant(timed := take(bench, seed=seed))
        speedups.append(compare(samples[SOLUTION].times_us, samples[timed.headline].times_us, "b").speedup)
    assert abs(sum(map(log, speedups)) / len(speedups)) < 0.005


@dataclass
class NoisyEager(FakeBench):
    """PyTorch as shipped alone is noisy."""

    def sample(self, variant: str, calls: int) -> Window:
        self.noise = 0.1 if variant == "eager" else 0.0
        return super().sample(variant, calls)


@pytest.mark.parametrize(("eager_us", "looks"), [(300.0, 2), (150.0, 0)])
def test_rounds_end_when_the_interval_over_the_faster_baseline_is_narrow(eager_us: float, looks: int) -> None:
    timed = take(NoisyEager({**TIMES_US, "eager": eager_us}), target=1e-4)
    assert timed.headline == "cudnn"
    narrow = analyse.FIRST_LOOK + analyse.LOOK_EVERY * (looks - 1)
    assert timed.rounds == (narrow if looks else measure.MAX_ROUNDS)


def test_a_disturbed_round_is_run_again_and_counted() -> None:
    calm = take(FakeBench(TIMES_US), target=NEVER, max_rounds=40)
    estimates = ESTIMATES * len(TIMES_US)
    pilot = PILOT_ROUNDS * len(TIMES_US)
    bench = FakeBench(TIMES_US, disturbed={estimates + pilot + n for n in (2, 30, 31)})
    timed = take(bench, target=NEVER, max_rounds=40)
    assert (timed.rounds, timed.invalid_rounds) == (40, 3)
    assert timed.disturbances == {"busy": 3}
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


@pytest.mark.parametrize("calm_windows", [0, 5, 20, (ESTIMATES + PILOT_ROUNDS) * len(TIMES_US), 81])
def test_a_device_that_is_no_longer_idle_gives_no_times(calm_windows: int) -> None:
    """Not even those of the rounds before: who disturbs could choose when to begin."""
    with pytest.raises(Disturbed):
        take(FakeBench(TIMES_US, disturbed=set(range(calm_windows + 1, 10_000))))


def test_each_process_has_its_own_null() -> None:
    bench = FakeBench(TIMES_US, nulls_us={"own": 28.0, "trusted": 20.0})
    timed = take(bench)
    for variant, samples in by_variant(timed).items():
        assert samples.times_us == pytest.approx([TIMES_US[variant]] * len(samples.times_us))
        assert samples.bounds_us == pytest.approx([TIMES_US[variant]] * len(samples.times_us))
        assert samples.claims_us == ()
        assert samples.null_us == (28.0 if variant == SOLUTION else 20.0)
        assert samples.null_mad_us == 0.0
        assert samples.issue_us == pytest.approx(5.0 + 9.0 / samples.calls)
    assert timed.handshake_us == 28.0


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
    assert {calls for _, _, calls in bench.log} == {1, 10}  # single ones are for estimates, and for a check


def test_a_quiet_series_stops_at_the_second_look() -> None:
    assert take(FakeBench(TIMES_US, noise=0.001)).rounds == FIRST_LOOK + analyse.LOOK_EVERY


def test_a_noisy_series_goes_on_to_the_most_rounds() -> None:
    assert take(FakeBench(TIMES_US, noise=0.2), max_rounds=60).rounds == 60


@pytest.mark.parametrize("budget_s", [0.0, 0.05])
def test_the_budget_never_ends_before_the_first_look(budget_s: float) -> None:
    assert take(FakeBench(TIMES_US, noise=0.2), budget_s=budget_s).rounds == FIRST_LOOK


def test_the_budget_ends_the_rounds() -> None:
    bench = FakeBench(TIMES_US, noise=0.2)
    timed = take(bench, budget_s=0.8)
    assert FIRST_LOOK < timed.rounds < measure.MAX_ROUNDS
    assert bench.now_s == pytest.approx(0.8, abs=0.02)


def test_claims_decide_where_the_judges_clock_bears_them_out() -> None:
    timed = take(FakeBench(TIMES_US))
    assert timed.clock == "claim"
    assert by_variant(timed)[SOLUTION].times_us == pytest.approx([100.0] * timed.rounds)


@pytest.mark.parametrize("forged", [0.0, 0.5, 0.9])
def test_a_claim_that_hides_time_makes_the_judges_clock_decide_for_all(forged: float) -> None:
    timed = take(FakeBench(TIMES_US, forged=forged))
    assert timed.clock == "judge"
    for variant, samples in by_variant(timed).items():
        assert samples.bounds_us == ()
        assert samples.times_us == pytest.approx([TIMES_US[variant]] * len(samples.times_us))
    assert by_variant(timed)[SOLUTION].claims_us == pytest.approx([forged * 100.0] * timed.rounds)


def test_a_claim_above_the_bound_only_hurts_the_claimant() -> None:
    timed = take(FakeBench(TIMES_US, forged=1.5))
    assert timed.clock == "claim"
    assert by_variant(timed)[SOLUTION].times_us == pytest.approx([150.0] * timed.rounds)


def test_a_series_that_drifts_is_not_settled() -> None:
    assert take(FakeBench(TIMES_US)).settled
    assert not take(FakeBench(TIMES_US, drift=1.01), max_rounds=30).settled


def test_the_clock_of_the_device_is_kept_for_each_round() -> None:
    timed = take(FakeBench(TIMES_US))
    assert timed.sm_clocks_mhz == tuple(1979 - PILOT_ROUNDS - n for n in range(timed.rounds))
    assert timed.clock_reasons == (4, 0) * (timed.rounds // 2)


def test_times_that_agree_are_not_settled_while_the_clock_changes() -> None:
    class Throttled(FakeBench):
        def state(self) -> State:
            self.states += 1
            return State(1980 if self.states <= PILOT_BLOCK else 1900, 0)

    bench = Throttled(TIMES_US)
    assert not take(bench).settled
    # it is told only: the pilot is no longer for it
    assert bench.states == PILOT_ROUNDS + FIRST_LOOK + analyse.LOOK_EVERY + measure.SINGLE_ROUNDS


def test_times_that_decide_nothing_stand_beside_those_of_solution_and_headline() -> None:
    samples = by_variant(take(FakeBench(TIMES_US)))
    assert samples[SOLUTION].warm_us == pytest.approx(90.0)
    assert samples[SOLUTION].steady_us == pytest.approx(90.0)
    assert samples["cudnn"].warm_us == pytest.approx(180.0)
    assert samples["cudnn"].steady_us is None
    assert samples["eager"].warm_us is None


def test_a_contestant_that_lengthens_its_own_null_gains_nothing() -> None:
    """Half of its time is hidden in the null, and the claims say the rest."""
    bench = FakeBench(TIMES_US, nulls_us={"own": 20.0 + 16 * 50.0, "trusted": 20.0}, forged=0.5)
    timed = take(bench)
    mine = by_variant(timed)[SOLUTION]
    assert timed.clock == "judge"
    assert mine.null_us == pytest.approx(20.0 + analyse.NULL_NOISE_US)


def test_calls_that_are_cheaper_together_are_timed_alone() -> None:
    class Merging(FakeBench):
        def sample(self, variant: str, calls: int) -> Window:
            own = self.times_us
            if variant == SOLUTION:
                self.times_us = {**own, SOLUTION: own[SOLUTION] / calls}  # one launch for the whole batch
            try:
                return super().sample(variant, calls)
            finally:
                self.times_us = own

    timed = take(Merging({**TIMES_US, SOLUTION: 190.0}))
    assert timed.batched
    assert {s.calls for s in timed.samples if "pilot" not in s.config} == {1}
    assert by_variant(timed)[SOLUTION].times_us == pytest.approx([190.0] * timed.rounds)
    assert not take(FakeBench(TIMES_US)).batched
    # what its parameters cost when they are not in L2 is no gain by batching
    assert not take(Merging({**TIMES_US, SOLUTION: 190.0}, cold_us=160.0)).batched


def test_single_calls_that_the_judges_clock_cannot_resolve_are_no_gain_by_batching() -> None:
    """Alone, a call of 25 us has 40 us of the judge's own in its window, more or less."""

    class Coarse(FakeBench):
        def sample(self, variant: str, calls: int) -> Window:
            window = super().sample(variant, calls)
            return replace(window, window_us=window.window_us + 40.0 + self.random.gauss(0, 15.0))

    runs = []
    for seed in range(20):
        bench = Coarse({**TIMES_US, SOLUTION: 25.0}, max_calls=32, random=random.Random(seed))  # noqa: S311
        runs.append(take(bench, seed=seed))
    assert {run.clock for run in runs} == {"claim"}
    assert not any(run.batched for run in runs)
    assert {by_variant(run)[SOLUTION].single_us for run in runs} <= {None, 25.0}


def test_single_calls_are_taken_again_until_their_claims_are_believed() -> None:
    """The judge's clock is 40 us off in the first two attempts of three."""

    class Late(FakeBench):
        singles = 0

        def sample(self, variant: str, calls: int) -> Window:
            window = super().sample(variant, calls)
            batched = any(kind == "sample" and n > 1 for kind, _, n in self.log)
            self.singles += batched and calls == 1
            off_us = 40.0 if batched and calls == 1 and self.singles <= 2 * 9 * 2 else 0.0
            return replace(window, window_us=window.window_us + off_us)

    timed = take(Late({**TIMES_US, SOLUTION: 25.0}, max_calls=32))
    assert by_variant(timed)[SOLUTION].single_us == 25.0


def test_a_merged_batch_is_seen_by_its_claims_where_the_judges_clock_is_too_coarse() -> None:
    class Merging(FakeBench):
        def sample(self, variant: str, calls: int) -> Window:
            own = self.times_us
            if variant == SOLUTION and calls > 1:
                self.times_us = {**own, SOLUTION: own[SOLUTION] / 4}
            window = super().sample(variant, calls)
            self.times_us = own
            return replace(window, window_us=window.window_us + 50.0 + self.random.gauss(0, 15.0))

    for seed in range(10):
        bench = Merging({**TIMES_US, SOLUTION: 40.0}, max_calls=32, random=random.Random(seed))  # noqa: S311
        assert take(bench, seed=seed).batched


def test_each_phase_is_charged_its_own_time_and_rounds_what_the_device_had_to_do() -> None:
    class Slow(FakeBench):
        """Inputs are drawn, and the other times taken, by a host at work while the device idles."""

        def fresh(self, calls: int) -> None:
            super().fresh(calls)
            self.now_s += 0.1

        def aside(self, variant: str, calls: int, kind: Call) -> float | None:
            self.now_s += 2.0
            return super().aside(variant, calls, kind)

    bench = Slow(TIMES_US)
    phases = Phases(bench.clock)
    rng = random.Random(0)  # noqa: S311 - repeatable
    settings = Settings(budget_s=LONG_S)
    timed = measure.measure(bench, BASELINES, ELIGIBLE, ALWAYS, rng, settings, bench.clock, phases)
    spent_s = phases.so_far()
    pilots = len(TIMES_US) * (1 + ESTIMATES) + 1 + PILOT_ROUNDS
    assert spent_s["pilot"] == pytest.approx(0.1 * pilots, rel=0.1)
    assert spent_s["asides"] == 8.0
    assert spent_s["single calls"] == pytest.approx(0.1 * (1 + measure.SINGLE_ROUNDS), rel=0.1)
    assert spent_s["rounds"] == pytest.approx(0.1 * timed.rounds + spent_s["busy_in_rounds"], abs=0.01)
    assert 0 < spent_s["busy_in_rounds"] < 0.2 * spent_s["rounds"]
    assert spent_s["cell"] == pytest.approx(bench.now_s, abs=0.001)
    assert spent_s["cell"] == pytest.approx(
        sum(spent_s.values()) - spent_s["busy_in_rounds"] - spent_s["cell"], abs=0.01
    )


def test_a_phase_that_fails_has_taken_its_time() -> None:
    now_s = iter([0.0, 1.0, 3.5, 4.0])
    phases = Phases(lambda: next(now_s))
    with pytest.raises(Disturbed), phases.phase("rounds"):
        raise Disturbed("busy")
    assert phases.so_far() == {"rounds": 2.5, "cell": 4.0}


@pytest.mark.parametrize(
    ("noise", "target", "wide"), [(0.001, 0.01, False), (0.2, 0.01, True), (0.2, 1.0, False)]
)
def test_an_interval_wider_than_was_asked_for_is_known_by_its_samples(
    noise: float, target: float, wide: bool
) -> None:
    timed = take(FakeBench(TIMES_US, noise=noise), target=target)
    assert timed.target == target
    assert analyse.is_wide(analyse.against_best(timed), timed.target) is wide
