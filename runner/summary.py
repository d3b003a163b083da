"""Boards -> geometric means by sweep: of each solution, and of the best solution of each problem together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.leaderboard import Board, Entry, geometric_mean
from runner.report import ABSENT, figures

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runner.schema import Comparison

#: Problems that a mean is taken over, by how their names begin.
FAMILIES = {"transposed convolutions": "convtranspose", "problems": ""}
BEST = "the best of each"

Line = dict[str, str]


def tables(boards: Iterable[Board]) -> dict[str, list[Line]]:
    """Return for each card, protocol and arithmetic a line per solution that is not stale, and per family.

    A figure is the geometric mean of all cells of a sweep that have a speed-up, launch-bound ones included:
    device time is measured in those too. Behind it stands how many there are, of how many if some lack.
    """
    groups: dict[str, list[Board]] = {}
    for board in boards:
        if any(not entry.stale for _, entry in board.ranked):
            title = f"by sweep on {board.card}, protocol {board.protocol}, {board.arithmetic}"
            groups.setdefault(title, []).append(board)
    return {title: [*_solutions(group), *_families(group)] for title, group in groups.items()}


def _solutions(boards: Sequence[Board]) -> list[Line]:
    return [
        {"problem": board.problem, "solution": entry.solution}
        | {sweep: _figure(speedups(entry, sweep), count) for sweep, count in board.sweeps.items()}
        for board in boards
        for _, entry in board.ranked
        if not entry.stale
    ]


def _families(boards: Sequence[Board]) -> list[Line]:
    """Pool the cells of several problems, each with the solution that is fastest in that sweep."""
    lines = []
    for family, prefix in FAMILIES.items():
        members = [board for board in boards if board.problem.startswith(prefix)]
        if len(members) < 2:
            continue
        # those without a record have no board, and are not in the mean
        line = {"problem": f"{len(members)} {family} on record", "solution": BEST}
        for sweep in dict.fromkeys(name for board in members for name in board.sweeps):
            pooled = [one for board in members for one in _best(board, sweep)]
            line[sweep] = _figure(pooled, sum(board.sweeps.get(sweep, 0) for board in members))
        lines.append(line)
    return lines


def speedups(entry: Entry, sweep: str) -> list[Comparison]:
    """Return an entry's comparisons in a sweep, launch-bound ones included."""
    cells = entry.compared | entry.launch_bound
    return [one for place, one in sorted(cells.items()) if place.partition("/")[0] == sweep]


def _best(board: Board, sweep: str) -> list[Comparison]:
    """Return the cells of the solution that covers most of a sweep, and is the fastest of those."""
    sides = [cells for _, entry in board.ranked if not entry.stale and (cells := speedups(entry, sweep))]
    return max(sides, key=lambda cells: (len(cells), geometric_mean(cells).speedup), default=[])


def _figure(cells: Sequence[Comparison], count: int) -> str:
    if not cells:
        return ABSENT
    covered = f"{len(cells)}" if len(cells) == count else f"{len(cells)} of {count}"
    return f"{figures(geometric_mean(cells).speedup)} ({covered})"
