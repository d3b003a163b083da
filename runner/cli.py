"""Words for humans: arguments in, lines and tables out. The only place that prints; never loads torch."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.arguments import parse
from runner.load import BadInput
from runner.schema import DTYPES, MATHS

if TYPE_CHECKING:
    from runner.lint import Finding
    from runner.load import Problem, Solution
    from runner.pipeline import Event, Outcome
    from runner.plan import Request
    from runner.schema import Cell, Record
    from runner.submit import Report

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_HARNESS, EXIT_DEVICE = range(5)


def main(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    try:
        if not sys.platform.startswith("linux"):
            raise BadInput(f"KernelWave runs on Linux (or WSL), not on {sys.platform}")
        options = parse(arguments)
        return _COMMANDS[options.command](options)
    except KeyboardInterrupt:
        print("interrupted: what is recorded stays; run again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # or the interpreter would complain once more on its way out
        return EXIT_DONE
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return code


def _code_of(error: Exception) -> int | None:
    """Exit code of an error that is one clear line; None for a bug."""
    from runner import devices, gpu_lock, ncu, pipeline, record  # noqa: PLC0415 - an error may take its time

    codes: dict[type[Exception], int] = {
        BadInput: EXIT_USAGE,
        devices.NoDevice: EXIT_DEVICE,
        ncu.NoCounters: EXIT_DEVICE,
        gpu_lock.DeviceBusy: EXIT_DEVICE,
        pipeline.HarnessFailure: EXIT_HARNESS,
        record.ResultsUnwritable: EXIT_HARNESS,
        record.ResultsBusy: EXIT_HARNESS,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), None)


def _choices(kind: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    from runner.load import unknown  # noqa: PLC0415 - only when a run is planned

    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in chosen or ("",):
        if name not in known:
            raise unknown(kind, name, known)
    return chosen


def _request(options: argparse.Namespace, problem: Problem, solutions: Sequence[Solution]) -> Request:
    from runner import cards, devices, load, plan  # noqa: PLC0415 - `--help` need not pay

    baselines = load.baseline_names()
    for name in options.baseline:
        if name not in baselines:
            raise load.unknown("baseline", name, baselines)
    dtypes, maths = _choices("dtype", options.dtype, DTYPES), _choices("math", options.math, MATHS)
    if options.card is not None and options.card not in cards.card_names():
        raise load.unknown("card", options.card, cards.card_names())
    device = devices.choose(options.device)
    sms = cards.load_card(options.card or plan.TARGET_CARD).sms
    return plan.Request(
        problem=problem,
        solutions=tuple(dict.fromkeys(solutions)),
        cells=plan.plan_cells(problem, options.shapes, dtypes, maths, device, sms),
        baselines=tuple(options.baseline or load.default_baselines()),
        device=device,
        results=options.results,
        output=options.output,
        rerun=options.rerun,
        budget_s=options.budget,
        limits=_limits(options),
    )


def _limits(options: argparse.Namespace) -> dict[str, float]:
    from runner import plan  # noqa: PLC0415 - `--help` need not pay

    target, timing_s = (0.03, 0.5) if options.quick else (0.01, 1.0)
    seconds = {"build_s": 2 * options.timeout, "call_s": options.timeout, "timing_s": timing_s}
    memory = {} if options.memory is None else {"memory_bytes": int(options.memory * 2**30)}
    processes = plan.RANKED_PROCESSES if options.ranked else 1
    return {**seconds, **memory, "target": target, "processes": processes, "sms": options.sms}


def _run(options: argparse.Namespace) -> int:
    from runner import pipeline, report  # noqa: PLC0415 - `--help` need not pay

    problem, solutions = _chosen(options)
    request = _request(options, problem, solutions)
    if request.output is not None and request.output.is_dir():
        raise BadInput(f"-o '{request.output}' is a directory: name a .jsonl file")
    if options.dry_run:
        return _dry_run(request)
    outcome = pipeline.run(request, _watcher(request.device))
    for line in outcome.problems:
        print(f"warning: {line}", file=sys.stderr)
    print(report.table(outcome.records, options.format))
    if options.format in ("table", "github"):
        print(report.summary(outcome.records, options.format))
    if outcome.left:
        print(f"stopped by the budget with {outcome.left} cells left: run again to go on", file=sys.stderr)
    return _verdict(outcome)


def _verdict(outcome: Outcome | Report) -> int:
    from runner.schema import HARMLESS, Status  # noqa: PLC0415 - beside its use

    statuses = {r.status for r in outcome.records}
    if Status.ERROR in statuses:
        return EXIT_HARNESS
    return EXIT_DONE if statuses <= set(HARMLESS) else EXIT_FAILED


def _dry_run(request: Request) -> int:
    from runner import plan  # noqa: PLC0415 - `--help` need not pay

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
    return EXIT_DONE


def _watcher(device: str) -> Callable[[Event], None]:
    """Progress on standard error: a bar on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        return _plain_progress
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(device, total=None)
    progress.start()

    def watch(event: Event) -> None:
        job, done = event.job, event.index + (event.record is not None)
        text = f"{job.solution.name} {job.cell.sweep}/{job.cell.label} {job.cell.arithmetic}"
        progress.update(task, total=event.total, completed=done, description=text)
        if done == event.total:
            progress.stop()

    return watch


