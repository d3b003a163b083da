"""Boards -> tables, JSON, CSV and the generated part of `results/README.md`."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from runner import files, summary
from runner.leaderboard import Board, Entry, Mean, geometric_mean
from runner.load import BadInput, read_source
from runner.report import ABSENT, figures, render, to_csv
from runner.schema import to_json
from runner.waves import Occupancy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from runner.schema import Comparison

#: The README between these lines is generated; above them it is written by hand.
BEGIN = "<!-- made by `python -m runner leaderboard --write`: do not edit from here -->"
END = "<!-- to here -->"
#: A digest is shown by its first digits.
DIGEST_CHARS = 12
#: Cells without a speed-up that are named under a table, for each solution.
NAMED_GAPS = 6

Row = dict[str, Any]
Line = dict[str, str]


def show(boards: Sequence[Board], fmt: str = "table", by: str | None = None) -> str:
    """Show boards as a table per board, by shape, by sweep, or by dtype with a column for each arithmetic.

    `json` and `csv` hold all boards in one list, numbers in full: a row per entry, by shape one per cell, by
    sweep one per mean. Which columns there are depends on `by` alone; null, or an empty field, is absent.
    """
    if fmt in ("json", "csv"):
        rows = summary.rows(boards) if by == "sweep" else _rows(boards, _cells if by == "shape" else _facts)
        return json.dumps(rows, indent=1) if fmt == "json" else to_csv(rows)
    if by in ("dtype", "sweep"):
        return _join(_by_dtype(boards) if by == "dtype" else summary.tables(boards), fmt)
    lines = _shape_lines if by == "shape" else _lines
    tables = {_title(board): lines(board) for board in boards}
    notes = {} if by else {_title(board): [*_gap_notes(board), *_past_notes(board)] for board in boards}
    return _join(tables, fmt, notes)


def flags(entry: Entry) -> str:
    """Count an entry's flags by their first sentence; JSON has them whole."""
    counts: Counter[str] = Counter()
    for flag, count in entry.flags.items():
        counts[flag.partition(". ")[0]] += count
    return ", ".join(f"{count} {flag}" for flag, count in counts.items()) or ABSENT


def with_generated(text: str, boards: Sequence[Board], more: dict[str, list[Line]]) -> str:
    """Return a README with the means by sweep, the boards and `more` tables between its markers.

    Raises BadInput where it lacks a marker.
    """
    above, begin, rest = text.partition(BEGIN)
    _, end, below = rest.partition(END)
    if not (begin and end):
        raise BadInput(f"the README of the results lacks the lines '{BEGIN}' and '{END}' around its boards")
    means, others = ([_join(tables, "github")] if tables else [] for tables in (summary.tables(boards), more))
    parts = [*means, show(boards, "github"), *others]
    return "\n\n".join([above + BEGIN, *parts, END + below])


def is_current(readme: Path, boards: Sequence[Board], more: dict[str, list[Line]]) -> bool:
    """Tell whether a README shows these boards and tables. Raises BadInput for one that cannot."""
    text = read_source(readme)
    return with_generated(text, boards, more) == text


def write(readme: Path, boards: Sequence[Board], more: dict[str, list[Line]]) -> None:
    """Put boards and tables into a README, a new one where there is none.

    Raises BadInput for one that cannot be read or written, and `files.DiskFull`: it is as before then.
    """
    text = read_source(readme) if readme.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    files.write(readme, with_generated(text, boards, more))


def _join(tables: dict[str, list[Line]], fmt: str, notes: dict[str, list[str]] | None = None) -> str:
    heading = "### " if fmt == "github" else ""
    parts = []
    for title, lines in tables.items():
        table = render(lines, fmt) if lines else "nothing here is of these files and this protocol"
        parts += [f"{heading}{title}", table, *((notes or {}).get(title) or ())]
    return "\n\n".join(parts) or "no records"


def _place(board: Board) -> str:
    return f"{board.problem} on {board.card}, protocol {board.protocol}"


def _title(board: Board) -> str:
    return f"{_place(board)}, {board.arithmetic}"


def _lines(board: Board) -> list[Line]:
    return [_line(place, entry, board.cells) for place, entry in board.listed]


def _line(place: int | None, entry: Entry, cells: int) -> Line:
    passed = len(entry.compared) + len(entry.launch_bound)
    apart, worst, tail = entry.launch_bound.values(), _worst(entry), entry.worst_tail
    return {
        "rank": str(place or ABSENT),
        "solution": entry.solution,
        "speedup": _mean(entry),
        "cells": str(passed) if entry.stale else f"{passed} of {cells}",
        "launch-bound": f"{len(apart)} at {figures(geometric_mean(apart).speedup)}" if apart else "0",
        "fast_1": f"{_fast(entry)} of {len(entry.compared)}",
        "worst": f"{figures(entry.compared[worst].speedup)} {worst}" if worst else ABSENT,
        "bound": f"{statistics.median(entry.bound_shares):.0%}" if entry.bound_shares else ABSENT,
        "tail": entry.grids[tail].tail if tail else ABSENT,
        "flags": flags(entry),
        "author": entry.author or ABSENT,
        "date": entry.date,
        "digest": entry.digest[:DIGEST_CHARS],
    }


def _rows(boards: Iterable[Board], rows_of: Callable[[Board], list[Row]]) -> list[Row]:
    return [row for board in boards for row in rows_of(board)]


