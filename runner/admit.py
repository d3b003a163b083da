"""Are wrong answers refused on every shape? Asks a judge's process, shows and keeps what it found."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from runner import files, gpu_lock
from runner.decode import Malformed, decode
from runner.judge_process import JudgeDied
from runner.load import ROOT, BadInput, Problem, read_source
from runner.schema import Cell, digest, to_json

FORMATS = ("table", "json")
#: The larger rows of KernelBench fill a card of 80 GB; blocks that can grow leave no gaps between them.
_ALLOCATOR = dict.fromkeys(("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"), "expandable_segments:True")
#: What a verdict rests on, of the judge's modules: battery, budgets, classes of arithmetic, draws.
JUDGES = ("admission", "check", "fake_layers", "fakes", "inputs", "oracle")
_DIGEST_CHARS = 12


@dataclass(frozen=True)
class Admission:
    """What the battery gave on one cell.

    `refused` are the wrong answers that the judge did not let pass and `accepted` those that it did,
    `slandered` honest ones that it refused, with its words; `not_applicable` has those that are neither here,
    by reason. `sensitivity` has of each input and parameter the share of elements that any output depends on,
    how often the judge noticed when a single one of them was left out of account, and how often that was
    tried. The digests are those of what was judged and of what judged it.
    """

    problem: str
    problem_digest: str
    judge_digest: str
    cell: Cell
    device: str
    torch: str
    refused: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    honest: int = 0
    slandered: dict[str, str] = field(default_factory=dict)
    not_applicable: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sensitivity: dict[str, tuple[float, int, int]] = field(default_factory=dict)
    unsupported: str = ""

    @property
    def admitted(self) -> bool:
        """Whether every wrong answer failed and every honest one passed."""
        return self.verdict == "admitted"

    @property
    def verdict(self) -> str:
        """Say it in words."""
        if self.unsupported:
            return "not run"
        return "NOT ADMITTED" if self.accepted or self.slandered else "admitted"

    @property
    def noticed(self) -> tuple[int, int]:
        """How often the judge noticed that an element was left out of account, of how many times."""
        of_each = list(self.sensitivity.values())
        return sum(noticed for _, noticed, _ in of_each), sum(tried for _, _, tried in of_each)


def problem_digest(problem: Problem) -> str:
    """Identity of what a problem's text computes."""
    return digest(_code(problem.source))[:_DIGEST_CHARS]


@cache
def judge_digest() -> str:
    """Identity of what `JUDGES` compute, as the files were when the process first asked."""
    folder = Path(__file__).parent / "judge"
    return digest([_code(read_source(folder / f"{name}.py")) for name in JUDGES])[:_DIGEST_CHARS]


def _code(source: str) -> str:
    """Leave out comments, docstrings and empty lines, which change no verdict; the same in any Python."""
    lines = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            first, last = node.body[0].lineno, node.body[0].end_lineno or node.body[0].lineno
            lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def admit(problem: Problem, cells: Sequence[Cell], device: str) -> Iterator[Admission]:
    """Hold the battery against each cell, in a process that has torch, and nobody else on the GPU.

    Raises JudgeDied if the process ends, and DeviceBusy.
    """
    command = [sys.executable, "-m", "runner.judge.admission", device]
    pipe = subprocess.PIPE
    with (
        gpu_lock.hold(gpu_lock.uuid_of(device), device),
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=log,
            text=True,
            cwd=ROOT,
            start_new_session=True,
            env=_ALLOCATOR | os.environ,
        ) as process,
    ):
        assert process.stdin is not None  # noqa: S101 - pipes were asked for
        assert process.stdout is not None  # noqa: S101
        try:
            for cell in cells:
                request = {
                    "problem": str(problem.path.resolve()),
                    "name": problem.name,
                    "cell": to_json(cell),
                }
                with contextlib.suppress(BrokenPipeError):  # it has ended: there will be no answer
                    print(json.dumps(request), file=process.stdin, flush=True)
                line = process.stdout.readline()
                if not line.endswith("\n"):
                    raise JudgeDied(_last_words(process, log))
                yield decode(Admission, json.loads(line))
        except BaseException:  # nobody waits for an answer any more
            process.kill()
            raise


def _last_words(process: subprocess.Popen[str], log: IO[bytes]) -> str:
    """Return the last line that a process has left, or its exit code."""
    code = process.wait()
    log.seek(0)
    words = log.read().decode(errors="replace").split("\n")
    return next((word for word in reversed(words) if word.strip()), f"exit code {code}")


