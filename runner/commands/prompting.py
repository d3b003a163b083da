"""`prompt`: a page for whoever wants to do better, and feedback on the answer."""

from __future__ import annotations

import argparse
import dataclasses
import json

from runner import answer, load, prompt
from runner.commands import exits, words
from runner.commands.checking import correctness
from runner.load import BadInput


def prompt_page(options: argparse.Namespace) -> int:
    """Print the page, or judge an answer to it."""
    dtypes, maths = words.arithmetics(options)
    if options.answer and options.feedback:
        raise BadInput("--feedback is for a page: leave out it or --answer")
    if options.answer:
        return _answer(options)
    missing = [name for name in ("problem", "solution", "stage") if getattr(options, name) is None]
    if missing:
        raise BadInput(f"a prompt needs --{', --'.join(missing)}")
    for name in ("device", "memory"):
        if getattr(options, name) is not None:
            raise BadInput(f"--{name} is for --answer: a page runs nothing on a device")
    problem = load.find_problem(options.problem)
    solution = load.find_solution(options.solution, problem.name)
    print(
        prompt.page(
            problem,
            solution,
            prompt.find_stage(options.stage),
            prompt.find_card(options.card),
            shapes=options.shapes,
            dtypes=dtypes,
            maths=maths,
            profile=options.profile,
            feedback=options.feedback,
            results=options.results,
            predict_s=None if options.no_run else options.timeout,
        )
    )
    return exits.EXIT_DONE


def _answer(options: argparse.Namespace) -> int:
    """Feedback on a model's reply: findings, and what the judge says where the rules are kept."""
    problem = load.find_problem(options.problem) if options.problem else None
    reply = load.read_source(options.answer)
    judged, code = answer.judge(reply), exits.EXIT_FAILED
    if not judged.refused:
        code = exits.EXIT_DONE
        if problem and not options.no_run:
            solution = load.Solution("answer", options.answer, judged.source or "")
            outcome = correctness(options, problem, solution)
            idle = answer.without_launches(outcome.records, solution.source)
            judged = dataclasses.replace(
                judged,
                refused=bool(idle),
                findings=(*judged.findings, *idle),
                correctness=answer.correctness(outcome.records),
            )
            code = exits.of_records(outcome.records) or (exits.EXIT_FAILED if judged.refused else code)
    told = {name: value for name, value in dataclasses.asdict(judged).items() if value is not None}
    print(json.dumps(told, indent=1))
    return code
