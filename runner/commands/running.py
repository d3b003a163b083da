"""`run` and `compare`: solutions against baselines, and against each other."""

from __future__ import annotations

import argparse
import sys

from runner import compare, load, pipeline, plan, report
from runner.commands import exits, progress, words
from runner.load import BadInput
from runner.plan import Request
from runner.schema import Cell


def run(options: argparse.Namespace) -> int:
    """Judge the solutions on the cells asked for, or say what would be done."""
    problem, solutions = words.chosen(options)
    request = words.request_of(options, problem, solutions)
    if request.output is not None and request.output.is_dir():
        raise BadInput(f"-o '{request.output}' is a directory: name a .jsonl file")
    if options.dry_run:
        return _dry_run(request)
    outcome = pipeline.run(request, progress.watcher(request.device))
    for line in outcome.problems:
        print(f"warning: {line}", file=sys.stderr)
    print(report.table(outcome.records, options.format))
    if options.format in ("table", "github"):
        print(report.summary(outcome.records, options.format))
    if outcome.left:
        print(f"stopped by the budget with {outcome.left} cells left: run again to go on", file=sys.stderr)
    return exits.of_records(outcome.records)


def _dry_run(request: Request) -> int:
    jobs = request.jobs
    recorded = plan.recorded(request)
    todo = [job for job in jobs if (job.solution.name, job.cell.key) not in recorded]
    for job in todo:
        print(f"{job.solution.name}  {job.cell.sweep}/{job.cell.label}  {job.cell.arithmetic}")
    seconds = len(todo) * plan.ESTIMATE_S[request.device.partition(":")[0]]
    print(
        f"{len(jobs)} cells on {request.device}: {len(jobs) - len(todo)} recorded by this protocol for these "
        f"files, {len(todo)} to run, about {seconds / 60:.1f} min"
    )
    return exits.EXIT_DONE


def compare_two(options: argparse.Namespace) -> int:
    """Time two solutions in the same rounds."""
    problem = load.find_problem(options.problem)
    mine, other = (load.find_solution(name, problem.name) for name in (options.solution, options.other))
    request = words.request_of(options, problem, [mine])

    def watch(cell: Cell) -> None:
        print(f"{cell.sweep}/{cell.label} {cell.arithmetic}", file=sys.stderr)

    rows = [compare.row(duel) for duel in compare.compare(request, other, watch)]
    print(compare.table(rows, options.format))
    return exits.EXIT_DONE if all(one["status"] == "PASS" for one in rows) else exits.EXIT_FAILED
