"""What intervals of one run hold, and what they do not, by all that is recorded. Needs no GPU.

`python -m tests.benchmarks.intervals` pairs successive records of the same text, cell, card and software,
which are of different GPUs of a model mostly, and compares both over PyTorch as shipped. Where the judge's
clock decided it holds the interval against the ratio of the events that were not believed.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from runner import analyse, record
from runner.analyse import AS_SHIPPED, CLAIM, JUDGE, median
from runner.schema import Comparison, Record, Samples, Timed

RESULTS = Path(__file__).parents[2] / "results"
SOFTWARE = ("driver", "torch", "triton", "cudnn")


def repeats(records: list[Record]) -> list[tuple[Comparison, Comparison]]:
    """Compare each run with the next of the same thing, where events decided in both."""
    runs: dict[tuple[object, ...], list[Timed]] = defaultdict(list)
    for one in sorted(records, key=record.recency):
        if one.timed is not None and one.timed.clock == CLAIM:
            software = tuple(str(one.environment.get(name)) for name in SOFTWARE)
            same = (one.card, one.problem_digest, one.solution_digest, one.cell.key, one.protocol)
            runs[(*same, one.timed.processes, software)].append(one.timed)
    pairs = (pair for group in runs.values() for pair in itertools.pairwise(group))
    return [(analyse.comparison(a, AS_SHIPPED), analyse.comparison(b, AS_SHIPPED)) for a, b in pairs]


def by_judge(timed: Timed) -> tuple[bool, bool, float, float]:
    """Whether an interval over rounds holds the events' ratio, and the one shown; what windows lost, in us.

    The losses are PyTorch's and the solution's.
    """
    named = {s.variant: s for s in timed.samples if s.process == 0 and not s.config.get("pilot")}
    mine, shipped = named["solution"], named[AS_SHIPPED]
    ratio = median(shipped.claims_us) / median(mine.claims_us)
    found = (
        analyse.compare(mine.times_us, shipped.times_us, AS_SHIPPED),
        analyse.comparison(timed, AS_SHIPPED),
    )
    over_rounds, shown = (one.low <= ratio <= one.high for one in found)
    return over_rounds, shown, _lost_us(shipped), _lost_us(mine)


def _lost_us(samples: Samples) -> float:
    return (median(samples.times_us) - median(samples.claims_us)) * samples.calls


def main() -> None:
    """Print both."""
    # `record.read` keeps the latest of a cell alone
    lines = [line for path in record.files(RESULTS) for line in path.read_text().splitlines()]
    records = [record.from_line(line) for line in lines]
    pairs = repeats(records)
    apart = np.array([abs(math.log(a.speedup / b.speedup)) for a, b in pairs])
    meet = sum(a.low <= b.high and b.low <= a.high for a, b in pairs)
    verdicts = sum(a.verdict != b.verdict for a, b in pairs)
    print(f"{len(pairs)} pairs of runs: speed-ups differ by {np.median(apart):.2%} in the median,")
    print(f"{np.quantile(apart, 0.9):.2%} in one of ten and {apart.max():.1%} at most;")
    print(f"intervals meet in {meet}, verdicts differ in {verdicts}")
    judged = [by_judge(one.timed) for one in records if one.timed is not None and one.timed.clock == JUDGE]
    over_rounds, shown, shipped_us, mine_us = zip(*judged, strict=True)
    print(f"{len(judged)} records by the judge's clock: {sum(over_rounds)} of the intervals over rounds")
    print(f"hold what events say, {sum(shown)} of those shown; in the median a window loses")
    print(f"{np.median(shipped_us):.0f} us of PyTorch's and {np.median(mine_us):.0f} of a solution's")


if __name__ == "__main__":
    main()
