"""`run` and `compare`: solutions against baselines, and against each other."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from runner import compare, files, jsonl, load, pipeline, plan, report
from runner.commands import exits, progress, words
from runner.load import Solution
from runner.plan import Request
from runner.schema import Cell, Failed

#: Whoever has to wait longer than this without a GPU is told.
LONG_S = 120.0
#: Rule of `lint` -> what to do where a text breaks it.
_REMEDIES = {
    "syntax": f"it has to be Python {sys.version_info.major}.{sys.version_info.minor}",
    "no-model": "give that name to the class that is to be judged",
}


def run(options: argparse.Namespace) -> int:
    """Judge the solutions on the cells asked for, or say what would be done."""
    problem, solutions = words.chosen(options)
    request = words.request_of(options, problem, solutions)
    if request.output is not None:
        files.require_regular(request.output, "name a .jsonl file with -o, or leave it out")
    _tell_unheard(options, request)
    _tell_slow(request)
    if options.dry_run:
        return _dry_run(request)
    for solution in solutions:
        _tell_flaw(solution)
    with progress.shown(request.device) as watch:
        outcome = pipeline.run(request, watch)
    for line in outcome.problems:
        print(f"warning: {line}", file=sys.stderr)
    print(report.table(outcome.records, options.format))
    if options.format in ("table", "github"):
        print(report.summary(outcome.records, options.format))
        if explained := report.explain_flags(outcome.records):
            print(f"\n{explained}")
    if outcome.left:
        print(f"stopped by the budget with {outcome.left} cells left: run again to go on", file=sys.stderr)
    elif outcome.resumed == len(outcome.records):
        print(
            f"{outcome.resumed} cells are recorded already, nothing to run: --rerun runs them again",
            file=sys.stderr,
        )
    return exits.of_records(outcome.records)


def _tell_unheard(options: argparse.Namespace, request: Request) -> None:
    """Say which options have nothing to say here."""
    named = [f"--{name}" for name in ("baseline", "quick", "ranked") if getattr(options, name)]
    if named and request.device == "cpu":
        print(f"warning: nothing is timed on a CPU, {' and '.join(named)} changes nothing", file=sys.stderr)


def _tell_slow(request: Request) -> None:
    """Say what shapes of a GPU's size cost in the interpreter."""
    if request.device == "cpu" and plan.estimate_s(request.problem, request.cells, "cpu") > LONG_S:
        print(
            "warning: shapes of this size take minutes in Triton's interpreter, and their calls may end at "
            "--timeout: --shapes smoke is made for it",
            file=sys.stderr,
        )


def _tell_flaw(solution: Solution) -> None:
    """Say once what will stand in every cell of a solution whose text cannot be run."""
    error = pipeline.flaw(solution)
    if error is None:
        return
    remedy = _REMEDIES.get(error.rule, "mend the line")
    print(
        f"error: '{solution.path}' line {error.line}: {error.message}: {remedy}; its cells are all BUILD",
        file=sys.stderr,
    )


def _dry_run(request: Request) -> int:
    jobs = request.jobs
    recorded = set() if request.rerun else plan.recorded(request)
    todo = [job for job in jobs if (job.solution.name, job.cell.key) not in recorded]
    for job in todo:
        print(f"{job.solution.name}  {job.cell.sweep}/{job.cell.label}  {job.cell.arithmetic}")
    seconds = plan.estimate_s(request.problem, [job.cell for job in todo], request.device)
    lasts = f"{seconds / 60:.1f} min" if seconds < LONG_S * 60 else f"{seconds / 3600:.0f} h"
    print(
        f"{len(jobs)} cells on {request.device}: {len(jobs) - len(todo)} recorded by this protocol for these "
        f"files, {len(todo)} to run, about {lasts}"
    )
    return exits.EXIT_DONE


def compare_two(options: argparse.Namespace) -> int:
    """Time two solutions in the same rounds; what is asked for in a file is there as soon as it is known."""
    problem = load.find_problem(options.problem)
    mine, other = (load.find_solution(name, problem.name) for name in (options.solution, options.other))
    request = words.request_of(options, problem, [mine])
    _tell_slow(request)
    if options.output is not None:
        jsonl.append(options.output, [])  # whoever cannot write should hear it before, not after

    def watch(cell: Cell) -> None:
        print(f"{cell.sweep}/{cell.label} {cell.arithmetic}", file=sys.stderr)

    rows: list[dict[str, Any]] = []
    failures: list[Failed | None] = []
    try:
        for duel in compare.compare(request, other, watch):
            rows.append(compare.row(duel))
            failures.append(duel.failed)
            if options.output is not None:
                jsonl.append(options.output, rows[-1:])
    finally:
        if rows and options.format != "json":
            print(f"A is {mine.name}, B is {other.name}; where B/A is above 1, A is the faster one\n")
        if rows:
            print(compare.table(rows, options.format))
    return exits.of_failures(failures)
