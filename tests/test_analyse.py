"""The estimator and its stopping rule on seeded series: coverage, false calls, bias."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from statistics import median as plain_median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runner.analyse import (
    AS_SHIPPED,
    CLAIM,
    JUDGE,
    RESOLUTION,
    against_best,
    autocorrelation,
    by_clock,
    by_one_clock,
    clock_of,
    compare,
    comparison,
    decided,
    diagnose,
    flags_of_comparison,
    gains_by_batching,
    half_width,
    headline,
    hodges_lehmann,
    interval_us,
    is_look,
    mad,
    median,
    should_stop,
    t_quantile,
    times_us,
    together,
)
from runner.schema import TARGET, Comparison, Samples, Timed, Verdict

Series = NDArray[np.float64]
Pair = tuple[Series, Series]
CAP_ROUNDS = 240


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def white(
    random: np.random.Generator, speedup: float = 1.0, noise: float = 0.01, time_us: float = 100.0
) -> Pair:
    """Return independent lognormal noise around a true speed-up, `noise` per side."""
    candidate, baseline = time_us * np.exp(noise * random.standard_normal((2, CAP_ROUNDS)))
    return candidate, baseline * speedup


def measured(pair: Pair, target: float = TARGET) -> Comparison:
    """Take rounds until the stopping rule or the cap ends them."""
    candidate, baseline = pair
    widths: list[float] = []
    rounds = 0
    while rounds < CAP_ROUNDS and not should_stop(widths, target):
        rounds += 1
        if is_look(rounds):
            widths.append(half_width(candidate[:rounds], baseline[:rounds]))
    return compare(candidate[:rounds], baseline[:rounds], "b", target)


def repeat(make: Callable[[np.random.Generator], Pair], runs: int) -> list[Comparison]:
    return [measured(make(rng(seed))) for seed in range(runs)]


def coverage(comparisons: list[Comparison], truth: float) -> float:
    return float(np.mean([c.low <= truth <= c.high for c in comparisons]))


def bias(comparisons: list[Comparison], truth: float = 1.0) -> float:
    return float(np.mean([math.log(c.speedup / truth) for c in comparisons]))


def test_order_statistics_cover_95_percent_at_every_number_of_rounds():
    """The sign test is exact: outside lies 2 * P(Binomial(n, 1/2) <= rank), whatever the noise."""
    for rounds in range(12, CAP_ROUNDS + 1):
        # a zigzag, so that neighbours do not look correlated; ratio k has rank k
        ranks = [k // 2 if k % 2 else rounds - 1 - k // 2 for k in range(rounds)]
        found = compare([1.0] * rounds, [math.exp(rank / 100) for rank in ranks], "b")
        low, high = round(100 * math.log(found.low)), round(100 * math.log(found.high))
        assert high == rounds - 1 - low
        outside = 2 * sum(math.comb(rounds, k) for k in range(low + 1)) / 2**rounds
        assert 0.012 < outside <= 0.05, rounds


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.02])
def test_coverage_under_the_stopping_rule(noise: float):
    found = repeat(lambda random: white(random, speedup=1.3, noise=noise), 1000)
    assert coverage(found, 1.3) >= 0.93
    assert abs(bias(found, 1.3)) < 1e-3


def test_coverage_holds_where_rounds_resemble_their_neighbours():
    """Carry-over from round to round: order statistics alone would cover 83 %."""

    def carried(random: np.random.Generator) -> Pair:
        noise = 0.03 * random.standard_normal(CAP_ROUNDS)
        for i in range(1, CAP_ROUNDS):
            noise[i] += 0.4 * noise[i - 1]
        return np.full(CAP_ROUNDS, 100.0), 100.0 * np.exp(noise)

    assert coverage(repeat(carried, 400), 1.0) >= 0.90


def test_a_against_a_makes_no_false_calls():
    for noise in (0.003, 0.01, 0.03):
        verdicts = [c.verdict for c in repeat(lambda random, noise=noise: white(random, noise=noise), 400)]
        assert verdicts.count(Verdict.FASTER) + verdicts.count(Verdict.SLOWER) <= 0.03 * len(verdicts)
    quiet = [c.verdict for c in repeat(lambda random: white(random, noise=0.003), 100)]
    assert quiet.count(Verdict.SAME) == len(quiet)


@pytest.mark.parametrize(("speedup", "verdict"), [(1.05, Verdict.FASTER), (0.95, Verdict.SLOWER)])
def test_a_real_difference_is_called(speedup: float, verdict: Verdict):
    found = [c.verdict for c in repeat(lambda random: white(random, speedup=speedup), 200)]
    assert found.count(verdict) >= 0.99 * len(found)


def test_drift_shared_by_both_sides_leaves_no_bias():
    """A clock that settles by 3 %: pairs are untouched, two separate blocks are not."""
    settling = 1 - 0.03 * np.exp(-np.arange(2 * CAP_ROUNDS) / 40)

    def drifting(random: np.random.Generator) -> Pair:
        candidate, baseline = white(random, noise=0.003)
        return candidate * settling[::2], baseline * settling[1::2]

    assert abs(bias(repeat(drifting, 300))) < 5e-4
    candidate, baseline = white(rng(0), noise=0.003)
    apart = baseline[:60] * settling[60:120] / (candidate[:60] * settling[:60])
    assert math.log(median(apart)) > 0.005


def test_outliers_neither_move_nor_widen_the_estimate():
    """One sample in twenty is hit by a neighbour and takes up to twice as long."""

    def hit(random: np.random.Generator) -> Pair:
        pair = np.array(white(random, noise=0.003))
        pair[random.random(pair.shape) < 0.05] *= 1 + random.random()
        return pair[0], pair[1]

    found = repeat(hit, 300)
    assert coverage(found, 1.0) >= 0.93
    assert np.std([math.log(c.speedup) for c in found]) < 2e-3


def test_a_tick_of_a_hundredth_of_the_time_is_harmless():
    def ticking(random: np.random.Generator) -> Pair:
        candidate, baseline = white(random, speedup=1.1, noise=0.005, time_us=50.0)
        return np.round(candidate / 0.5) * 0.5, np.round(baseline / 0.5) * 0.5

    assert abs(bias(repeat(ticking, 200), 1.1)) < 2e-3


def test_carry_over_within_a_round_needs_random_order():
    """A power-hungry variant slows whatever runs next by 2 %; five variants take turns."""

    def rounds(random: np.random.Generator, *, shuffled: bool) -> Pair:
        candidate, baseline = white(random, noise=0.003)
        order = np.array([random.permutation(5) if shuffled else range(5) for _ in range(CAP_ROUNDS)])
        turns = order.argsort(axis=1)
        after_hungry = turns[:, 1] == turns[:, 0] + 1
        return candidate, baseline * np.where(after_hungry, 1.02, 1.0)

    assert abs(bias(repeat(lambda random: rounds(random, shuffled=True), 200))) < 4e-3
    assert bias(repeat(lambda random: rounds(random, shuffled=False), 20)) > 0.019


def test_two_modes_are_flagged_and_one_is_not():
    def two_modes(random: np.random.Generator) -> Pair:
        candidate, baseline = white(random, noise=0.001)
        return candidate, baseline * np.where(random.random(CAP_ROUNDS) < 0.4, 1.03, 1.0)

    def flagged(make: Callable[[np.random.Generator], Pair]) -> float:
        return float(np.mean(["bimodal" in diagnose(*make(rng(seed))).flags for seed in range(60)]))

    assert flagged(two_modes) >= 0.9
    assert flagged(white) <= 0.2


def test_resemblance_of_neighbours_is_flagged():
    slow_wave = 0.02 * np.sin(np.arange(CAP_ROUNDS) / 10)
    candidate, baseline = white(rng(1), noise=0.003)
    found = diagnose(candidate, baseline * np.exp(slow_wave))
    assert "autocorrelated" in found.flags
    assert found.autocorrelation > 0.8
    assert "autocorrelated" not in diagnose(candidate, baseline).flags


def test_a_constant_series_raises_no_doubt():
    found = diagnose([2.0, 1.4] * 15, [3.0, 2.1] * 15)
    assert (found.autocorrelation, found.flags) == (0.0, ())
    assert found.mad < 1e-12


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.0] * 24, Verdict.SAME),
        # inside the margin it is SAME although every round was faster
        ([1.019] * 24, Verdict.SAME),
        ([1.021] * 24, Verdict.FASTER),
        ([0.979] * 24, Verdict.SLOWER),
        ([0.981, 1.019] * 12, Verdict.SAME),
        ([0.9, 1.1] * 12, Verdict.UNRESOLVED),
        ([1.5] * 11, Verdict.UNRESOLVED),
        ([1.5] * 12, Verdict.FASTER),
        ([1.0], Verdict.UNRESOLVED),
    ],
)
def test_verdict(ratios: list[float], verdict: Verdict):
    assert compare([1.0] * len(ratios), ratios, "eager").verdict == verdict


def test_the_margin_follows_the_target():
    assert compare([1.0] * 24, [1.05] * 24, "b", target=0.03).verdict == Verdict.SAME


def test_few_rounds_give_their_whole_range():
    found = compare([1.0, 1.0, 1.0], [1.1, 1.3, 1.2], "b")
    assert (found.low, found.speedup, found.high) == pytest.approx((1.1, 1.2, 1.3))
    assert found.rounds == 3


def test_twenty_four_rounds_use_the_seventh_from_each_end():
    zigzag = [1 + 0.01 * (k // 2 if k % 2 else 23 - k // 2) for k in range(24)]
    found = compare([1.0] * 24, zigzag, "b")
    assert (found.low, found.high) == pytest.approx((1.06, 1.17))


def test_looks_are_every_twelve_rounds_from_twenty_four():
    assert [rounds for rounds in range(61) if is_look(rounds)] == [24, 36, 48, 60]


@pytest.mark.parametrize(
    ("half_widths", "stop"),
    [
        ([], False),
        ([0.001], False),
        ([0.02, 0.01], False),
        ([0.01, 0.01], True),
        ([0.005, 0.02, 0.005], False),
    ],
)
def test_stopping_takes_two_narrow_looks_running(half_widths: list[float], stop: bool):
    assert should_stop(half_widths, target=0.01) is stop


def samples(variant: str, *times_us: float) -> Samples:
    return Samples(variant, 1, times_us, (), null_us=0.0, null_mad_us=0.0, issue_us=0.0, l2="cold")


def test_headline_is_the_fastest_eligible_baseline_by_median():
    timed = [
        samples("solution", 1.0),
        samples("eager", 5.0, 5.0, 5.0),
        samples("cudnn", 4.0, 4.0, 90.0),
        samples("channels_last", 1.0, 6.0, 6.0),
        samples("channels_last_free", 2.0),
        samples("compile"),
    ]
    assert headline(timed, {"eager", "cudnn", "channels_last"}) == "cudnn"
    assert headline(timed, {"eager", "compile"}) == "eager"
    for eligible in (set(), {"compile"}, {"nobody"}):
        with pytest.raises(ValueError, match="none of the eligible baselines"):
            headline(timed, eligible)


@pytest.mark.parametrize(
    ("candidate", "baseline"),
    [
        ([], []),
        ([1.0], []),
        ([1.0, 2.0], [1.0]),
        ([0.0], [1.0]),
        ([1.0], [-1.0]),
        ([math.nan], [1.0]),
        ([math.inf], [1.0]),
    ],
)
def test_what_is_no_pair_of_times_is_refused(candidate: list[float], baseline: list[float]):
    with pytest.raises(ValueError, match=r"pairs|positive"):
        compare(candidate, baseline, "b")


times = st.floats(0.01, 1e7)
pairs = st.lists(st.tuples(times, times), min_size=1, max_size=80)


@given(pairs)
def test_the_estimate_lies_in_its_interval(rounds):
    candidate, baseline = zip(*rounds, strict=True)
    found = compare(candidate, baseline, "b")
    assert found.low <= found.speedup * math.exp(-RESOLUTION) * (1 + 1e-12)
    assert found.speedup * math.exp(RESOLUTION) <= found.high * (1 + 1e-12)
    width, shown = half_width(candidate, baseline), math.log(found.high / found.low) / 2
    assert width <= shown + 1e-9
    assert shown <= width + RESOLUTION + 1e-9


@given(pairs)
def test_swapping_the_sides_inverts_the_comparison(rounds):
    candidate, baseline = zip(*rounds, strict=True)
    there, back = compare(candidate, baseline, "b"), compare(baseline, candidate, "b")
    assert (back.speedup, back.low, back.high) == pytest.approx(
        (1 / there.speedup, 1 / there.high, 1 / there.low)
    )


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_robust_estimates_are_what_their_definitions_say(values):
    pairwise = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2)]
    assert median(values) == pytest.approx(plain_median(values))
    assert mad(values) == pytest.approx(plain_median(abs(v - plain_median(values)) for v in values))
    assert hodges_lehmann(values) == pytest.approx(plain_median(pairwise))
    assert -1 <= autocorrelation(values) <= 1


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (19, 2.093), (39, 2.023)],
)
def test_t_quantile_against_the_table(freedom: int, expected: float):
    assert t_quantile(freedom) == pytest.approx(expected, rel=0.01)


def timed(pair: Pair, rounds: int = 24, clock: str = CLAIM) -> Timed:
    mine, best = (tuple(map(float, side[:rounds])) for side in pair)
    both = [samples("solution", *mine), samples("cudnn", *best)]
    if clock == CLAIM:
        both = [Samples(**{**vars(s), "bounds_us": tuple(2 * t for t in s.times_us)}) for s in both]
    return Timed(tuple(both), "cudnn", rounds, 1, 3, 9.0, clock, sm_clocks_mhz=(1980,) * rounds)


def test_one_process_is_compared_round_by_round():
    pair = white(rng(1), speedup=1.3)
    mine, best = (side[:24] for side in pair)
    assert comparison(timed(pair), "cudnn") == compare(mine, best, "cudnn")


def with_eager(timed: Timed, share: float, config: dict[str, object] | None = None) -> Timed:
    """`timed` with PyTorch as shipped beside it, at a share of the headline's times in each process."""
    eager = [
        replace(s, variant=AS_SHIPPED, times_us=tuple(share * t for t in s.times_us), config=config or {})
        for s in timed.samples
        if s.variant == timed.headline
    ]
    return replace(timed, samples=(*timed.samples, *eager))