def _plain_progress(event: Event) -> None:
    if event.record is None or event.resumed:
        return
    job, made = event.job, event.record
    reason = f": {made.failed.reason}" if made.failed else ""
    place = f"{job.solution.name} {job.cell.sweep}/{job.cell.label} {job.cell.arithmetic}"
    print(f"[{event.index + 1}/{event.total}] {place} {made.status}{reason}", file=sys.stderr)


def _list(_: argparse.Namespace) -> int:
    from runner import cards, load, plan, stages  # noqa: PLC0415 - `--help` need not pay

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
    return EXIT_DONE


def _technique(solution: Solution) -> str:
    from runner.lint import read_header  # noqa: PLC0415 - `--help` need not pay

    return read_header(solution.source).technique or "(no docstring)"


def _chosen(options: argparse.Namespace) -> tuple[Problem, list[Solution]]:
    """Return the problem, and the solutions that are named or all that it has."""
    from runner import load  # noqa: PLC0415 - `--help` need not pay

    problem = load.find_problem(options.problem)
    names = options.solution or load.solution_names(problem.name)
    if not names:
        raise BadInput(f"problem '{problem.name}' has no solutions: name one with --solution PATH")
    return problem, [load.find_solution(name, problem.name) for name in names]


def _explain(options: argparse.Namespace) -> int:
    from runner import cards, explain, explain_table, load, plan, record  # noqa: PLC0415 - `--help` need not pay

    problem, solutions = _chosen(options)
    chosen = list(dict.fromkeys(options.card or [plan.TARGET_CARD]))
    for name in chosen:
        if name not in cards.card_names():
            raise load.unknown("card", name, cards.card_names())
    targets = [cards.load_card(name) for name in chosen]
    dtypes, maths = _choices("dtype", options.dtype, DTYPES), _choices("math", options.math, MATHS)
    shapes = options.shapes or ["kernelbench"]
    cells = plan.plan_cells(problem, shapes, dtypes, maths, "cpu", targets[0].sms)
    folders = [options.results / card / problem.name for card in chosen]
    files = [folder / f"{solution.name}.jsonl" for folder in folders for solution in solutions]
    records = [one for file in files for one in record.read(file)[0]]
    reports = explain.explain(problem, solutions, cells, targets, options.timeout, records)
    print(explain_table.render(reports, options.format))
    return EXIT_FAILED if any("error" in report for report in reports) else EXIT_DONE


