"""`import`, `leaderboard`, `export` and `staircase`: what is recorded, sorted in and shown."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runner import (
    export,
    export_kernelbench,
    export_trace,
    files,
    leaderboard,
    load,
    page,
    record,
    selftest,
    staircase,
    staircase_svg,
    standings,
)
from runner.commands import exits
from runner.load import BadInput


def _require_folder(results: Path) -> None:
    try:
        what = "" if results.is_dir() else "is no folder" if results.exists() else "does not exist"
    except OSError as error:
        what = f"cannot be entered: {error.strerror}"
    if what:
        raise BadInput(f"--results '{results}' {what}: name a folder that runs have written to")


def _require_named(results: Path, card: str | None, problem: str | None) -> None:
    """Raise BadInput for a card or a problem that no board is about, before all records are read."""
    places = [path.parts[-3:-1] for path in record.files(results) if path.parts[-3] != "cpu"]
    for kind, name, known in (
        ("card", card, {c for c, _ in places}),
        ("problem", problem, {p for _, p in places}),
    ):
        if name is not None and name not in known:
            raise load.unknown(f"{kind} with records", name, known)


def import_file(options: argparse.Namespace) -> int:
    """Sort the records of a file into the results."""
    try:
        options.file.open("rb").close()  # what is wrong with it is no matter of who holds the results
    except OSError as error:
        raise BadInput(f"cannot read '{options.file}': {error.strerror}") from error
    with record.lock_results(options.results):
        added, skipped, problems = record.import_file(options.file, options.results)
    if not added and not skipped:
        first = f"its first line is none ({problems[0]})" if problems else "it is empty"
        raise BadInput(f"'{options.file}' has no records, {first}: name a file that a run wrote with -o")
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    print(f"{added} records added, {skipped} were there already, {len(problems)} lines are no records")
    return exits.EXIT_DONE


def show_boards(options: argparse.Namespace) -> int:
    """Rank what is recorded; write it into the README or hold that against it."""
    if (options.format == "html") != (options.output is not None):
        raise BadInput("--format html and -o DIR go together: the page is DIR/index.html")
    if options.output is not None and options.by:
        raise BadInput("the page shows every shape and dtype: leave --by out")
    readme = options.results / "README.md"
    if (options.check or options.write) and (options.card or options.problem or options.by):
        raise BadInput(f"{readme} shows all boards: leave --card, --problem and --by out")
    _require_folder(options.results)
    _require_named(options.results, options.card, options.problem)
    records, problems = leaderboard.read_records(options.results, card=options.card, problem=options.problem)
    boards = leaderboard.boards_of(records)
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    if options.check or options.write:
        worth = selftest.recorded(options.results)
        if options.write:
            standings.write(readme, boards, worth)
            print(f"written: {readme}")
        elif not standings.is_current(readme, boards, worth):
            print(
                f"{readme} is not what its records give: python -m runner leaderboard --write "
                f"--results {options.results}",
                file=sys.stderr,
            )
            return exits.EXIT_FAILED
        else:
            print(f"{readme} is what its records give")
        return exits.EXIT_DONE
    if options.output is None:
        print(standings.show(boards, options.format, options.by))
    else:
        print(page.write(options.output, boards, records))
    return exits.EXIT_DONE


def export_records(options: argparse.Namespace) -> int:
    """Write records in another suite's words."""
    if options.output is not None:
        files.require_output(options.output)
    records, problems = export.read(
        options.results, problem=options.problem, solution=options.solution, card=options.card
    )
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    write = {"trace": export_trace.lines, "kernelbench": export_kernelbench.eval_results}[options.format]
    made = write(records, options.arithmetic)
    if not made.records:
        raise BadInput(f"nothing to export; left out: {_left_out(made)}")
    if options.output is None:
        print(made.text)
    else:
        export.write(options.output, made)
    print(f"{made.records} records exported; left out: {_left_out(made)}", file=sys.stderr)
    return exits.EXIT_DONE


def _left_out(made: export.Export) -> str:
    return ", ".join(f"{count} {why}" for why, count in made.left_out.items()) or "none"


def show_staircase(options: argparse.Namespace) -> int:
    """Show what solutions lose past the edges of waves."""
    if options.output is not None:
        files.require_output(options.output)
    problem = load.find_problem(options.problem)
    names = options.solution or load.solution_names(problem.name)
    solutions = [load.find_solution(name, problem.name) for name in names]
    _require_folder(options.results)
    found = staircase.read(options.results, problem, solutions)
    if not found:
        raise BadInput(
            f"no timed records of the sweep `waves` for '{', '.join(names) or problem.name}' by "
            f"this protocol for the files as they are: on a GPU, run --problem {problem.name} --shapes waves"
        )
    known = {one.card for one in found}
    if options.card not in (None, *known):
        raise load.unknown("card with timed records of the sweep `waves`", options.card, known)
    shown = [one for one in found if options.card in (None, one.card)]
    text = staircase_svg.draw(shown) if options.format == "svg" else staircase.show(shown, options.format)
    if options.output is None:
        print(text)
    else:
        files.write(options.output, f"{text}\n")
    return exits.EXIT_DONE
