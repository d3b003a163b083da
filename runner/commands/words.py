"""Options -> what they name: problem, solutions, cells, a request."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from runner import devices, load, plan
from runner.load import BadInput, Problem, Solution
from runner.plan import Request
from runner.schema import Cell


def arithmetics(options: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the dtypes and the maths that are named. Raises BadInput for one that is not known."""
    return plan.arithmetics(_parts(options.dtype), _parts(options.math))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def cells_of(options: argparse.Namespace, problem: Problem) -> tuple[str, tuple[Cell, ...]]:
    """Return the device and the cells that are asked for. Raises BadInput and NoDevice."""
    dtypes, maths = arithmetics(options)
    sms = plan.card(options.card or plan.TARGET_CARD).sms
    device = devices.choose(options.device)
    return device, plan.plan_cells(problem, options.shapes, dtypes, maths, device, sms)


def request_of(options: argparse.Namespace, problem: Problem, solutions: Sequence[Solution]) -> Request:
    """Plan a run by the options that it shares with other commands. Raises BadInput and NoDevice."""
    device, cells = cells_of(options, problem)
    return plan.Request(
        problem=problem,
        solutions=tuple(solutions),
        cells=cells,
        baselines=load.chosen_baselines(options.baseline),
        device=device,
        results=options.results,
        output=options.output,
        rerun=options.rerun,
        budget_s=options.budget,
        limits=plan.limits(
            timeout_s=options.timeout,
            memory_bytes=None if options.memory is None else int(options.memory * 2**30),
            quick=options.quick,
            ranked=options.ranked,
            sms=options.sms,
        ),
    )


def chosen(options: argparse.Namespace) -> tuple[Problem, list[Solution]]:
    """Return the problem, and the solutions that are named or all that it has. Raises BadInput."""
    problem = load.find_problem(options.problem)
    names = options.solution or load.solution_names(problem.name)
    if not names:
        raise BadInput(f"problem '{problem.name}' has no solutions: name one with --solution PATH")
    return problem, load.require_distinct(load.find_solution(name, problem.name) for name in names)


def as_file(file: str, problem: str) -> str:
    """Mark a word as a path, unless it names a solution and no file."""
    return file if file in load.solution_names(problem) and not Path(file).exists() else as_path(file)


def as_path(file: str) -> str:
    """Mark a word as a path, which a solution's name is not."""
    return file if "/" in file else f"./{file}"
