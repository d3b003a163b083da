"""Are wrong answers refused on every shape? Asks a judge's process, shows and keeps what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.decode import Malformed, decode
from runner.load import ROOT, BadInput, Problem
from runner.schema import Cell, to_json

FORMATS = ("table", "json")


@dataclass(frozen=True)
class Admission:
    """What the battery gave on one cell.

    `accepted` are wrong answers that the judge let pass, `slandered` honest ones that it refused, with its
    words; `not_applicable` has those that are neither here, by reason. `sensitivity` has of each input and
    parameter the share of elements that any output depends on, how often the judge noticed when a single one
    of them was left out of account, and how often that was tried.
    """

    problem: str
    cell: Cell
    device: str
    torch: str
    refused: int = 0
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


def admit(problem: Problem, cells: Sequence[Cell], device: str) -> Iterator[Admission]:
    """Hold the battery against each cell, in a process that has torch; ends early if that process does."""
    command = [sys.executable, "-m", "runner.judge.admission", device]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    with process:
        assert process.stdin is not None  # noqa: S101 - pipes were asked for
        assert process.stdout is not None  # noqa: S101
        for cell in cells:
            request = {"problem": str(problem.path.resolve()), "name": problem.name, "cell": to_json(cell)}
            try:
                print(json.dumps(request), file=process.stdin, flush=True)
            except BrokenPipeError:
                return
            line = process.stdout.readline()
            if not line:
                return
            yield decode(Admission, json.loads(line))


@dataclass(frozen=True)
class Kept:
    """One line of a record: the verdict on a cell. Draws repeat, so the rest can be had again."""

    problem: str
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
        about = (one.problem, one.cell.key, one.device, one.torch)
        return cls(*about, one.refused, one.accepted, one.honest, one.slandered, absent, one.noticed)


def read(path: Path) -> list[Kept]:
    """Read what was kept; nothing if there is no such file. Raises BadInput if it holds anything else."""
    try:
        lines = path.read_text().splitlines() if path.exists() else []
        return [decode(Kept, json.loads(line)) for line in lines]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, Malformed) as error:
        raise BadInput(f"-o '{path}' holds no admissions ({error}): name another file") from error


def keep(path: Path, found: Sequence[Admission]) -> None:
    """Write one JSON line a cell, in place of what the file says of the same cells."""
    kept = [*read(path), *(Kept.of(one) for one in found if not one.unsupported)]
    known = {(one.problem, one.cell): one for one in kept}
    lines = [json.dumps(to_json(one), separators=(",", ":")) + "\n" for one in known.values()]
    scratch = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text("".join(lines))
        scratch.replace(path)
    except OSError as error:
        raise BadInput(f"cannot write -o '{path}': {error.strerror}") from error


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
        "wrong refused": f"{one.refused}/{one.refused + len(one.accepted)}",
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
