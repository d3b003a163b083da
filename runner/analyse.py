"""Samples -> comparisons and verdicts: paired log ratios, an order-statistic interval, a rule when to stop.

Times of one round belong together: what slows a whole round (clocks, temperature, neighbours) cancels in
the ratio. All widths are of natural logarithms of ratios, so 0.01 is one per cent.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.schema import TARGET, Comparison, Record, Samples, Timed, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

#: Student's t at 97.5 %, where no expansion is near.
_FEW_FREEDOMS = {1: 12.706, 2: 4.303}
#: Log ratios in the order of the rounds.
Ratios = NDArray[np.float64]

#: Fewer rounds than this carry no 95 % interval worth a verdict.
MIN_ROUNDS = 12
FIRST_LOOK = 24
LOOK_EVERY = 12
#: Above this lag-1 autocorrelation neighbouring rounds are not independent; blocks of this many nearly are.
CORRELATED = 0.2
BLOCK_ROUNDS = 6
#: No interval is narrower than this on either side, in log ratio. Repeats of equals in the same processes on
#: an H100 had a standard deviation of 0.03 to 0.06 % at 70 to 900 us, where rounds alone claimed 0.02 %.
RESOLUTION = 0.001

#: The baseline that runs in all rounds, whatever the pilot chose.
AS_SHIPPED = "eager"
#: Flags a comparison whose interval is wider than was asked for.
WIDE = "wide"
#: Flags one with a baseline that did not go through the rounds.
IN_PILOT = "best_in_pilot"
#: Flags times by the judge's clock.
CLAIM_MISMATCH = "claim_mismatch"
#: What depends on which comparison is shown.
_OF_A_COMPARISON = frozenset({WIDE, IN_PILOT, CLAIM_MISMATCH, "autocorrelated", "bimodal"})

CLAIM, JUDGE = "claim", "judge"
#: A bound may exceed a claim by this share, and by this much of a window, for an honest kernel.
CLAIM_SHARE = 0.01
CLAIM_NOISE_US = 15.0
#: What a trusted process loses between its events and the judge's clock, whatever a window holds, excuses no
#: more than this, and no more than this share of what is claimed.
MOST_LOSS_US, MOST_LOSS_SHARE = 100.0, 0.12
#: A null may be this much longer than that of the trusted process, in us.
NULL_NOISE_US = 10.0
#: Single calls take longer than those of a batch: parameters are cold, and so is the pipeline. More than
#: a share beyond what the headline's take, and this many us, is the gain of doing calls together.
BATCH_NOISE_US = 5.0
#: Of 119 cells recorded on an H100 that are faster than the headline, none lost more than 4.8 us beyond it.
#: The judge's clock cannot tell as much. What waits for each load in turn is slower, and lost up to 19 %.
FASTER_SHARE, FASTER_SHARE_BY_JUDGE, SLOWER_SHARE = 0.05, 0.15, 0.25


@dataclass(frozen=True)
class Diagnostics:
    """Doubts about an interval. `mad` and `hodges_lehmann` are in log ratios, as the median is.

    Flags: `autocorrelated` when neighbouring rounds resemble each other (the interval is then that of
    blocks, where that is wider), `bimodal` when the Hodges-Lehmann estimate lies farther from the median
    than half the half-width.
    """

    mad: float
    autocorrelation: float
    hodges_lehmann: float
    flags: tuple[str, ...]


def compare(
    candidate_us: Sequence[float], baseline_us: Sequence[float], baseline: str, target: float = TARGET
) -> Comparison:
    """Compare two series of times in microseconds, paired by round.

    The speed-up is exp(median log(baseline / candidate)), in an interval of about 95 %: by order
    statistics, or by the medians of blocks of six rounds where neighbouring rounds resemble each other and
    that is wider. The verdict is the first that holds: SAME, the interval lies within twice `target` of 1;
    FASTER, above 1; SLOWER, below 1; else, and always under 12 rounds, UNRESOLVED. An interval reaches at
    least `RESOLUTION` to either side. Raises ValueError unless all times are positive and come in pairs.
    """
    ratios = _log_ratios(candidate_us, baseline_us)
    low, high = _interval(ratios)
    return _comparison(baseline, median(ratios), (low, high), len(ratios), target)


def _comparison(
    baseline: str, centre: float, interval: tuple[float, float], rounds: int, target: float, loss: float = 0.0
) -> Comparison:
    low = min(interval[0], centre - RESOLUTION) - loss
    high = max(interval[1], centre + RESOLUTION) + loss
    verdict = _verdict(low, high, target) if rounds >= MIN_ROUNDS else Verdict.UNRESOLVED
    return Comparison(baseline, math.exp(centre), math.exp(low), math.exp(high), verdict, rounds)


def _verdict(low: float, high: float, target: float) -> Verdict:
    if max(-low, high) <= 2 * target:
        return Verdict.SAME
    if low > 0:
        return Verdict.FASTER
    return Verdict.SLOWER if high < 0 else Verdict.UNRESOLVED


def comparison(timed: Timed, baseline: str) -> Comparison:
    """Compare the solution with a baseline that went through all the rounds.

    Of one process this is `compare`. Of several it is the mean of the processes' own medians, and the
    interval is Student's t over them: what differs from process to process is then part of it. Where the
    judge's clock decides, the interval is wider by what a window may lose. Raises KeyError where there are no
    such samples, and ValueError as `compare` does.
    """
    ratios = [_log_ratios(*pair) for pair in _pairs(timed, baseline)]
    medians = np.array([median(one) for one in ratios])
    interval = _interval(ratios[0]) if len(ratios) == 1 else _over_medians(medians)
    loss = _loss(timed, "solution", baseline)
    return _comparison(baseline, float(medians.mean()), interval, sum(map(len, ratios)), TARGET, loss)


def _loss(timed: Timed, *variants: str) -> float:
    """Return how far, in log ratio, what windows lose can move times or ratios by the judge's clock.

    Events hold no such loss. It pulls a ratio towards 1, the more the shorter a window is, and no round
    differs by it, so no interval over rounds shows it.
    """
    if timed.clock != JUDGE:
        return 0.0
    windows_us = [s.calls * median(s.times_us) for s in timed.samples if s.variant in variants]
    # what may be nothing but loss is told within a factor of 10
    share = min(MOST_LOSS_US / min(windows_us), 0.9)
    return -math.log1p(-share)


def against_best(timed: Timed) -> Comparison:
    """Compare with the baseline that leaves the solution least.

    That is the pilot's choice or PyTorch as shipped, which both run in all the rounds, or one that the pilot
    dropped though it was faster than these beyond doubt: then its few rounds there are what is compared
    with. Raises as `comparison` does.
    """
    shipped = [s.variant for s in timed.samples if s.variant == AS_SHIPPED and not s.config.get("pilot")]
    found = [comparison(timed, name) for name in dict.fromkeys([timed.headline, *shipped])]
    best = min(found, key=lambda c: c.speedup)
    dropped = [_unpaired(timed, s) for s in _dropped_though_faster(timed, best.baseline)]
    return min([best, *dropped], key=lambda c: c.speedup)


def _dropped_though_faster(timed: Timed, best: str) -> list[Samples]:
    """Return what the pilot dropped that each of its rounds shows faster than `best`, and by more than SAME.

    What it drops could all have been its choice (`runner.baselines`): others run in all the rounds.
    """
    best_us = median(times_us(timed, best))
    margin = math.exp(2 * TARGET)
    return [
        s
        for s in timed.samples
        if s.config.get("pilot") and max(s.times_us) < best_us and margin * median(s.times_us) < best_us
    ]


def _unpaired(timed: Timed, baseline: Samples) -> Comparison:
    """Compare with samples of other rounds: an interval from the ends of both sides' intervals.

    All of six rounds, a pilot's, hold the median of many with 97 %; they are too few for a verdict.
    """
    low_us, high_us = interval_us(timed, "solution")
    centre = math.log(median(baseline.times_us) / median(times_us(timed, "solution")))
    interval = math.log(min(baseline.times_us) / high_us), math.log(max(baseline.times_us) / low_us)
    loss = _loss(timed, baseline.variant)
    return _comparison(baseline.variant, centre, interval, len(baseline.times_us), TARGET, loss)


def ratios_of_processes(timed: Timed, baseline: str) -> list[float]:
    """Return the median log ratio of each process. Raises as `comparison` does."""
    return [median(_log_ratios(*pair)) for pair in _pairs(timed, baseline)]


def _pairs(timed: Timed, baseline: str) -> list[tuple[Sequence[float], Sequence[float]]]:
    series = {(s.process, s.variant): s.times_us for s in timed.samples if not s.config.get("pilot")}
    processes = sorted({process for process, _ in series})
    for variant in ("solution", baseline):
        if any((process, variant) not in series for process in processes or [0]):
            raise KeyError(variant)
    return [(series[p, "solution"], series[p, baseline]) for p in processes]


def times_us(timed: Timed, variant: str) -> list[float]:
    """Return all times of a variant that decide, process after process."""
    return [t for s in timed.samples if s.variant == variant for t in s.times_us]


def interval_us(timed: Timed, variant: str) -> tuple[float, float]:
    """Return the interval of a variant's own time, of about 95 %, over rounds or processes as `comparison`'s.

    By the judge's clock its lower end leaves room for what a window may lose. Raises KeyError where there
    are no such samples.
    """
    series = [s.times_us for s in timed.samples if s.variant == variant and not s.config.get("pilot")]
    if not series:
        raise KeyError(variant)
    logarithms = [np.log(times) for times in series]
    if len(logarithms) == 1:
        low, high = _interval(logarithms[0])
    else:
        low, high = _over_medians(np.array([median(one) for one in logarithms]))
    return math.exp(low - _loss(timed, variant)), math.exp(high)


def half_width(candidate_us: Sequence[float], baseline_us: Sequence[float]) -> float:
    """Return half the width of the comparison's interval, in log ratio."""
    low, high = _interval(_log_ratios(candidate_us, baseline_us))
    return (high - low) / 2


