"""Where a kernel that is bound by arithmetic pays for a second wave: proof of how many SMs it was granted."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from runner import analyse, load
from runner.schema import Cell, Timed

#: Times a solution on a cell in processes of its own; None where there are no times.
Rule = Callable[[load.Problem, load.Solution, Cell], Timed | None]

#: One program less than there are SMs changes nothing, one more takes nearly twice as long.
LEVEL, STEP = 1.1, 1.3

_STEPS_PROBLEM = """
from typing import NamedTuple

import torch
from torch import nn


class Shape(NamedTuple):
    programs: int = 1


class Model(nn.Module):
    def forward(self, x):
        return x + 1.0


def get_init_inputs(shape: Shape = Shape()):
    return []


def get_inputs(shape: Shape = Shape()):
    return [torch.rand(shape.programs * 1024)]
"""

_STEPS_SOLUTION = """
import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def spin_kernel(x, y, one, zero, STEPS: tl.constexpr):
    offsets = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    value = tl.load(x + offsets)
    for _ in range(STEPS):
        value = value * one + zero
    tl.store(y + offsets, value + one)


class ModelNew(nn.Module):
    def forward(self, x):
        y = torch.empty_like(x)
        # a warp for each of 32: two programs on one SM share its throughput
        spin_kernel[(x.numel() // 1024,)](x, y, 1.0, 0.0, STEPS=20000, num_warps=32)
        return y
"""


@contextlib.contextmanager
def steps_problem() -> Iterator[load.Problem]:
    """A problem of `programs` times 1024 numbers, in a file that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="kernelwave-") as folder:
        path = Path(folder) / "steps.py"
        path.write_text(_STEPS_PROBLEM)
        yield load.Problem("steps", path, _STEPS_PROBLEM)


def steps_cell(programs: int) -> Cell:
    """The cell of so many programs."""
    return Cell("edges", str(programs), {"programs": programs}, "fp32", "tf32")


def around(rule: Rule, sms: int) -> dict[int, float]:
    """Time one program less than `sms`, as many, and one more: us by number, NaN where there are none."""
    return {programs: _time_us(rule, programs) for programs in (sms - 1, sms, sms + 1)}


def is_edge(times_us: Mapping[int, float]) -> bool:
    """Tell whether the times of `around` have their step where it ought to be."""
    before_us, on_us, past_us = times_us.values()
    return on_us < LEVEL * before_us and past_us > STEP * on_us


def _time_us(rule: Rule, programs: int) -> float:
    solution = load.Solution("spin", Path("spin.py"), _STEPS_SOLUTION)
    with steps_problem() as problem:
        timed = rule(problem, solution, steps_cell(programs))
    return math.nan if timed is None else analyse.median(analyse.times_us(timed, "solution"))
