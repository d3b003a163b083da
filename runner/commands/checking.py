"""`check`, `submit` and `admit`: whether it is right, may stay, and would be seen if it were wrong."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from runner import (
    admit,
    answer,
    cards,
    devices,
    files,
    leaderboard,
    lint,
    load,
    output_rules,
    pipeline,
    plan,
    report,
    selftest,
    standings,
    submit,
)
from runner.commands import exits, progress, words
from runner.judge_process import JudgeDied
from runner.lint import Finding
from runner.load import BadInput, Problem, Solution
from runner.pipeline import Outcome
from runner.schema import HIDDEN, Record, Status


def check(options: argparse.Namespace) -> int:
    """Findings and correctness; exit code 1 for a failed cell, and for a broken rule of the owner's."""
    problem = load.find_problem(options.problem)
    solution = load.find_solution(words.as_file(options.file, problem.name), problem.name)
    words.cells_of(options, problem)  # what cannot be is said before any finding
    findings = output_rules.findings(solution.source, bind=bool(options.rules))
    _show_findings(options.file, findings)
    begun = time.monotonic()
    outcome = correctness(options, problem, solution)
    for one in outcome.records:
        if one.failed and one.failed.stage != pipeline.TEXT:  # that is among the findings
            print("\n".join([_failure(one), *report.indented(one.failed.detail)]))
    lasted_s = time.monotonic() - begun
    refused = any(finding.severity == lint.ERROR for finding in findings)
    if options.rules:
        idle = answer.without_launches(outcome.records, solution.source)
        _show_findings(options.file, idle)
        refused = refused or bool(idle)
    said = ", and the text is refused" if refused else ""
    print(f"{_tally(outcome.records)} in {lasted_s:.0f} s{said}")
    if outcome.records and all(one.status is Status.NOT_COVERED for one in outcome.records):
        raise BadInput(
            f"nothing was checked: '{options.file}' covers none of this: ask for its DTYPES and MATH"
        )
    return exits.of_records(outcome.records) or (exits.EXIT_FAILED if refused else exits.EXIT_DONE)


def _tally(records: Sequence[Record]) -> str:
    """Count cells; one that the solution does not cover has neither passed nor failed."""
    counts = Counter(one.status for one in records)
    beside = {Status.NOT_COVERED: "not covered", Status.UNSUPPORTED: "unsupported"}
    judged = len(records) - sum(counts[status] for status in beside)
    told = [f"{counts[status]} {name}" for status, name in beside.items() if counts[status]]
    return ", ".join([f"{counts[Status.PASS]} of {judged} cells pass", *told])


def _show_findings(file: str, findings: Sequence[Finding]) -> None:
    for one in findings:
        print(f"{file}:{one.line}: {one.severity} [{one.rule}] {one.message}")


def correctness(options: argparse.Namespace, problem: Problem, solution: Solution) -> Outcome:
    """Judge without times; records go to a folder that is thrown away."""
    with TemporaryDirectory(prefix="kernelwave-check-") as folder:
        options.__dict__.update(
            baseline=[],
            rerun=True,
            budget=None,
            output=None,
            results=Path(folder),
            quick=True,
            ranked=False,
            sms=0,
        )
        request = plan.without_timing(words.request_of(options, problem, [solution]))
        return pipeline.run(request, progress.plain)


def _failure(made: Record) -> str:
    cell, reason = made.cell, made.failed.reason if made.failed else ""
    again = f" (--shapes {cell.spelled})" if cell.sweep == HIDDEN else ""  # another one in each run
    return f"{cell.sweep}/{cell.label} {cell.arithmetic}: {made.status}: {reason}{again}"


def submit_file(options: argparse.Namespace) -> int:
    """Judge a file from outside and keep it with its records, or refuse it in plain words."""
    file, problem = words.as_path(options.file), submit.find_problem(options.problem)
    source = load.read_source(Path(file))
    words.cells_of(options, problem)
    findings = submit.findings(source)
    _show_findings(options.file, findings)
    if any(finding.severity == lint.ERROR for finding in findings):
        print(f"nothing is run and nothing is written: mend what is an error in '{options.file}'")
        return exits.EXIT_FAILED
    solution = submit.propose(source, problem.name, options.author, options.name, options.solutions)
    request = words.request_of(options, problem, [solution])
    outcome = submit.submit(request, file, progress.plain, dry_run=options.dry_run, isolation=options.require)
    if outcome.written:
        print(report.table(outcome.records, "table"))
    added = solution.source.count("\n") - source.count("\n")
    if added and exits.of_records(outcome.records) != exits.EXIT_DONE:
        print(f"it was judged with its author's line: a line after that has {added} less in '{options.file}'")
    print("\n".join(outcome.lines))
    if outcome.written:
        show_place(options.results, options.solutions.parent, outcome.records[0])
    return exits.of_records(outcome.records)


def show_place(results: Path, root: Path, kept: Record) -> None:
    """Renew the boards in the README of `results`, and show those that a kept record is on.

    `root` has `problems/` and `solutions/`; boards speak of those files, so without problems there are none.
    """
    if kept.problem not in load.problem_names(root):
        return
    boards, _ = leaderboard.read(results, root)
    readme = results / "README.md"
    try:
        standings.write(readme, boards, selftest.recorded(results))
        print(f"written: {readme}")
    except (BadInput, files.DiskFull) as error:  # the file is kept all the same
        print(f"warning: the boards are not renewed: {error}", file=sys.stderr)
    print()
    mine = [board for board in boards if (board.card, board.problem) == (kept.card, kept.problem)]
    print(standings.show(mine))


def admit_problem(options: argparse.Namespace) -> int:
    """Say of each cell whether wrong answers fail there and honest ones pass."""
    problem = load.find_problem(options.problem)
    dtypes, maths = words.arithmetics(options)
    device = devices.choose(options.device)
    sms = cards.load_card(plan.TARGET_CARD).sms
    cells = plan.plan_cells(problem, options.shapes, dtypes, maths, device, sms)
    if options.output is not None:
        admit.keep(options.output, [])  # whoever cannot write should hear it before, not after
        asked, cells = len(cells), admit.left(options.output, problem, cells)
        print(f"{asked - len(cells)} of {asked} cells are on record as admitted", file=sys.stderr)
    found: list[admit.Admission] = []
    death: JudgeDied | None = None
    try:
        for one in admit.admit(problem, cells, device):
            found.append(one)
            if options.output is not None:
                admit.keep(options.output, [one])
            place = f"{one.cell.sweep}/{one.cell.label} {one.cell.arithmetic}"
            print(f"[{len(found)}/{len(cells)}] {place} {one.verdict}", file=sys.stderr)
    except JudgeDied as error:
        death = error
    if cells or options.format == "json":
        print(admit.render(found, options.format))
    else:
        print("no cell is left to be admitted")
    if death is not None:
        left = cells[len(found)]
        place = f"{left.sweep}/{left.label} {left.arithmetic}"
        raise pipeline.HarnessFailure(f"the judge died at {place}: {death}")
    return exits.EXIT_DONE if all(one.admitted for one in found) else exits.EXIT_FAILED