def is_wide(found: Comparison, target: float) -> bool:
    """Tell whether the most rounds, or the most time, came before an interval as narrow as asked for."""
    return math.log(found.high / found.low) / 2 > target


def flags_of(record: Record) -> tuple[str, ...]:
    """Return a record's flags, those of its comparison as its samples have them now."""
    if record.timed is None:
        return record.flags
    try:
        found = flags_of_comparison(record.timed, against_best(record.timed))
    except (KeyError, ValueError):  # without pairs there is no interval
        return record.flags
    return (*(flag for flag in record.flags if flag not in _OF_A_COMPARISON), *found)


def flags_of_comparison(timed: Timed, found: Comparison) -> list[str]:
    """Return what a reader must know of a comparison; of rounds that were not paired, of the headline's."""
    in_pilot = all(s.config.get("pilot") for s in timed.samples if s.variant == found.baseline)
    pairs = _pairs(timed, timed.headline if in_pilot else found.baseline)
    return [
        *diagnose(*pairs[0]).flags,
        *([WIDE] if is_wide(found, timed.target) else []),
        *([IN_PILOT] if in_pilot else []),
        *([CLAIM_MISMATCH] if timed.clock == JUDGE else []),
    ]


def is_look(rounds: int) -> bool:
    """Tell whether the stopping rule is asked after this many rounds: 24, 36, 48 and so on."""
    return rounds >= FIRST_LOOK and rounds % LOOK_EVERY == 0


