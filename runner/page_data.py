"""Boards and their records -> what the charts of the page are drawn from, as plain JSON types."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from runner import cards, load, record
from runner.analyse import times_us
from runner.plan import TARGET_CARD
from runner.roofline import attainable_tflops
from runner.schema import Comparison, Record, digest, to_json
from runner.waves import largest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from runner.leaderboard import Board, Entry

#: Colours and markers that `page.css` and `page.js` have; more solutions than these share them.
SERIES = 6

#: What a record says of its place under the roof.
PLACE = ("share_of_bound", "flops", "min_bytes")

#: Numbers in full, named as in `leaderboard --by shape --format json`; what is not known has no key.
Facts = dict[str, Any]
#: The newest record of each cell of each text.
Newest = dict[tuple[str | int, ...], Record]


def newest(records: Iterable[Record]) -> Newest:
    """Return the newest of each cell."""
    return {_key(one): one for one in sorted(records, key=record.recency)}


def board_facts(board: Board, records: Newest, series: Mapping[str, int], root: Path) -> Facts:
    """Return a board's roof and its solutions that are not stale, the best first, each with its cells.

    Cells are in the order of the sweeps. `series` numbers the solutions of a problem, so that one looks the
    same on all boards. Times are in microseconds, the roof in GB/s and TFLOP/s.
    """
    fresh = [entry for _, entry in board.ranked if not entry.stale]
    solutions = [
        {"name": entry.solution, "series": series[entry.solution] % SERIES, "cells": cells}
        for entry, cells in zip(fresh, _cells(board, fresh, records, root), strict=True)
    ]
    return {"roof": _roof(board), "target_sms": cards.load_card(TARGET_CARD).sms, "solutions": solutions}


def _roof(board: Board) -> Facts | None:
    card = cards.find_card(board.card)
    if card is None:
        return None
    return {"gb_per_s": card.dram_gb_per_s, "tflops": attainable_tflops(card, board.arithmetic)}


def _key(one: Record) -> tuple[str | int, ...]:
    # a label alone would not do: the sweep `waves` may have been placed for another card
    place, texts = f"{one.cell.sweep}/{one.cell.label}", (one.problem_digest, one.solution_digest)
    return (one.card, one.protocol, one.cell.arithmetic, *texts, place, digest(one.cell.shape))


def _cells(board: Board, entries: Iterable[Entry], records: Newest, root: Path) -> Iterable[list[Facts]]:
    for entry in entries:
        problem = load.find_problem(board.problem, root)
        text = (board.card, board.protocol, board.arithmetic, problem.digest, entry.digest)
        sweeps = problem.sweeps(cards.load_card(TARGET_CARD).sms)
        yield [
            {"shape": f"{sweep}/{label}", "sweep": sweep, "label": label} | facts
            for sweep, rows in sweeps.items()
            for label, shape in rows.items()
            if (
                facts := _cell(
                    entry, f"{sweep}/{label}", records.get((*text, f"{sweep}/{label}", digest(shape)))
                )
            )
        ]


def _cell(entry: Entry, place: str, one: Record | None) -> Facts:
    compared = entry.compared.get(place) or entry.launch_bound.get(place)
    if compared is None:
        return {"reason": entry.gaps[place]} if place in entry.gaps else {}
    apart = {"launch_bound": place in entry.launch_bound}
    return _speed(compared) | apart | (_measured(one) if one else {})


def _speed(one: Comparison) -> Facts:
    facts = {"speedup": one.speedup, "low": one.low, "high": one.high}
    return {**facts, "verdict": str(one.verdict), "baseline": one.baseline}


def _measured(one: Record) -> Facts:
    """Return the median time, the place under the roof, and how the largest grid fills the card."""
    taken_us = times_us(one.timed, "solution") if one.timed else []
    if not taken_us:
        return {}
    facts: Facts = {"time_us": statistics.median(taken_us)}
    roofline = {name: one.roofline.get(name) for name in PLACE}
    # all or none: a point under the roof needs each of them
    facts |= roofline if all(map(_is_positive, roofline.values())) else {}
    grid = largest(one.waves)
    return facts | ({**to_json(grid), "sms": grid.sms, "tail": grid.tail} if grid else {})


def _is_positive(value: Any) -> bool:
    # what a record says of these is any JSON
    return isinstance(value, int | float) and 0 < value < math.inf