@pytest.mark.parametrize("processes", [1, 5])
@pytest.mark.parametrize(("share", "best"), [(0.9, AS_SHIPPED), (1.1, "cudnn")])
def test_a_speedup_is_over_the_faster_of_the_pilots_choice_and_pytorch_as_shipped(
    share: float, best: str, processes: int
):
    runs = [timed(white(rng(seed), speedup=1.3)) for seed in range(processes)]
    both = with_eager(together(runs) if processes > 1 else runs[0], share)
    assert against_best(both) == comparison(both, best)
    assert against_best(both).speedup == pytest.approx(1.3 * min(share, 1.0), rel=0.01)


def dropped(timed: Timed, *shares: float) -> Timed:
    """`timed` with a baseline that ran in the pilot alone, at these shares of the headline's median."""
    headline_us = median([t for s in timed.samples if s.variant == timed.headline for t in s.times_us])
    (first,) = (s for s in timed.samples if s.variant == timed.headline and s.process == 0)
    times_us = tuple(share * headline_us for share in shares)
    pilot = replace(first, variant="channels_last", times_us=times_us, config={"pilot": True})
    return replace(timed, samples=(*timed.samples, pilot))


@pytest.mark.parametrize(
    "shares",
    [(1.1,) * 6, (1.0,) * 6, (0.99,) * 6, (0.7, 0.7, 0.7, 0.7, 0.7, 1.01)],
    ids=["slower", "equal", "within SAME", "not in all rounds"],
)
def test_what_ran_in_the_pilot_alone_is_not_compared(shares: tuple[float, ...]):
    alone = timed(white(rng(1), speedup=1.3))
    assert against_best(dropped(alone, *shares)) == comparison(alone, "cudnn")
    assert flags_of_comparison(dropped(alone, *shares), comparison(alone, "cudnn")) == []