def should_stop(half_widths: Sequence[float], target: float = TARGET) -> bool:
    """Stop when the half-width, the widest over all baselines, reached the target at two looks running.

    `half_widths` has one entry per look. A single narrow look stops too often on luck.
    """
    return len(half_widths) >= 2 and max(half_widths[-2:]) <= target


def headline(samples: Iterable[Samples], eligible: Collection[str]) -> str:
    """Name the eligible baseline with the smallest median time. Raises ValueError when none was timed."""
    timed = [s for s in samples if s.variant in eligible and s.times_us]
    if not timed:
        raise ValueError(
            f"none of the eligible baselines was timed: {', '.join(sorted(eligible)) or 'none given'}"
        )
    return min(timed, key=lambda s: median(s.times_us)).variant


def decided(samples: Sequence[Samples], trusted: Collection[str]) -> list[Samples]:
    """Give each variant the series that decides: claims, if those that are not trusted may be believed.

    What a process that is trusted loses in a window between its events and the judge's clock is what an
    honest kernel may lose too, and how much its bounds scatter is how much the judge's clock may be off:
    neither is asked of who might gain by it. One claim that is not believed makes the judge's clock decide
    for all, since sides are never compared by different clocks.
    """
    honest = [s for s in samples if s.variant in trusted and s.claims_us]
    loss_us = max(((median(s.times_us) - median(s.claims_us)) * s.calls for s in honest), default=0.0)
    longest = max(honest, key=lambda s: median(s.claims_us), default=None)
    noise_us = 0.0 if longest is None else 3 * error_of_median(longest.times_us) * longest.calls
    believed = all(believable(s, loss_us, noise_us) for s in samples if s.variant not in trusted)
    return [by_clock(s, CLAIM if believed else JUDGE) for s in samples]


