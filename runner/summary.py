"""Boards -> geometric means by sweep: of each solution, and of the best solution of each problem together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.leaderboard import Board, Entry, geometric_mean
from runner.report import ABSENT, figures

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from runner.schema import Comparison

#: Problems that a mean is taken over, by how their names begin.
FAMILIES = {"transposed convolutions": "convtranspose", "problems": ""}
BEST = "the best of each"
#: A sweep is covered from this share on: single cells may find no room, or have no rank.
COVERED = 0.9

Row = dict[str, Any]
Line = dict[str, str]


def tables(boards: Iterable[Board]) -> dict[str, list[Line]]:
    """Return for each card, protocol and arithmetic a line per solution that is not stale, and per family.

    A figure is the geometric mean of all cells of a sweep that have a speed-up, launch-bound ones included:
    device time is measured in those too. Behind it stands how many there are, of how many if some lack.
    """
    found: dict[str, dict[tuple[str, str], Line]] = {}
    for one in rows(boards):
        names = {name: one[name] for name in ("problem", "solution")}
        line = found.setdefault(title(one), {}).setdefault((one["problem"], one["solution"]), names)
        line[one["sweep"]] = figure(one)
    return {name: list(lines.values()) for name, lines in found.items()}


def rows(boards: Iterable[Board]) -> list[Row]:
    """Return what `tables` shows, for programs: a row for each mean, over `cells` of `of` cells."""
    groups: dict[tuple[str, int, str], list[Board]] = {}
    for board in boards:
        if any(not entry.stale for _, entry in board.ranked):
            groups.setdefault((board.card, board.protocol, board.arithmetic), []).append(board)
    return [
        {"card": card, "protocol": protocol, "arithmetic": arithmetic, **row}
        for (card, protocol, arithmetic), group in groups.items()
        for row in (*_solutions(group), *_families(group))
    ]


def _solutions(boards: Sequence[Board]) -> Iterator[Row]:
    for board in boards:
        for entry in (entry for _, entry in board.ranked if not entry.stale):
            for sweep, count in board.sweeps.items():
                yield _row(board.problem, entry.solution, sweep, speedups(entry, sweep), count)


def _families(boards: Sequence[Board]) -> Iterator[Row]:
    """Pool the cells of several problems, each with the solution that is fastest in that sweep.

    Without one that covers it for each of them, which problems there are would be the figure.
    """
    for family, prefix in FAMILIES.items():
        members = [board for board in boards if board.problem.startswith(prefix)]
        if len(members) < 2:
            continue
        # those without a record have no board, and are not in the mean
        for sweep in dict.fromkeys(name for board in members for name in board.sweeps):
            sides = [_best(board, sweep) for board in members if sweep in board.sweeps]
            pooled = [one for cells in sides for one in cells] if all(sides) else []
            count = sum(board.sweeps.get(sweep, 0) for board in members)
            yield _row(f"{len(members)} {family} on record", BEST, sweep, pooled, count)


def speedups(entry: Entry, sweep: str) -> list[Comparison]:
    """Return an entry's comparisons in a sweep, launch-bound ones included."""
    cells = entry.compared | entry.launch_bound
    return [one for place, one in sorted(cells.items()) if place.partition("/")[0] == sweep]


def _best(board: Board, sweep: str) -> list[Comparison]:
    """Return the cells of the fastest solution that covers a sweep, none where no solution does.

    Means over small parts of a sweep are not compared: whoever has done the easy cells would be the best.
    """
    sides = [speedups(entry, sweep) for _, entry in board.ranked if not entry.stale]
    whole = [cells for cells in sides if len(cells) >= COVERED * board.sweeps[sweep]]
    return max(whole, key=lambda cells: geometric_mean(cells).speedup, default=[])


def _row(problem: str, solution: str, sweep: str, cells: Sequence[Comparison], count: int) -> Row:
    return {
        "problem": problem,
        "solution": solution,
        "sweep": sweep,
        "speedup": geometric_mean(cells).speedup if cells else None,
        "cells": len(cells),
        "of": count,
    }


def title(row: Row) -> str:
    """Name the table that a row is of."""
    return f"by sweep on {row['card']}, protocol {row['protocol']}, {row['arithmetic']}"


def figure(row: Row) -> str:
    """Show a mean, with the cells that it is over."""
    if row["speedup"] is None:
        return ABSENT
    covered = f"{row['cells']}" if row["cells"] == row["of"] else f"{row['cells']} of {row['of']}"
    return f"{figures(row['speedup'])} ({covered})"