@pytest.mark.parametrize("processes", [1, 5])
def test_what_the_pilot_dropped_though_it_was_faster_is_compared(processes: int):
    runs = [timed(white(rng(seed), speedup=1.3)) for seed in range(processes)]
    both = dropped(together(runs) if processes > 1 else runs[0], 0.79, 0.8, 0.8, 0.8, 0.81, 0.81)
    found = against_best(both)
    assert (found.baseline, found.rounds, found.verdict) == ("channels_last", 6, Verdict.UNRESOLVED)
    assert found.speedup == pytest.approx(1.3 * 0.8, rel=0.01)
    assert found.low < 1.3 * 0.79 < 1.3 * 0.81 < found.high
    assert flags_of_comparison(both, found) == ["wide", "best_in_pilot"]


def by_judge(pair: Pair, loss_us: float, calls: int) -> Timed:
    """Times of `pair` by a clock that adds a loss to each window of so many calls."""
    found = timed(pair, clock=JUDGE)
    samples = [
        replace(s, times_us=tuple(t + loss_us / calls for t in s.times_us), calls=calls, claims_us=())
        for s in found.samples
    ]
    return replace(found, samples=tuple(samples))


@pytest.mark.parametrize("calls", [1, 8, 64])
@pytest.mark.parametrize("speedup", [0.5, 1.0, 1.1, 3.0])
def test_an_interval_by_the_judges_clock_holds_what_windows_lose(speedup: float, calls: int):
    """The loss is in no scatter: it pulls the ratio towards 1 in every round alike."""
    pair = white(rng(4), speedup=speedup)
    for loss_us in (0.0, 50.0, 100.0):
        found = by_judge(pair, loss_us, calls)
        one = comparison(found, "cudnn")
        assert one.low < speedup < one.high
        assert one.verdict in (Verdict.UNRESOLVED, compare(*pair, "cudnn").verdict)
        low_us, high_us = interval_us(found, "solution")
        assert low_us < median(pair[0]) < high_us