@dataclass(frozen=True)
class Kept:
    """One line of a record: the verdict on a cell. Draws repeat, so the rest can be had again."""

    problem: str
    problem_digest: str
    judge_digest: str
    cell: str
    device: str
    torch: str
    refused: int
    accepted: tuple[str, ...]
    honest: int
    slandered: dict[str, str]
    not_applicable: int
    noticed: tuple[int, int]

    @classmethod
    def of(cls, one: Admission) -> Kept:
        """Keep what a reader of the record asks for."""
        absent = sum(map(len, one.not_applicable.values()))
        about = (one.problem, one.problem_digest, one.judge_digest, one.cell.key, one.device, one.torch)
        refused = len(one.refused)
        return cls(*about, refused, one.accepted, one.honest, one.slandered, absent, one.noticed)

    @property
    def admitted(self) -> bool:
        """Whether every wrong answer failed and every honest one passed."""
        return not self.accepted and not self.slandered

    def stale(self, problem: Problem) -> str:
        """Say why the line no longer speaks of the files as they are; empty where it does."""
        if self.problem_digest != problem_digest(problem):
            return "the problem has changed"
        return "the judge has changed" if self.judge_digest != judge_digest() else ""


def read(path: Path) -> list[Kept]:
    """Read what was kept; nothing if there is no such file. Raises BadInput if it holds anything else."""
    try:
        lines = path.read_text().splitlines() if path.exists() else []
        return [decode(Kept, json.loads(line)) for line in lines]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, Malformed) as error:
        raise BadInput(f"-o '{path}' holds no admissions ({error}): name another file") from error


def keep(path: Path, found: Sequence[Admission]) -> None:
    """Write one JSON line a cell, in place of what the file says of the same cells.

    Raises BadInput as `read` and for a file that cannot be written, and `files.DiskFull`.
    """
    kept = [*read(path), *(Kept.of(one) for one in found if not one.unsupported)]
    known = {(one.problem, one.cell): one for one in kept}
    lines = [json.dumps(to_json(one), separators=(",", ":")) + "\n" for one in known.values()]
    files.write(path, "".join(lines))


def left(path: Path, problem: Problem, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return the cells that a file does not yet admit, by a line of the files as they are.

    Raises BadInput as `read`.
    """
    current = {
        one.cell
        for one in read(path)
        if one.problem == problem.name and one.admitted and not one.stale(problem)
    }
    return tuple(cell for cell in cells if cell.key not in current)


def render(found: Sequence[Admission], fmt: str) -> str:
    """Show one row a cell, those not admitted first and with reasons; then what was not applicable."""
    if fmt == "json":
        return json.dumps([{**to_json(one), "verdict": one.verdict} for one in found], indent=1)
    from tabulate import tabulate  # noqa: PLC0415 - `--help` need not pay

    ordered = sorted(found, key=lambda one: one.admitted)
    admitted = sum(one.admitted for one in found)
    table = tabulate([_row(one) for one in ordered], headers="keys")
    return "\n".join(
        [table, *_reasons(ordered), *_absent(found), f"{admitted} of {len(found)} cells are admitted"]
    )


def _row(one: Admission) -> dict[str, Any]:
    shares = [share for share, _, _ in one.sensitivity.values()]
    return {
        "shape": f"{one.cell.sweep}/{one.cell.label}",
        "arithmetic": one.cell.arithmetic,
        "verdict": one.verdict,
        "wrong refused": f"{len(one.refused)}/{len(one.refused) + len(one.accepted)}",
        "honest passed": f"{one.honest}/{one.honest + len(one.slandered)}",
        "not applicable": sum(map(len, one.not_applicable.values())),
        "matters": f"{min(shares):.0%}" if shares else "-",
        "noticed": "/".join(map(str, one.noticed)),
    }


def _reasons(found: Sequence[Admission]) -> Iterator[str]:
    for one in found:
        place = f"{one.problem} {one.cell.sweep}/{one.cell.label} {one.cell.arithmetic}"
        if one.unsupported:
            yield f"{place}: not run: {one.unsupported}"
        yield from (f"{place}: wrong, but accepted: {name}" for name in one.accepted)
        yield from (f"{place}: honest, but refused: {name}: {said}" for name, said in one.slandered.items())


def _absent(found: Sequence[Admission]) -> Iterator[str]:
    cells: dict[str, Counter[str]] = {}
    for one in found:
        for reason, names in one.not_applicable.items():
            cells.setdefault(reason, Counter()).update(names)
    for reason, counts in cells.items():
        text = ", ".join(f"{name} ({count})" for name, count in counts.items())
        yield f"not applicable, {reason}: {text}"