def _profile(options: argparse.Namespace) -> int:
    from runner import agreement, cards, observe, plan, profile_table, profiling, prompt  # noqa: PLC0415

    problem, solutions = _chosen(options)
    dtypes, maths = _choices("dtype", options.dtype, DTYPES), _choices("math", options.math, MATHS)
    sms = cards.load_card(plan.TARGET_CARD).sms
    cells = plan.plan_cells(problem, options.shapes or ["kernelbench"], dtypes, maths, "cuda", sms)
    of_stage = prompt.find_stage(options.stage).metrics if options.stage else ()
    named = [name.strip() for name in options.metrics.split(",") if name.strip()]
    metrics = profiling.wanted([one.name for one in of_stage], named)
    settings = observe.Settings(metrics, options.clock_control, options.cache_control, options.timeout)
    if options.output is not None and (options.output.is_dir() or not options.output.parent.is_dir()):
        raise BadInput(f"-o '{options.output}' cannot be written: name a file in a folder that exists")
    profiling.require_device()
    print("solutions run unconfined, with your rights: profile only files that you trust", file=sys.stderr)
    if options.against_explain:
        reports = agreement.compare(problem, solutions, cells, options.timeout)
        text = profile_table.differences(reports)
    else:
        each = (profiling.profile(problem, one, cells, settings, options.results) for one in solutions)
        reports = [report for found in each for report in found]
        text = profile_table.table(reports)
    data = json.dumps(reports[0] if len(reports) == 1 else reports, indent=1)
    print(data if options.format == "json" else text)
    if options.output is not None:
        options.output.write_text(f"{data}\n")
    wrong = any("error" in report or report.get("differences") for report in reports)
    return EXIT_FAILED if wrong else EXIT_DONE


def _check(options: argparse.Namespace) -> int:
    """Findings and correctness; exit code 1 for a failed cell, and for a broken rule of the owner's."""
    from runner import lint, load, output_rules  # noqa: PLC0415 - `--help` need not pay

    problem = load.find_problem(options.problem)
    solution = load.find_solution(_as_path(options.file), problem.name)
    findings = lint.lint(solution.source, output_rules.CHECKS if options.rules else ())
    _show_findings(options.file, findings)
    begun = time.monotonic()
    outcome = _correctness(options, problem, solution)
    failed = [r for r in outcome.records if r.failed]
    for one in failed:
        print(_failure(one))
    passed, all_of = len(outcome.records) - len(failed), len(outcome.records)
    print(f"{passed} of {all_of} cells pass in {time.monotonic() - begun:.0f} s")
    refused = any(finding.severity == lint.ERROR for finding in findings)
    return _verdict(outcome) or (EXIT_FAILED if refused else EXIT_DONE)


def _as_path(file: str) -> str:
    """Mark a word as a path, which a solution's name is not."""
    return file if "/" in file else f"./{file}"


def _show_findings(file: str, findings: Sequence[Finding]) -> None:
    for one in findings:
        print(f"{file}:{one.line}: {one.severity} [{one.rule}] {one.message}")


def _correctness(options: argparse.Namespace, problem: Problem, solution: Solution) -> Outcome:
    """Judge without times; records go to a folder that is thrown away."""
    from tempfile import TemporaryDirectory  # noqa: PLC0415 - `--help` need not pay

    from runner import pipeline, plan  # noqa: PLC0415

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
        request = plan.without_timing(_request(options, problem, [solution]))
        return pipeline.run(request, _plain_progress)


def _failure(made: Record) -> str:
    cell, reason = made.cell, made.failed.reason if made.failed else ""
    return f"{cell.sweep}/{cell.label} {cell.arithmetic}: {made.status}: {reason}"


def _compare(options: argparse.Namespace) -> int:
    from runner import compare, load  # noqa: PLC0415 - `--help` need not pay

    problem = load.find_problem(options.problem)
    mine, other = (load.find_solution(name, problem.name) for name in (options.solution, options.other))
    request = _request(options, problem, [mine])

    def watch(cell: Cell) -> None:
        print(f"{cell.sweep}/{cell.label} {cell.arithmetic}", file=sys.stderr)

    rows = [compare.row(duel) for duel in compare.compare(request, other, watch)]
    print(compare.table(rows, options.format))
    return EXIT_DONE if all(one["status"] == "PASS" for one in rows) else EXIT_FAILED