def null_of(own_us: Sequence[float], trusted_us: Sequence[float] | None) -> float:
    """Return the null to subtract, in us: a process that is not trusted may not lengthen its own."""
    own = median(own_us)
    return own if trusted_us is None else min(own, median(trusted_us) + NULL_NOISE_US)


def gains_by_batching(
    mine: Samples, single: Samples, headline: Samples, headline_single: Samples, cold_us: float
) -> bool:
    """Tell whether a solution's calls are cheaper in a batch by more than the headline's are.

    `cold_us` is allowed besides, for parameters of its own that a batch finds in L2, and three standard
    errors of the difference between two series of single calls that scatter as the headline's do.
    """
    batch_us, alone_us = median(mine.times_us), median(single.times_us)
    share = SLOWER_SHARE
    if batch_us < median(headline.times_us):
        share = FASTER_SHARE if clock_of([mine, single]) == CLAIM else FASTER_SHARE_BY_JUDGE
    usual_us = max(median(headline_single.times_us) - median(headline.times_us), 0.0)
    noise_us = BATCH_NOISE_US + 3 * math.sqrt(2) * error_of_median(headline_single.times_us)
    return alone_us - batch_us > share * alone_us + usual_us + cold_us + noise_us


def believable(samples: Samples, loss_us: float, noise_us: float) -> bool:
    """Tell whether claims explain the judge's bound (`times_us` here), within what honest kernels lose.

    `loss_us` and `noise_us` are of a whole window.
    """
    if not samples.claims_us or min(samples.claims_us) <= 0:
        return False
    claimed_us = median(samples.claims_us) * samples.calls
    excused_us = min(max(loss_us, 0.0), MOST_LOSS_US, MOST_LOSS_SHARE * claimed_us)
    allowed_us = claimed_us * (1 + CLAIM_SHARE) + excused_us + noise_us + CLAIM_NOISE_US
    return median(samples.times_us) * samples.calls <= allowed_us


def by_clock(samples: Samples, clock: str) -> Samples:
    """Have claims decide, where `clock` says so; the judge's bounds are then kept beside them."""
    if clock == JUDGE:
        return samples
    return replace(samples, times_us=samples.claims_us, claims_us=(), bounds_us=samples.times_us)


def together(runs: Sequence[Timed]) -> Timed:
    """Join the runs of several processes; the judge's clock decides for all where it does for one."""
    first, *_ = runs
    clock = CLAIM if all(run.clock == CLAIM for run in runs) else JUDGE
    samples = [
        replace(s if run.clock == clock else _by_judge(s), process=process)
        for process, run in enumerate(runs)
        for s in run.samples
    ]
    return replace(
        first,
        samples=tuple(samples),
        rounds=sum(run.rounds for run in runs),
        invalid_rounds=sum(run.invalid_rounds for run in runs),
        checked_calls=sum(run.checked_calls for run in runs),
        handshake_us=max(run.handshake_us for run in runs),
        clock=clock,
        processes=len(runs),
        sm_clocks_mhz=tuple(c for run in runs for c in run.sm_clocks_mhz),
        clock_reasons=tuple(reasons for run in runs for reasons in run.clock_reasons),
        settled=all(run.settled for run in runs),
        disturbances=dict(sum((Counter(run.disturbances) for run in runs), Counter())),
        batched=any(run.batched for run in runs),
    )


def _by_judge(samples: Samples) -> Samples:
    return replace(
        samples, times_us=samples.bounds_us, claims_us=samples.times_us, bounds_us=(), single_us=None
    )


def by_claims(samples: Sequence[Samples]) -> list[Samples]:
    """Have claims decide, believed or not, where there are any."""
    return [by_clock(s, CLAIM) if s.claims_us else s for s in samples]


def by_one_clock(*series: Sequence[Samples]) -> list[list[Samples]]:
    """Have the judge's clock decide in all series if it does in one."""
    if all(clock_of(samples) == CLAIM for samples in series):
        return [list(samples) for samples in series]
    return [[_by_judge(s) if s.bounds_us else s for s in samples] for samples in series]


