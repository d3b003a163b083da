"""What the boundary costs: the wall time of a cell against the same without a sandbox, and a cold start."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from runner import load, measure
from runner.judge import edges
from runner.judge.bench import Limits
from runner.judge.referee import Referee
from runner.phases import BUSY, CELL, ROUNDS
from runner.schema import Cell

REPEATS = 3
#: Share of a cell's wall time that the sandbox may cost, and seconds that a new contestant may take.
MOST_SHARE, MOST_COLD_S = 0.15, 1.5
#: No phase of a cell is told that takes less.
_LEAST_S = 0.005
_NAMES = {True: "sandboxed", False: "without sandbox"}

_ADDS = """
from torch import nn


class ModelNew(nn.Module):
    def forward(self, x):
        return x + 1.0
"""


def costs(
    device: str, limits: Limits, problem: load.Problem, solution: load.Solution, cell: Cell
) -> Iterator[tuple[str, str, str, bool | None]]:
    """Yield test, subject, figure and whether it passes."""
    walls_s = {}
    phases_s: Mapping[str, float] = {}
    for confined in (True, False):
        referee = Referee(device, limits, confined=confined)
        try:
            yield ("cold start", _NAMES[confined], *_cold_start(referee))
            taken_s = []
            for _ in range(REPEATS + 1):  # the first builds what all share
                begun = time.monotonic()
                ruling = referee.rule(problem, solution, cell, ("eager", "cudnn"), os.urandom(16))
                taken_s.append(time.monotonic() - begun)
                if confined and ruling.timed is not None:
                    phases_s = ruling.timed.phases_s
            walls_s[confined] = statistics.median(taken_s[1:])
        finally:
            referee.close()
    cost = walls_s[True] / walls_s[False] - 1
    text = f"{walls_s[True]:.2f} s a cell in the sandbox, {walls_s[False]:.2f} s without: {cost:+.1%}"
    yield "boundary", cell.label, text, cost <= MOST_SHARE
    yield "where the time goes", cell.label, where(phases_s), None


def where(phases_s: Mapping[str, float]) -> str:
    """Tell the phases of a cell, the longest first, and how busy the device is in its rounds."""
    if CELL not in phases_s:
        return "no times"
    parts_s = {name: taken_s for name, taken_s in phases_s.items() if name not in (BUSY, CELL)}
    parts_s["elsewhere"] = phases_s[CELL] - sum(parts_s.values())
    told = []
    for name, taken_s in sorted(parts_s.items(), key=lambda part: -part[1]):
        if taken_s >= _LEAST_S:
            busy = f", the GPU at work for {phases_s[BUSY] / taken_s:.0%}" if name == ROUNDS else ""
            told.append(f"{name} {taken_s:.2f} s{busy}")
    return f"{phases_s[CELL]:.2f} s: " + "; ".join(told)


def _cold_start(referee: Referee) -> tuple[str, bool]:
    """Time from the fork of a contestant to the end of its first call, which launches one small kernel."""
    solution = load.Solution("adds", Path("adds.py"), _ADDS)
    taken_s = []
    for _ in range(REPEATS + 1):
        with edges.steps_problem() as steps:
            assert referee.prepare_case(steps, edges.steps_cell(1), os.urandom(16)) is None  # noqa: S101
            begun = time.monotonic()
            inspector, _ = referee.enter(solution)
            inspector.bench.fresh(1)
            inspector.bench.warm_up(measure.SOLUTION, 1)
            taken_s.append(time.monotonic() - begun)
            referee.company.dismiss(solution)
    typical_s = statistics.median(taken_s[1:])
    return f"{typical_s:.2f} s from fork to the first answer", typical_s <= MOST_COLD_S
