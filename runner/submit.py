"""A file from outside -> `solutions/` and `results/`, both or neither.

The text that is judged is the text that is kept, its author's line included, so that digests and records
belong to it. Until every cell has its verdict, all that is written lies in a temporary folder.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shlex
import textwrap
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from runner import cards, lint, load, output_rules, pipeline, plan, record
from runner.load import BadInput
from runner.schema import HIDDEN, ISOLATION, PROTOCOL, TARGET, Cell, Record, Status

NAME_CHARACTERS = 48
#: What is advice to others and binding in `solutions/`.
BINDING = frozenset({"import", "no-technique"})
#: Statuses that do not stand in a submission's way.
ADMITTED = (Status.PASS, Status.NOT_COVERED, Status.UNSUPPORTED)

#: Runs a request like `pipeline.run`.
Run = Callable[[plan.Request, Callable[[pipeline.Event], None]], pipeline.Outcome]


@dataclass(frozen=True)
class Report:
    """What became of a submission: the last stage's records, words for a human, and the files written."""

    records: tuple[Record, ...]
    lines: tuple[str, ...]
    written: tuple[Path, ...] = ()


class _Stopped(Exception):
    """The first failure ends a run."""


def find_problem(name: str) -> load.Problem:
    """Find a problem of `problems/`; a problem file is trusted code, so a path is BadInput."""
    if name not in load.problem_names():
        raise load.unknown("problem of problems/", name, load.problem_names())
    return load.find_problem(name)


def findings(source: str) -> tuple[lint.Finding, ...]:
    """Lint a text that is to be kept; an error among the findings refuses it."""
    return tuple(
        replace(one, severity=lint.ERROR) if one.rule in BINDING else one
        for one in output_rules.findings(source, bind=False)
    )


def propose(source: str, problem: str, author: str, name: str | None, solutions: Path) -> load.Solution:
    """Return the solution as it would be kept: signed, named by `name` or its technique, at its place.

    `source` has no errors by `findings`. Raises BadInput for an author or a name that cannot be, and where
    another text has the name.
    """
    text = sign(source, author)
    # a technique is a sentence; what comes before its first pause is name enough
    chosen = slug(name or re.split(r"[:;,.(]", lint.read_header(text).technique)[0])
    solution = load.Solution(chosen, solutions / problem / f"{chosen}.py", text)
    _require_place(solution)
    return solution


def _require_place(solution: load.Solution) -> None:
    """Raise BadInput if another text is where the solution is to be."""
    if os.path.lexists(solution.path) and load.read_source(solution.path) != solution.source:
        raise BadInput(f"'{solution.path}' exists and is another text: choose another --name")


def sign(source: str, author: str) -> str:
    """Add a line `author: ...` to the docstring, unless it is there."""
    author = author.strip()
    if not author or not author.isprintable():
        raise BadInput(f"--author {author!r}: one line that names somebody")
    header = lint.read_header(source)
    if header.author == author:
        return source
    if header.author:
        raise BadInput(f"--author '{author}', but the file is signed by '{header.author}': make them agree")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a doubtful escape in somebody's string
        docstring = ast.get_source_segment(source, ast.parse(source).body[0]) or ""
    text, quotes = docstring[:-3].rstrip(), docstring[-3:]
    is_raw = "r" in docstring.partition(quotes)[0].lower()
    written = author if is_raw else author.replace("\\", r"\\")
    signed = source.replace(docstring, f"{text}\n\nauthor: {written}\n{quotes}", 1)
    if lint.read_header(signed) != replace(header, author=author):
        raise BadInput(f"cannot sign the docstring: write the line 'author: {author}' into it")
    return signed


