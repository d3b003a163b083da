"""Records -> boards: who is fastest on a card, a problem, a protocol and an arithmetic, which never mix.

A solution is ranked by the geometric mean of its speed-ups over the committed sweeps, one weight per cell,
each computed anew from the samples against the fastest baseline of the same record. Launch-bound cells
are summed up apart. A cell that is missing or failed leaves the solution on the board without a rank.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from runner import cards, load, record
from runner.analyse import against_best, comparison, flags_of, t_quantile
from runner.plan import DEFAULT_SWEEPS, TARGET_CARD
from runner.schema import HARMLESS, ISOLATION, NOT_RANKED, PROTOCOL, Comparison, Record, Status, digest
from runner.waves import Occupancy, largest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

#: Student's t wants this many cells; fewer have the geometric means of their own bounds as interval.
MIN_CELLS = 4
LAUNCH_BOUND = "launch_bound"
FILL = "fill"


@dataclass(frozen=True)
class Mean:
    """A geometric mean of speed-ups, above 1 is faster, with an interval of about 95 %."""

    speedup: float
    low: float
    high: float


@dataclass(frozen=True)
class Entry:
    """One text of one solution on a board; cells are named `sweep/label`.

    `compared` are the cells of the mean and `launch_bound` those beside it. `gaps` says of every other
    cell why it has no speed-up, and names failures on shapes outside the sweeps. `bound_shares` are shares
    of the roofline in the cells of the mean. `stale` says why the records no longer count, or nothing.
    `grids` says of each cell with a speed-up how its largest grid fills the card, where its record knows, and
    `fills` how many times as long it takes as writing the output once, where that was timed beside it.
    """

    solution: str
    digest: str
    author: str
    date: str
    compared: dict[str, Comparison]
    launch_bound: dict[str, Comparison]
    gaps: dict[str, str]
    bound_shares: tuple[float, ...]
    flags: dict[str, int]
    stale: str
    grids: dict[str, Occupancy] = field(default_factory=dict)
    fills: dict[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> Mean | None:
        """The figure that is ranked; None for an entry that has no rank."""
        return None if self.unranked else geometric_mean(self.compared.values())

    @property
    def unranked(self) -> str:
        """Why there is no rank; empty where there is one."""
        if self.stale:
            return f"stale, {self.stale}"
        if self.gaps:
            return ", ".join(f"{count} {reason}" for reason, count in Counter(self.gaps.values()).items())
        return "" if self.compared else "all launch-bound"

    @property
    def worst_tail(self) -> str | None:
        """The cell of the mean whose largest grid leaves most of the card idle, or None."""
        known = {place: one for place, one in self.grids.items() if place in self.compared}
        return min(known, key=lambda place: known[place].eta_slot or 0.0, default=None)


@dataclass(frozen=True)
class Board:
    """Entries with their ranks, the best first and those without a rank last.

    `sweeps` says how many cells of each committed sweep are to be covered: those that the card can hold.
    """

    card: str
    problem: str
    protocol: int
    arithmetic: str
    sweeps: dict[str, int]
    ranked: tuple[tuple[int | None, Entry], ...]

    @property
    def cells(self) -> int:
        """How many cells are to be covered."""
        return sum(self.sweeps.values())

    @property
    def superseded(self) -> Counter[str]:
        """How many texts each solution had before the one on this board; no reader is helped by them."""
        current = {entry.solution for _, entry in self.ranked if not entry.stale}
        names = (entry.solution for _, entry in self.ranked if entry.stale)
        return Counter(name for name in names if name in current)

    @property
    def listed(self) -> tuple[tuple[int | None, Entry], ...]:
        """What a reader is shown: a stale entry only of a solution that has no other here."""
        known = self.superseded
        return tuple((n, entry) for n, entry in self.ranked if not (entry.stale and entry.solution in known))


def read(
    results: Path, root: Path = load.ROOT, *, card: str | None = None, problem: str | None = None
) -> tuple[list[Board], list[str]]:
    """Rank what `results` holds of GPUs, or of one card or problem, against the files under `root`.

    Returns the boards, and a line for each line that is no record.
    """
    records, problems = read_records(results, card=card, problem=problem)
    return boards_of(records, root), problems


def read_records(
    results: Path, *, card: str | None = None, problem: str | None = None
) -> tuple[list[Record], list[str]]:
    """Return what `results` holds, or of one card or problem, and a line for each line that is no record."""
    records: list[Record] = []
    problems: list[str] = []
    for path in record.files(results, f"{card or '*'}/{problem or '*'}/*.jsonl"):
        found, complaints = record.read(path)
        records += found
        problems += complaints
    return records, problems


def boards_of(records: Iterable[Record], root: Path = load.ROOT) -> list[Board]:
    """Rank records of GPUs by card, problem, protocol (the newest first) and arithmetic."""
    held = sorted((_held_to_isolation(one) for one in records if one.card != "cpu"), key=_newest_first)
    return [_board(list(group), root) for _, group in itertools.groupby(held, _newest_first)]


def geometric_mean(speedups: Iterable[Comparison]) -> Mean:
    """Average the speed-ups of at least one cell.

    The interval is Student's t over their logarithms: how far the mean would move on other shapes drawn as
    these were, each on its own, which is more than the noise of single times. It is too narrow for cells
    that resemble each other, as those around one edge of a wave do. Resampling the cells would need a random
    generator to say the same, and is too narrow for a sweep of seven.
    """
    cells = list(speedups)
    logs = [math.log(one.speedup) for one in cells]
    centre = statistics.fmean(logs)
    if len(cells) < MIN_CELLS:
        low = statistics.fmean(math.log(one.low) for one in cells)
        high = statistics.fmean(math.log(one.high) for one in cells)
    else:
        reach = t_quantile(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        low, high = centre - reach, centre + reach
    return Mean(math.exp(centre), math.exp(low), math.exp(high))


def rank(entries: Iterable[Entry]) -> tuple[tuple[int | None, Entry], ...]:
    """Order entries: a rank is one more than how many are faster beyond the interval on common cells.

    Means of two entries may be over different cells, because different ones are launch-bound. So each two
    are compared cell by cell where both have one; means order those of one rank alone.
    """
    entries = list(entries)
    fit = [entry for entry in entries if not entry.unranked]
    unfit = [entry for entry in entries if entry.unranked]
    ranked = [(1 + sum(is_faster(other, entry) for other in fit), entry) for entry in fit]
    ranked.sort(key=lambda one: (one[0], -_speedup(one[1])))
    unfit.sort(key=_furthest_first)
    return (*ranked, *((None, entry) for entry in unfit))


def _furthest_first(entry: Entry) -> tuple[bool, int, float, str, str]:
    """Order what has no rank: by its cells, then by their mean; what is stale comes last."""
    cells = entry.compared | entry.launch_bound
    mean = geometric_mean(cells.values()).speedup if cells else 0.0
    return bool(entry.stale), -len(cells), -mean, entry.solution, entry.date


def _speedup(entry: Entry) -> float:
    return entry.mean.speedup if entry.mean else 0.0


def is_faster(first: Entry, other: Entry) -> bool:
    """Tell whether one entry is faster than another beyond doubt; nobody is faster than himself."""
    common = first.compared.keys() & other.compared.keys()
    ratios = [_ratio(first.compared[cell], other.compared[cell]) for cell in sorted(common)]
    return bool(ratios) and geometric_mean(ratios).low > 1


def _ratio(first: Comparison, other: Comparison) -> Comparison:
    """Divide two speed-ups, each over the best baseline of its run, bounds at their worst."""
    return replace(
        first,
        speedup=first.speedup / other.speedup,
        low=first.low / other.high,
        high=first.high / other.low,
    )


def _held_to_isolation(one: Record) -> Record:
    """Flag the times of a signed file that was not fully isolated, so that they are shown and not ranked."""
    isolation = one.environment.get("isolation")
    level = isolation.get("level") if isinstance(isolation, dict) else None
    if one.timed is None or not one.author or level == ISOLATION[-1]:
        return one
    return replace(one, flags=(*one.flags, f"{NOT_RANKED}: isolation {level or 'unknown'}"))


def _group(one: Record) -> tuple[str, str, int, str]:
    return one.card, one.problem, one.protocol, one.cell.arithmetic


def _newest_first(one: Record) -> tuple[str, str, int, str]:
    card, problem, protocol, arithmetic = _group(one)
    return card, problem, -protocol, arithmetic


def _text(one: Record) -> tuple[str, str, str]:
    return one.solution, one.solution_digest, one.problem_digest


def _board(records: Sequence[Record], root: Path) -> Board:
    card, name, protocol, arithmetic = _group(records[0])
    problem = load.find_problem(name, root) if name in load.problem_names(root) else None
    shapes = _shapes(problem) if problem else {}
    beyond = {(_place(one), digest(one.cell.shape)) for one in records if _is_beyond_the_card(one)}
    shapes = {place: shape for place, shape in shapes.items() if (place, shape) not in beyond}
    texts = itertools.groupby(sorted(records, key=_text), _text)
    entries = [_entry(list(group), problem, shapes, root) for _, group in texts]
    sweeps = dict(Counter(place.partition("/")[0] for place in shapes))
    return Board(card, name, protocol, arithmetic, sweeps, rank(entries))


def _is_beyond_the_card(one: Record) -> bool:
    """Whether the plan has no room for the cell, whatever the solution."""
    return one.failed is not None and (one.status, one.failed.stage) == (Status.UNSUPPORTED, "plan")


def _shapes(problem: load.Problem) -> dict[str, str]:
    """Return the digest of every shape that has to be covered, by `sweep/label`."""
    sweeps = problem.sweeps(cards.load_card(TARGET_CARD).sms)
    committed = [(name, sweeps[name]) for name in DEFAULT_SWEEPS["cuda"] if name in sweeps]
    return {f"{name}/{label}": digest(shape) for name, rows in committed for label, shape in rows.items()}


def _entry(records: list[Record], problem: load.Problem | None, shapes: dict[str, str], root: Path) -> Entry:
    records.sort(key=record.recency)
    newest = records[-1]
    stale = _stale(newest, problem, root)
    latest, outside = {}, {}
    for one in records:
        if stale or shapes.get(_place(one)) == digest(one.cell.shape):
            latest[_place(one)] = one
        else:
            outside[one.cell.key] = one
    failed = [one for one in outside.values() if one.status not in HARMLESS]
    outcomes = {place: _outcome(one) for place, one in latest.items()}
    gaps = dict.fromkeys(shapes, "missing") if not stale else {}
    gaps |= {_apart(one, shapes): str(one.status) for one in failed}
    gaps |= {place: why if isinstance(why, str) else "" for place, why in outcomes.items()}
    speedups = {place: each for place, each in outcomes.items() if isinstance(each, Comparison)}
    apart = {place for place, one in latest.items() if LAUNCH_BOUND in one.flags}
    compared = {place: each for place, each in speedups.items() if place not in apart}
    flags = Counter(flag for one in latest.values() for flag in flags_of(one) if flag != LAUNCH_BOUND)
    return Entry(
        solution=newest.solution,
        digest=newest.solution_digest,
        author=newest.author,
        date=newest.time_utc[:10],
        compared=compared,
        launch_bound={place: each for place, each in speedups.items() if place in apart},
        gaps={place: why for place, why in sorted(gaps.items()) if why},
        bound_shares=tuple(
            share for place in compared if (share := _share_of_bound(latest[place])) is not None
        ),
        flags=dict(sorted(flags.items())),
        stale=stale,
        grids={place: grid for place in speedups if (grid := largest(latest[place].waves))},
        fills={place: times for place in speedups if (times := _times_fill(latest[place])) is not None},
    )


def _place(one: Record) -> str:
    return f"{one.cell.sweep}/{one.cell.label}"


def _apart(one: Record, shapes: dict[str, str]) -> str:
    """Name a cell outside the sweeps: another card's sweep may give a label of theirs to another shape."""
    place = _place(one)
    return f"{place} ({digest(one.cell.shape)[:6]})" if place in shapes else place


