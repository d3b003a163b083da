"""Records -> boards: who is fastest on a card, a problem, a protocol and an arithmetic, which never mix.

A solution is ranked by the geometric mean of its speed-ups over the committed sweeps, one weight per cell,
each computed anew from the samples against the headline baseline of the same record. Launch-bound cells
are summed up apart. A cell that is missing or failed leaves the solution on the board without a rank.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner import analyse, cards, load, record
from runner.pipeline import DEFAULT_SWEEPS, TARGET_CARD
from runner.schema import PROTOCOL, Cell, Comparison, Record, Status, digest

#: What says nothing about a solution on a shape outside the committed sweeps.
HARMLESS = (Status.PASS, Status.NOT_COVERED, Status.UNSUPPORTED, Status.ERROR)
#: Student's t wants this many cells; fewer have the geometric mean of their own bounds as interval.
MIN_CELLS = 4
LAUNCH_BOUND = "launch_bound"

#: `sweep/label` -> digest of its shape.
Places = dict[str, str]


@dataclass(frozen=True)
class Mean:
    """A geometric mean of speed-ups with an interval of about 95 %."""

    speedup: float
    low: float
    high: float


@dataclass(frozen=True)
class Entry:
    """One text of one solution on a board.

    `compared` are the cells of the mean and `launch_bound` those beside it, by `sweep/label`; `gaps` says
    of each other cell why it has no speed-up, and of shapes outside the sweeps which of them failed.
    `bound_shares` are of the cells of the mean. `stale` says why the records no longer count, or nothing.
    """

    solution: str
    digest: str
    author: str
    date: str
    passed: int
    compared: dict[str, Comparison]
    launch_bound: dict[str, Comparison]
    gaps: dict[str, str]
    bound_shares: tuple[float, ...]
    flags: Counter[str]
    stale: str

    @property
    def mean(self) -> Mean | None:
        """The figure that is ranked; None for an entry that may have no rank."""
        may_rank = self.compared and not self.gaps and not self.stale
        return geometric_mean(self.compared.values()) if may_rank else None

    @property
    def unranked(self) -> str:
        """Why there is no rank; empty for an entry that has one."""
        if self.stale:
            return f"stale: {self.stale}"
        if self.gaps:
            return ", ".join(f"{count} {reason}" for reason, count in Counter(self.gaps.values()).items())
        return "" if self.compared else "all launch-bound"


@dataclass(frozen=True)
class Board:
    """Entries with their ranks, best first, then those without one; `cells` have to be covered."""

    card: str
    problem: str
    protocol: int
    arithmetic: str
    cells: int
    ranked: tuple[tuple[int | None, Entry], ...]


def boards(results: Path, root: Path = load.ROOT) -> tuple[list[Board], list[str]]:
    """Rank what `results` holds against the files under `root`; with a line per line that is no record."""
    records: list[Record] = []
    problems: list[str] = []
    for path in sorted(results.glob("*/*/*.jsonl")):
        found, complaints = record.read(path)
        records += [one for one in found if one.card != "cpu"]
        problems += complaints
    return [_board(list(group), root) for _, group in itertools.groupby(sorted(records, key=_key), _key)], problems


def geometric_mean(speedups: Iterable[Comparison]) -> Mean:
    """Average speed-ups of at least one cell.

    The interval is Student's t over the logarithms: how far the mean would move on other shapes like
    these, which is far more than the noise of their times. Resampling the cells would say the same, too
    narrowly for a sweep of seven, and in digits that depend on a generator.
    """
    cells = list(speedups)
    logs = [math.log(one.speedup) for one in cells]
    centre = statistics.fmean(logs)
    if len(cells) < MIN_CELLS:
        low = statistics.fmean(math.log(one.low) for one in cells)
        high = statistics.fmean(math.log(one.high) for one in cells)
    else:
        reach = analyse.t_quantile(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        low, high = centre - reach, centre + reach
    return Mean(math.exp(centre), math.exp(low), math.exp(high))


def rank(entries: Iterable[Entry]) -> tuple[tuple[int | None, Entry], ...]:
    """Order entries by their mean; an entry stands below another only if it is slower beyond the noise.

    Means may be over different cells, for launch-bound ones differ. So the first of a rank is compared with
    the next cell by cell, on the cells that both have; what is not slower there shares the rank.
    """
    means = {id(one): one.mean for one in (entries := list(entries))}
    order = sorted(entries, key=lambda one: (-(m.speedup if (m := means[id(one)]) else 0.0), bool(one.stale)))
    ranked: list[tuple[int | None, Entry]] = []
    place, first = 0, None
    for position, entry in enumerate(order, start=1):
        if means[id(entry)] is None:
            ranked.append((None, entry))
            continue
        if first is None or _faster(first, entry):
            place, first = position, entry
        ranked.append((place, entry))
    return tuple(ranked)