def slug(text: str) -> str:
    """Make a file's stem of small letters, digits and underscores; raises BadInput where nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = " ".join(re.findall("[a-z0-9]+", plain))
    stem = textwrap.shorten(words, NAME_CHARACTERS, placeholder="").replace(" ", "_")
    if not stem or not stem[0].isalpha():
        raise BadInput(f"'{text}' gives no file's name that begins with a letter: choose a --name")
    return stem


def submit(
    request: plan.Request,
    file: str,
    watch: Callable[[pipeline.Event], None],
    *,
    dry_run: bool = False,
    isolation: str = ISOLATION[-1],
    run: Run = pipeline.run,
) -> Report:
    """Judge the request's one solution, proposed from `file`, and keep it with its records if it passes.

    Correctness comes first, on the smoke shapes and a hidden one; then, on a GPU, the request's own cells
    with timing. The first failure ends it. Raises BadInput for a file that runs or is timed in no cell and
    for a machine below the level `isolation`, `pipeline.HarnessFailure`, `record.ResultsUnwritable` and
    `record.ResultsBusy`; all leave both folders as they were.
    """
    with TemporaryDirectory(prefix="kernelwave-submit-") as scratch:
        correctness = replace(
            plan.without_timing(request), cells=_admission(request), results=Path(scratch, "correctness")
        )
        records = _until_failure(correctness, watch, run)
        if _failed(records):
            return Report(records, _refusal(correctness, file, records))
        if Status.PASS not in {one.status for one in records}:
            raise BadInput(
                f"'{file}' was run in no cell ({_tally(records)}): name others with --dtype, --math"
            )
        lines = (f"correct, on smoke and hidden shapes: {_tally(records)}",)
        if dry_run or request.device == "cpu":
            return Report(records, (*lines, *_remainder(request, file, isolation)))
        _require_isolation(records, isolation)
        timing = replace(request, results=Path(scratch, "timing"), output=None, rerun=True)
        records = _until_failure(timing, watch, run)
        if _failed(records):
            return Report(records, (*lines, *_refusal(timing, file, records)))
        _require_isolation(records, isolation)
        _require_times(records, file)
        written = keep(request.solutions[0], records, request.results)
        return Report(records, (*lines, *_success(records, written)), written)


def _require_isolation(records: Sequence[Record], least: str) -> None:
    """Raise BadInput if a contestant had less than a level of isolation."""
    for found in (one.environment["isolation"] for one in records if one.checked):
        if ISOLATION.index(found["level"]) < ISOLATION.index(least):
            raise BadInput(
                f"isolation is '{found['level']}' here, without {', '.join(found['missing'])}; nothing is "
                "written: mend it (python -m runner doctor), or keep times that have no rank: "
                f"--require {found['level']}"
            )


def _require_times(records: Sequence[Record], file: str) -> None:
    """Raise BadInput if no cell has a time: there is nothing to keep a file for."""
    if not any(one.timed for one in records):
        reason = next((f": {one.failed.reason}" for one in records if one.failed), "")
        raise BadInput(f"'{file}' was timed in no cell ({_tally(records)}), nothing is written{reason}")


def keep(solution: load.Solution, records: Sequence[Record], results: Path) -> tuple[Path, ...]:
    """Put a solution at its path and its records, of one card, into `results`; returns the files written.

    What fails, fails whole: files are as before, and only the hidden lock of `results` may be new.
    """
    path = record.results_path(results, records[0].card, records[0].problem, solution.name)
    try:
        with record.lock_results(results):
            _require_place(solution)  # judging took minutes
            with _all_or_nothing((solution.path, path)):
                _write(solution)
                for one in records:
                    record.append(path, one)
    except OSError as error:
        raise pipeline.HarnessFailure(f"cannot write {solution.path}: {error.strerror}") from error
    return solution.path, path


def _write(solution: load.Solution) -> None:
    if not solution.path.exists():
        solution.path.parent.mkdir(parents=True, exist_ok=True)
        solution.path.write_bytes(solution.source.encode())


@contextlib.contextmanager
def _all_or_nothing(paths: Sequence[Path]) -> Iterator[None]:
    """Undo what a block that fails did to files that only grow: cut them, or take them away."""
    locks = [path.with_name(f".{path.name}.lock") for path in paths]
    sizes = {path: path.stat().st_size if path.exists() else None for path in (*paths, *locks)}
    new_folders = [folder for path in paths for folder in path.parents if not folder.exists()]
    try:
        yield
    except BaseException:
        for path, size_bytes in sizes.items():
            if path.exists() and size_bytes is None:
                path.unlink()
            elif path.exists() and size_bytes is not None:
                os.truncate(path, size_bytes)
        for folder in new_folders:  # innermost first; one that others use meanwhile stays
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _admission(request: plan.Request) -> tuple[Cell, ...]:
    """Return what a run without a GPU would plan, in the arithmetics of the request."""
    sms = cards.load_card(plan.TARGET_CARD).sms
    return plan.plan_cells(request.problem, (), *_arithmetics(request), "cpu", sms)


def _arithmetics(request: plan.Request) -> tuple[list[str], list[str]]:
    """Return the request's dtypes and maths in their order."""
    dtypes = dict.fromkeys(cell.dtype for cell in request.cells)
    maths = dict.fromkeys(cell.math for cell in request.cells)
    return list(dtypes), list(maths)