def _stale(one: Record, problem: load.Problem | None, root: Path) -> str:
    """Say why a record no longer speaks of the files as they are; empty where it does."""
    if one.protocol != PROTOCOL:
        return f"the protocol is now {PROTOCOL}"
    if problem is None:
        return "its problem is gone"
    if one.problem_digest != problem.digest:
        return "the problem has changed"
    if one.solution not in load.solution_names(problem.name, root):
        return "its file is gone"
    if one.solution_digest != load.find_solution(one.solution, problem.name, root).digest:
        return "its file has changed"
    return ""


def _share_of_bound(one: Record) -> float | None:
    """Return a record's share, or None for anything but a number that can be one: it is any JSON."""
    share = one.roofline.get("share_of_bound")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
        return None
    return share


def _times_fill(one: Record) -> float | None:
    """Return a record's time over that of the baseline `fill`, or None where they were not compared."""
    try:
        return 1 / comparison(one.timed, FILL).speedup if one.timed else None
    except (KeyError, ValueError):
        return None


def _outcome(one: Record) -> Comparison | str:
    """Return a record's speed-up over its fastest baseline, or why it has none."""
    if one.status is not Status.PASS:
        return str(one.status)
    if one.timed is None:
        return "not timed"
    barred = next((flag for flag in one.flags if flag.startswith(NOT_RANKED)), None)
    if barred is not None:
        return barred
    try:
        return against_best(one.timed)
    except (KeyError, ValueError):
        return "not comparable"