def clock_of(samples: Sequence[Samples]) -> str:
    """Name the clock that decided."""
    return CLAIM if any(s.bounds_us for s in samples) else JUDGE


def diagnose(candidate_us: Sequence[float], baseline_us: Sequence[float]) -> Diagnostics:
    """Look for what an interval of independent rounds with one mode does not show."""
    ratios = _log_ratios(candidate_us, baseline_us)
    low, high = _interval(ratios)
    correlation = autocorrelation(ratios)
    centre = hodges_lehmann(ratios)
    found = {
        "autocorrelated": correlation > CORRELATED,
        "bimodal": abs(centre - median(ratios)) > (high - low) / 4,
    }
    flags = tuple(name for name, holds in found.items() if holds)
    return Diagnostics(mad(ratios), correlation, centre, flags)


def median(values: Sequence[float] | Ratios) -> float:
    """Return the median of at least one value."""
    return float(np.median(values))


def mad(values: Sequence[float] | Ratios) -> float:
    """Return the median absolute deviation from the median, not scaled to a standard deviation."""
    return median(np.abs(np.asarray(values) - median(values)))


def error_of_median(values: Sequence[float]) -> float:
    """Return the standard error of the median of a normal series, by its median absolute deviation."""
    return 1.4826 * 1.2533 * mad(values) / math.sqrt(len(values))


def autocorrelation(values: Sequence[float] | Ratios) -> float:
    """Return the lag-1 autocorrelation of log ratios; 0 for a series that is constant but for rounding."""
    series = np.asarray(values)
    if np.ptp(series) < 1e-12:
        return 0.0
    deviations = series - series.mean()
    return float(deviations[:-1] @ deviations[1:]) / float(deviations @ deviations)


def hodges_lehmann(values: Sequence[float] | Ratios) -> float:
    """Return the median of all pairwise means, each value paired with itself too."""
    series = np.asarray(values)
    first, second = np.triu_indices(len(series))
    return median((series[first] + series[second]) / 2)


def _log_ratios(candidate_us: Sequence[float], baseline_us: Sequence[float]) -> Ratios:
    if not 0 < len(candidate_us) == len(baseline_us):
        raise ValueError(f"times must come in pairs: {len(candidate_us)} and {len(baseline_us)}")
    times = np.array([candidate_us, baseline_us], dtype=np.float64)
    if not np.all((times > 0) & np.isfinite(times)):
        raise ValueError("a time must be positive and finite")
    ratios: Ratios = np.log(times[1] / times[0])
    return ratios


def _interval(ratios: Ratios) -> tuple[float, float]:
    """Return the 95 % interval of the median; the whole range when there are too few rounds for one.

    Order statistics l and n - 1 - l, counted from 0, with l = floor((n - 1) / 2 - 0.98 sqrt(n)): the normal
    approximation to the sign test, whose exact coverage is 95 % or more at every n from 12 to 240.
    """
    count = len(ratios)
    if count < MIN_ROUNDS:
        return float(ratios.min()), float(ratios.max())
    ordered = np.sort(ratios)
    rank = math.floor((count - 1) / 2 - 0.98 * math.sqrt(count))
    low, high = float(ordered[rank]), float(ordered[count - 1 - rank])
    if count >= FIRST_LOOK and autocorrelation(ratios) > CORRELATED:
        blocks = ratios[: count // BLOCK_ROUNDS * BLOCK_ROUNDS].reshape(-1, BLOCK_ROUNDS)
        block_low, block_high = _over_medians(np.median(blocks, axis=1))
        low, high = min(low, block_low), max(high, block_high)
    return low, high


def _over_medians(medians: Ratios) -> tuple[float, float]:
    """Return the 95 % t interval of the medians of processes, or of successive blocks."""
    reach = t_quantile(len(medians) - 1) * float(medians.std(ddof=1)) / math.sqrt(len(medians))
    centre = float(medians.mean())
    return centre - reach, centre + reach


def t_quantile(freedom: int) -> float:
    """Return Student's t at 97.5 %, from 3 on within 1 % by Abramowitz and Stegun 26.7.5."""
    if freedom in _FEW_FREEDOMS:
        return _FEW_FREEDOMS[freedom]
    z = 1.959964
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / float(freedom**power) for power, term in enumerate(terms, start=1))
