"""Options -> what they name: problem, solutions, cells, a request."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from runner import cards, devices, load, plan
from runner.load import BadInput, Problem, Solution
from runner.plan import Request
from runner.schema import DTYPES, MATHS


def _choices(kind: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Split a list of names at its commas. Raises BadInput for one that is not known."""
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in chosen or ("",):
        if name not in known:
            raise load.unknown(kind, name, known)
    return chosen


def arithmetics(options: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the dtypes and the maths that are named. Raises BadInput for one that is not known."""
    return _choices("dtype", options.dtype, DTYPES), _choices("math", options.math, MATHS)


def request_of(options: argparse.Namespace, problem: Problem, solutions: Sequence[Solution]) -> Request:
    """Plan a run by the options that it shares with other commands. Raises BadInput and NoDevice."""
    dtypes, maths = arithmetics(options)
    if options.card is not None and options.card not in cards.card_names():
        raise load.unknown("card", options.card, cards.card_names())
    device = devices.choose(options.device)
    sms = cards.load_card(options.card or plan.TARGET_CARD).sms
    return plan.Request(
        problem=problem,
        solutions=tuple(dict.fromkeys(solutions)),
        cells=plan.plan_cells(problem, options.shapes, dtypes, maths, device, sms),
        baselines=load.chosen_baselines(options.baseline),
        device=device,
        results=options.results,
        output=options.output,
        rerun=options.rerun,
        budget_s=options.budget,
        limits=_limits(options),
    )


def _limits(options: argparse.Namespace) -> dict[str, float]:
    target, timing_s = (0.03, 0.5) if options.quick else (0.01, 1.0)
    seconds = {"build_s": 2 * options.timeout, "call_s": options.timeout, "timing_s": timing_s}
    memory = {} if options.memory is None else {"memory_bytes": int(options.memory * 2**30)}
    processes = plan.RANKED_PROCESSES if options.ranked else 1
    return {**seconds, **memory, "target": target, "processes": processes, "sms": options.sms}


def chosen(options: argparse.Namespace) -> tuple[Problem, list[Solution]]:
    """Return the problem, and the solutions that are named or all that it has."""
    problem = load.find_problem(options.problem)
    names = options.solution or load.solution_names(problem.name)
    if not names:
        raise BadInput(f"problem '{problem.name}' has no solutions: name one with --solution PATH")
    return problem, [load.find_solution(name, problem.name) for name in names]


def as_path(file: str) -> str:
    """Mark a word as a path, which a solution's name is not."""
    return file if "/" in file else f"./{file}"