def test_flags_are_of_the_comparison_that_is_shown():
    pair = white(rng(1), speedup=1.3)
    found = timed(pair)
    assert flags_of_comparison(found, comparison(found, "cudnn")) == []
    doubted = timed(pair, clock=JUDGE)
    assert "claim_mismatch" in flags_of_comparison(doubted, comparison(doubted, "cudnn"))


def test_an_interval_over_processes_holds_what_differs_from_process_to_process():
    """Within a process the noise is 0.3 %, between them 2 %: rounds alone would claim far too much."""
    found, alone = [], []
    for seed in range(300):
        random = rng(seed)
        runs = [
            timed(white(random, speedup=1.2 * math.exp(0.02 * random.standard_normal()), noise=0.003))
            for _ in range(5)
        ]
        found.append(comparison(together(runs), "cudnn"))
        alone.append(comparison(runs[0], "cudnn"))
    assert coverage(found, 1.2) >= 0.93
    assert coverage(alone, 1.2) < 0.3
    assert found[0].rounds == 120


def test_processes_are_joined_and_told_apart():
    runs = [timed(white(rng(seed))) for seed in range(3)]
    joined = together(runs)
    assert [(s.process, s.variant) for s in joined.samples] == list(
        itertools.product(range(3), ("solution", "cudnn"))
    )
    assert (joined.processes, joined.rounds, joined.invalid_rounds, joined.checked_calls) == (3, 72, 3, 9)
    assert len(joined.sm_clocks_mhz) == len(times_us(joined, "solution")) == 72
    assert joined.clock == CLAIM