def _facts(board: Board) -> list[Row]:
    """Return a row for each entry, for programs."""
    return [
        {
            **_identity(board, entry),
            "rank": place,
            "unranked": entry.unranked,
            **_mean_facts(entry.mean),
            "cells": board.cells,
            "compared": len(entry.compared),
            "launch_bound": len(entry.launch_bound),
            "fast_1": _fast(entry),
            "worst": _worst(entry),
            "share_of_bound": statistics.median(entry.bound_shares) if entry.bound_shares else None,
            "worst_tail": (tail := entry.worst_tail),
            "worst_tail_grid": to_json(entry.grids[tail]) if tail else None,
            "gaps": entry.gaps,
            "flags": entry.flags,
            "author": entry.author,
            "date": entry.date,
        }
        for place, entry in board.ranked
    ]


def _cells(board: Board) -> list[Row]:
    """Return a row for each cell of each entry, for programs."""
    rows: list[Row] = []
    for _, entry in board.ranked:
        cells = entry.compared | entry.launch_bound
        rows += [_cell_row(board, entry, shape) for shape in (*sorted(cells), *entry.gaps)]
    return rows


def _cell_row(board: Board, entry: Entry, shape: str) -> Row:
    one = (entry.compared | entry.launch_bound).get(shape)
    grid = to_json(entry.grids[shape]) if shape in entry.grids else {}
    return {
        **_identity(board, entry),
        "shape": shape,
        "baseline": one.baseline if one else None,
        **_mean_facts(one),
        "verdict": str(one.verdict) if one else None,
        "launch_bound": shape in entry.launch_bound if one else None,
        "times_fill": entry.fills.get(shape),
        **{name.name: grid.get(name.name) for name in fields(Occupancy)},
        "reason": entry.gaps.get(shape),
    }


def _identity(board: Board, entry: Entry) -> Row:
    return {
        "card": board.card,
        "problem": board.problem,
        "protocol": board.protocol,
        "arithmetic": board.arithmetic,
        "solution": entry.solution,
        "digest": entry.digest,
    }


def _mean_facts(mean: Mean | Comparison | None) -> Row:
    return {name: getattr(mean, name, None) for name in ("speedup", "low", "high")}


def _shape_lines(board: Board) -> list[Line]:
    """Return a line for each shape, with a column for each entry that is not stale."""
    entries = {entry.solution: entry for _, entry in board.ranked if not entry.stale}
    shapes = sorted(
        {shape for one in entries.values() for shape in (*one.compared, *one.launch_bound, *one.gaps)}
    )
    return [
        {"shape": shape, **{name: _cell(one, shape) for name, one in entries.items()}} for shape in shapes
    ]


def _cell(entry: Entry, shape: str) -> str:
    one = (entry.compared | entry.launch_bound).get(shape)
    if one is None:
        return entry.gaps.get(shape, ABSENT)
    remarks = ["launch-bound"] if shape in entry.launch_bound else []
    remarks += [f"{figures(entry.fills[shape])} x fill"] if shape in entry.fills else []
    return " ".join([_interval(one), ", ".join(remarks)]).rstrip()


def _by_dtype(boards: Iterable[Board]) -> dict[str, list[Line]]:
    """Return for each card, problem and protocol a line per text, with a column per arithmetic."""
    tables: dict[str, dict[tuple[str, str], Line]] = {}
    columns: dict[str, list[str]] = {}
    for board in boards:
        columns.setdefault(_place(board), []).append(board.arithmetic)
        lines = tables.setdefault(_place(board), {})
        for place, entry in board.ranked:
            text = (entry.solution, entry.digest[:DIGEST_CHARS])
            figure = _mean(entry) if place is None else f"{place}: {_mean(entry)}"
            lines.setdefault(text, {}).setdefault(board.arithmetic, figure)  # stale ones come last
    return {
        title: [
            {
                "solution": name,
                **{column: line.get(column, ABSENT) for column in columns[title]},
                "digest": text,
            }
            for (name, text), line in lines.items()
        ]
        for title, lines in tables.items()
    }


def _gap_notes(board: Board) -> list[str]:
    """Name the cells that keep a solution from its rank."""
    notes = []
    for _, entry in board.ranked:
        named = [f"{shape} {reason}" for shape, reason in entry.gaps.items()]
        if named and not entry.stale:
            more = f" and {len(named) - NAMED_GAPS} more" if len(named) > NAMED_GAPS else ""
            notes.append(f"{entry.solution} has no rank: {', '.join(named[:NAMED_GAPS])}{more}")
    return notes


def _past_notes(board: Board) -> list[str]:
    counts = board.superseded
    told = (f"{count} of {name}" for name, count in sorted(counts.items()))
    return [f"Texts before these, on record too: {', '.join(told)}"] if counts else []


def _mean(entry: Entry) -> str:
    return _interval(entry.mean) if entry.mean else f"unranked: {entry.unranked}"


def _interval(mean: Mean | Comparison) -> str:
    return f"{figures(mean.speedup)} [{figures(mean.low)}, {figures(mean.high)}]"


def _fast(entry: Entry) -> int:
    """Count the cells that are faster than the baseline beyond doubt."""
    return sum(one.low > 1 for one in entry.compared.values())


def _worst(entry: Entry) -> str | None:
    return min(entry.compared, key=lambda shape: entry.compared[shape].speedup, default=None)