def _selftest(options: argparse.Namespace) -> int:
    from runner import devices, selftest  # noqa: PLC0415 - `--help` need not pay

    device = devices.choose(options.device)
    if device == "cpu":
        raise devices.NoDevice("selftest times kernels: it needs a CUDA device; see `doctor`")
    findings = []
    for finding in selftest.run(device, options.part):
        print(selftest.line(finding), file=sys.stderr)
        if options.output:
            selftest.append(options.output, finding)
        findings.append(finding)
    print(selftest.table(findings, options.format))
    return EXIT_FAILED if any(one["passed"] is False for one in findings) else EXIT_DONE


def _submit(options: argparse.Namespace) -> int:
    from runner import lint, load, report, submit  # noqa: PLC0415 - `--help` need not pay

    file, problem = _as_path(options.file), submit.find_problem(options.problem)
    source = load.read_source(Path(file))
    findings = submit.findings(source)
    _show_findings(options.file, findings)
    if any(finding.severity == lint.ERROR for finding in findings):
        print(f"nothing is run and nothing is written: mend what is an error in '{options.file}'")
        return EXIT_FAILED
    solution = submit.propose(source, problem.name, options.author, options.name, options.solutions)
    request = _request(options, problem, [solution])
    outcome = submit.submit(request, file, _plain_progress, dry_run=options.dry_run)
    if outcome.written:
        print(report.table(outcome.records, "table"))
    print("\n".join(outcome.lines))
    return _verdict(outcome)


def _import(options: argparse.Namespace) -> int:
    from runner import record  # noqa: PLC0415 - `--help` need not pay

    try:
        with record.lock_results(options.results):
            added, skipped, problems = record.import_file(options.file, options.results)
    except OSError as error:
        raise BadInput(f"cannot read '{options.file}': {error.strerror}") from error
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    print(f"{added} records added, {skipped} were there already, {len(problems)} lines are no records")
    return EXIT_USAGE if problems and not added and not skipped else EXIT_DONE


def _leaderboard(options: argparse.Namespace) -> int:
    from runner import leaderboard, page, selftest, standings  # noqa: PLC0415 - `--help` need not pay

    if (options.format == "html") != (options.output is not None):
        raise BadInput("--format html and -o DIR go together: the page is DIR/index.html")
    boards, problems = leaderboard.read(options.results)
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    readme = options.results / "README.md"
    if options.check or options.write:
        if options.card or options.problem or options.by:
            raise BadInput(f"{readme} shows all boards: leave --card, --problem and --by out")
        worth = selftest.recorded(options.results)
        if options.write:
            standings.write(readme, boards, worth)
        elif not standings.is_current(readme, boards, worth):
            print(
                f"{readme} is not what its records give: python -m runner leaderboard --write",
                file=sys.stderr,
            )
            return EXIT_FAILED
        return EXIT_DONE
    boards = standings.only(boards, options.card, options.problem)
    if options.output is None:
        print(standings.show(boards, options.format, options.by))
    elif options.by:
        raise BadInput("the page shows every shape and dtype: leave --by out")
    else:
        print(page.write(options.output, boards, options.results))
    return EXIT_DONE


def _export(options: argparse.Namespace) -> int:
    from runner import export, export_kernelbench, export_trace  # noqa: PLC0415 - `--help` need not pay

    records, problems = export.read(
        options.results, problem=options.problem, solution=options.solution, card=options.card
    )
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    write = {"trace": export_trace.lines, "kernelbench": export_kernelbench.eval_results}[options.format]
    made = write(records, options.arithmetic)
    if options.output is None:
        print(made.text)
    else:
        export.write(options.output, made)
    left_out = ", ".join(f"{count} {why}" for why, count in made.left_out.items()) or "none"
    print(f"{made.records} records exported; left out: {left_out}", file=sys.stderr)
    return EXIT_DONE