def test_processes_are_never_compared_by_different_clocks():
    believed, doubted = timed(white(rng(1))), timed(white(rng(2)), clock=JUDGE)
    joined = together([believed, doubted])
    assert joined.clock == JUDGE
    assert joined.samples[0].times_us == believed.samples[0].bounds_us
    assert joined.samples[0].claims_us == believed.samples[0].times_us
    assert joined.samples[2].times_us == doubted.samples[0].times_us


def claimed(variant: str, claim_us: float, bound_us: float, calls: int = 10, rounds: int = 24) -> Samples:
    flat = (bound_us,) * rounds, (claim_us,) * rounds
    return Samples(variant, calls, *flat, null_us=0.0, null_mad_us=0.0, issue_us=0.0, l2="cold")


@given(
    st.floats(5.0, 1e4), st.floats(0.0, 150.0), st.floats(0.5, 1.5), st.integers(1, 64), st.floats(0.1, 1.0)
)
def test_a_claim_is_believed_as_far_as_honest_processes_lose(
    claim_us: float, loss_us: float, share: float, calls: int, forged: float
):
    """A window of the trusted process is `loss_us` longer than its events say, and so may others be."""
    trusted = claimed("cudnn", share * claim_us, share * claim_us + loss_us / calls, calls)
    honest = claimed("solution", claim_us, claim_us + (loss_us + 5.0) / calls, calls)
    expected = loss_us <= min(100.0, 0.12 * claim_us * calls)
    if clock_of(decided([honest, trusted], ["cudnn"])) == JUDGE:
        assert not expected
    liar = claimed("solution", forged * claim_us, claim_us + loss_us / calls, calls)
    found = decided([liar, trusted], ["cudnn"])
    # what is gained by lying is bounded, whatever is claimed
    gained_us = (liar.times_us[0] - found[0].times_us[0]) * calls
    window_us = found[0].times_us[0] * calls
    assert gained_us <= 0.0101 * window_us + min(loss_us, 100.0, 0.12 * window_us) + 15.1
    if clock_of(found) == JUDGE:
        assert [s.times_us for s in found] == [liar.times_us, trusted.times_us]