def _until_failure(
    request: plan.Request, watch: Callable[[pipeline.Event], None], run: Run
) -> tuple[Record, ...]:
    """Run cells up to the first failure, which is then the last record."""
    records: list[Record] = []

    def collect(event: pipeline.Event) -> None:
        watch(event)
        if event.record is not None:
            records.append(event.record)
            if _failed(records):
                raise _Stopped

    with contextlib.suppress(_Stopped):
        run(request, collect)
    return tuple(records)


def _failed(records: Sequence[Record]) -> bool:
    return bool(records) and records[-1].status not in ADMITTED


def _tally(records: Sequence[Record]) -> str:
    counts = Counter(one.status for one in records)
    return ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"


def _refusal(request: plan.Request, file: str, records: Sequence[Record]) -> tuple[str, ...]:
    *before, last = records
    reason = last.failed.reason if last.failed else ""
    return (
        f"before the first failure, of {len(request.cells)} cells: {_tally(before)}",
        f"{last.cell.sweep}/{last.cell.label} {last.cell.arithmetic}: {last.status}: {reason}",
        f"nothing is written; to see it again: {reproduce(request, file, last)}",
    )


def reproduce(request: plan.Request, file: str, failed: Record) -> str:
    """Return the command that runs a failed cell of the request again and leaves `results/` alone."""
    cell = failed.cell
    shape = f"{cell.sweep}/{cell.label}"
    if cell.sweep in (HIDDEN, "waves"):  # drawn for one run, placed for one card
        shape = cell.spelled
    words = ["check", file, "--problem", request.problem.name]
    if request.baselines:  # only a run has times
        words = ["run", "--solution", file, "--problem", request.problem.name, "-o", "again.jsonl", "--rerun"]
        words += _protocol(request)
    words += ["--shapes", shape, "--dtype", cell.dtype, "--math", cell.math, "--device", request.device]
    return _command(*words, *_limits(request))


def _limits(request: plan.Request) -> list[str]:
    """Return the options that give a run the limits of this one."""
    words = ["--timeout", f"{request.limits['call_s']:g}"] if "call_s" in request.limits else []
    memory_bytes = request.limits.get("memory_bytes", usual := plan.default_memory_bytes())
    if memory_bytes != usual:
        words += ["--memory", repr(memory_bytes / 2**30)]
    return words


def _protocol(request: plan.Request) -> list[str]:
    if request.limits.get("processes", 1) > 1:
        return ["--ranked"]
    return ["--quick"] if request.limits.get("target", TARGET) > TARGET else []


def _remainder(request: plan.Request, file: str, isolation: str) -> tuple[str, ...]:
    """Say what is still to do after correctness, and in which command."""
    (solution,) = request.solutions
    author = lint.read_header(solution.source).author
    dtypes, maths = map(",".join, _arithmetics(request))
    words = ["--problem", request.problem.name, "--author", author, "--name", solution.name]
    words += ["--dtype", dtypes, "--math", maths, *_limits(request), *_protocol(request)]
    folders = {"--results": request.results, "--solutions": solution.path.parent.parent}
    for option, folder in folders.items():
        words += [] if folder == load.ROOT / option.strip("-") else [option, str(folder)]
    words += [] if isolation == ISOLATION[-1] else ["--require", isolation]
    return (
        "nothing is timed and nothing is written",
        f"what remains, on a GPU: {_command('submit', file, *words)}",
        f"that times the default sweeps and keeps the file as {solution.path}",
    )


def _success(records: Sequence[Record], written: Sequence[Path]) -> tuple[str, ...]:
    levels = {one.environment["isolation"]["level"] for one in records if one.checked}
    unranked = " (not ranked)" if levels != {ISOLATION[-1]} else ""
    return (
        f"timed on {records[0].card}: {_tally(records)}, isolation {' and '.join(sorted(levels))}{unranked}",
        f"times are of protocol {PROTOCOL}, in {_processes(records)}",
        *(f"written: {path}" for path in written),
    )


def _processes(records: Sequence[Record]) -> str:
    most = max((one.timed.processes for one in records if one.timed), default=1)
    return f"{most} fresh processes a cell" if most > 1 else "one process a cell (--ranked: in five)"


def _command(*words: str) -> str:
    return shlex.join(["python", "-m", "runner", *words])