def _staircase(options: argparse.Namespace) -> int:
    from runner import load, staircase  # noqa: PLC0415 - `--help` need not pay

    problem = load.find_problem(options.problem)
    names = options.solution or load.solution_names(problem.name)
    solutions = [load.find_solution(name, problem.name) for name in names]
    found = staircase.read(options.results, problem, solutions)
    if not found:
        raise BadInput(
            f"no timed records of the sweep `waves` for '{', '.join(names) or problem.name}' by "
            f"this protocol for the files as they are: on a GPU, run --problem {problem.name} --shapes waves"
        )
    known = {one.card for one in found}
    if options.card not in (None, *known):
        raise load.unknown("card with timed records of the sweep `waves`", options.card, known)
    print(staircase.show([one for one in found if options.card in (None, one.card)], options.format))
    return EXIT_DONE


def _answer(options: argparse.Namespace) -> int:
    """Feedback on a model's reply: findings, and what the judge says where the rules are kept."""
    from runner import answer, load  # noqa: PLC0415 - `--help` need not pay

    reply = load.read_source(options.answer)
    judged, code = answer.judge(reply), EXIT_FAILED
    if not judged["refused"]:
        code = EXIT_DONE
        if options.problem and not options.no_run:
            solution = load.Solution("answer", options.answer, answer.last_block(reply) or "")
            outcome = _correctness(options, load.find_problem(options.problem), solution)
            judged["correctness"], code = answer.feedback(outcome.records), _verdict(outcome)
    print(json.dumps(judged, indent=1))
    return code


def _prompt(options: argparse.Namespace) -> int:
    from runner import load, prompt  # noqa: PLC0415 - `--help` need not pay

    if options.answer:
        return _answer(options)
    missing = [name for name in ("problem", "solution", "stage") if getattr(options, name) is None]
    if missing:
        raise BadInput(f"a prompt needs --{', --'.join(missing)}")
    problem = load.find_problem(options.problem)
    solution = load.find_solution(options.solution, problem.name)
    print(
        prompt.page(
            problem,
            solution,
            prompt.find_stage(options.stage),
            prompt.find_card(options.card),
            shapes=options.shapes,
            profile=options.profile,
            results=options.results,
            predict_s=None if options.no_run else options.timeout,
        )
    )
    return EXIT_DONE


def _admit(options: argparse.Namespace) -> int:
    from runner import admit, cards, devices, load, pipeline, plan  # noqa: PLC0415 - `--help` need not pay

    problem = load.find_problem(options.problem)
    dtypes, maths = _choices("dtype", options.dtype, DTYPES), _choices("math", options.math, MATHS)
    device = devices.choose(options.device)
    sms = cards.load_card(plan.TARGET_CARD).sms
    cells = plan.plan_cells(problem, options.shapes, dtypes, maths, device, sms)
    if options.output is not None:
        admit.keep(options.output, [])  # whoever cannot write should hear it before, not after
    found = []
    for one in admit.admit(problem, cells, device):
        found.append(one)
        if options.output is not None:
            admit.keep(options.output, [one])
        place = f"{one.cell.sweep}/{one.cell.label} {one.cell.arithmetic}"
        print(f"[{len(found)}/{len(cells)}] {place} {one.verdict}", file=sys.stderr)
    print(admit.render(found, options.format))
    if len(found) < len(cells):
        left = cells[len(found)]
        raise pipeline.HarnessFailure(f"the judge died at {left.sweep}/{left.label} {left.arithmetic}")
    return EXIT_DONE if all(one.admitted for one in found) else EXIT_FAILED


def _doctor(options: argparse.Namespace) -> int:
    from runner import devices, doctor  # noqa: PLC0415 - `--help` need not pay

    report = doctor.examine(devices.choose(options.device), options.require, options.results)
    print(doctor.render(report, options.format))
    return EXIT_DONE if report.ready else EXIT_FAILED


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "list": _list,
    "check": _check,
    "import": _import,
    "leaderboard": _leaderboard,
    "prompt": _prompt,
    "explain": _explain,
    "profile": _profile,
    "submit": _submit,
    "compare": _compare,
    "selftest": _selftest,
    "admit": _admit,
    "staircase": _staircase,
    "export": _export,
    "doctor": _doctor,
}