def test_what_the_trusted_process_loses_excuses_no_more_than_a_share_and_no_less():
    """41 us of a window of 640, as many cells of short layers have, are excused; of a call of 20, 3 are."""
    for calls, clock in ((32, CLAIM), (1, JUDGE)):
        pair = [claimed(v, 20.0, 20.0 + 41.0 / calls, calls) for v in ("solution", "cudnn")]
        assert clock_of(decided(pair, ["cudnn"])) == clock


def test_a_batch_and_its_calls_alone_are_compared_by_one_clock():
    batch = [by_clock(claimed(v, 25.0, 26.0, 32), CLAIM) for v in ("solution", "cudnn")]
    alone = [claimed(v, 26.0, 60.0, 1) for v in ("solution", "cudnn")]
    by_judge, same = by_one_clock(batch, alone)
    assert [s.times_us[0] for s in by_judge] == [26.0, 26.0]
    assert same == alone
    trusted = [by_clock(s, CLAIM) for s in alone]
    assert by_one_clock(batch, trusted) == [batch, trusted]


def test_noise_of_the_judges_clock_is_no_lie():
    """It scatters for all alike, and is asked of the trusted process."""
    random = rng(3)
    noisy = [
        Samples(
            variant,
            64,
            tuple(float(t) for t in 100 + 20 * random.standard_normal(24)),
            (100.0,) * 24,
            null_us=0.0,
            null_mad_us=0.0,
            issue_us=0.0,
            l2="cold",
        )
        for variant in ("solution", "cudnn")
    ]
    assert clock_of(decided(noisy, ["cudnn"])) == CLAIM


@pytest.mark.parametrize("delay_us", [1e3, 45e3, 60e3])
def test_a_solution_that_makes_its_own_noise_is_not_believed(delay_us: float):
    """Every second answer comes late: the spread of its own bounds would allow any claim."""
    late = tuple(2000.0 + delay_us * (n % 2) for n in range(24))
    liar = Samples(
        "solution", 1, late, (0.1 * 2000.0,) * 24, null_us=0.0, null_mad_us=0.0, issue_us=0.0, l2="cold"
    )
    assert clock_of(decided([liar, claimed("cudnn", 2000.0, 2030.0, calls=1)], ["cudnn"])) == JUDGE


@pytest.mark.parametrize(
    ("alone_us", "scatter_us", "gains"),
    [(117.0, 0.0, False), (129.0, 0.0, True), (129.0, 10.0, False), (170.0, 10.0, True)],
)
def test_a_batch_may_be_cheaper_by_a_share_and_by_noise(alone_us: float, scatter_us: float, gains: bool):
    """By the judge's clock 15 % of a call, 5 us, and three standard errors of the headline's single calls."""
    batch = claimed("solution", 0.0, 100.0)
    alone = claimed("solution", 0.0, alone_us, calls=1)
    best = claimed("cudnn", 0.0, 200.0)
    times = tuple(200.0 + scatter_us * sign for sign in (1, -1) * 12)
    best_alone = Samples("cudnn", 1, times, (), null_us=0.0, null_mad_us=0.0, issue_us=0.0, l2="cold")
    assert gains_by_batching(batch, alone, best, best_alone, cold_us=0.0) is gains


@pytest.mark.parametrize(
    ("best_us", "clock", "alone_us", "gains"),
    [
        (90.0, CLAIM, 135.0, False),  # slower than the headline, as what waits for each load is
        (90.0, CLAIM, 145.0, True),
        (200.0, JUDGE, 117.0, False),  # by a clock that is too coarse to tell
        (200.0, CLAIM, 117.0, True),
        (200.0, CLAIM, 110.0, False),
    ],
)
def test_what_is_faster_than_the_headline_may_gain_less_by_batching(
    best_us: float, clock: str, alone_us: float, gains: bool
):
    batch, alone = (by_clock(claimed("solution", t, t, n), clock) for t, n in ((100.0, 32), (alone_us, 1)))
    best = claimed("cudnn", best_us, best_us)
    assert gains_by_batching(batch, alone, best, best, cold_us=0.0) is gains
