"""`list`: what there is to name."""

from __future__ import annotations

import argparse

from runner import cards, load, plan, stages
from runner.commands import exits
from runner.lint import read_header
from runner.load import Solution


def list_all(_: argparse.Namespace) -> int:
    """Print problems with their sweeps and solutions, baselines, cards and stages."""
    sms = cards.load_card(plan.TARGET_CARD).sms
    for name in load.problem_names():
        problem = load.find_problem(name)
        print(f"problem {name}")
        for sweep, rows in problem.sweeps(sms).items():
            print(f"  sweep {sweep}: {', '.join(rows)}")
        for solution in load.solution_names(name):
            print(f"  solution {solution}: {_technique(load.find_solution(solution, name))}")
    default = load.default_baselines()
    others = [f"{name} (with --baseline)" for name in load.baseline_names() if name not in default]
    print(f"baselines: {', '.join([*default, *others])}")
    print(f"cards: {', '.join(cards.card_names())}")
    print(f"stages: {', '.join(stages.stage_names())}")
    return exits.EXIT_DONE


def _technique(solution: Solution) -> str:
    return read_header(solution.source).technique or "(no docstring)"
