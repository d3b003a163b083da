"""How far the speed-up of a second run lies from the first: what an interval of one run does not hold.

`python -m tests.benchmarks.repeats` pairs successive records of the same text, cell, card, software and
clock under results/, which are of different GPUs of a model mostly, and compares both over PyTorch as
shipped. Needs no GPU.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from runner import analyse, record
from runner.schema import Comparison, Record

RESULTS = Path(__file__).parents[2] / "results"
SOFTWARE = ("driver", "torch", "triton", "cudnn")


def repeats(records: list[Record]) -> list[tuple[Comparison, Comparison]]:
    """Pair successive comparisons of the same thing by events, without the times that shared a GPU."""
    runs: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for one in sorted(records, key=record.recency):
        if one.timed is not None and one.timed.clock == analyse.CLAIM:
            software = tuple(str(one.environment.get(name)) for name in SOFTWARE)
            same = (one.card, one.problem_digest, one.solution_digest, one.cell.key, one.protocol)
            runs[(*same, one.timed.processes, software)].append(one)
    pairs = []
    for group in runs.values():
        for first, second in itertools.pairwise(group):
            if first.timed is not None and second.timed is not None:
                found = [analyse.comparison(run, analyse.AS_SHIPPED) for run in (first.timed, second.timed)]
                pairs.append((found[0], found[1]))
    return pairs


def main() -> None:
    """Print how far pairs lie apart, and how often their intervals meet."""
    # `record.read` keeps the latest of a cell alone
    lines = [line for path in record.files(RESULTS) for line in path.read_text().splitlines()]
    pairs = repeats([record.from_line(line) for line in lines])
    apart = np.array([abs(math.log(a.speedup / b.speedup)) for a, b in pairs])
    meet = sum(a.low <= b.high and b.low <= a.high for a, b in pairs)
    verdicts = sum(a.verdict != b.verdict for a, b in pairs)
    print(f"{len(pairs)} pairs of runs: speed-ups differ by {np.median(apart):.2%} in the median,")
    print(f"{np.quantile(apart, 0.9):.2%} in one of ten and {apart.max():.1%} at most;")
    print(f"intervals meet in {meet}, verdicts differ in {verdicts}")


if __name__ == "__main__":
    main()
