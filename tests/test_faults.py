"""Solutions that break in every way cost their own cell and nothing else, on the CPU."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import CommandLine

ROOT = Path(__file__).parents[1]
FAULTS = sorted((ROOT / "tests" / "faults").glob("*.py"))
HONEST = (ROOT / "solutions" / "convtranspose2d" / "phase_gemm.py").read_text()


def expectation(file: Path) -> tuple[str, str]:
    """Return the status and a part of the reason: `STATUS: reason.` begins the file's docstring."""
    first = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
    status, _, reason = first.removesuffix(".").partition(": ")
    return status, reason


@dataclass(frozen=True)
class Finished:
    code: int
    said: list[str]
    lines: list[str]

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        found = [json.loads(line) for line in self.lines]
        return {one["solution"]: one for one in found}


def run_faults(runner: CommandLine, faults: list[Path], *options: str) -> Finished:
    """Run faults on one cell, between two honest solutions."""
    before, after = runner.folder / "before.py", runner.folder / "after.py"
    before.write_text(HONEST)
    after.write_text(f"{HONEST}\n# another text, so another contestant\n")
    solutions = [word for file in (before, *faults, after) for word in ("--solution", file)]
    cell = ("--shapes", "smoke/sparse", "--dtype", "fp32", "--math", "tf32")
    code = runner.run("--problem", "convtranspose2d", *solutions, *cell, *options, deadline_s=300)
    runner.require_nothing_left()
    return Finished(code, runner.said("err").splitlines(), runner.lines())


def require_expected(file: Path, finished: Finished) -> None:
    """Compare a fault's record with what its file says that it gets."""
    status, reason = expectation(file)
    record = finished.records[file.stem]
    assert record["status"] == status
    if status == "PASS":
        return
    assert reason in record["failed"]["reason"]
    assert "\n" not in record["failed"]["reason"]
    assert record["timed"] is None


@pytest.fixture(scope="module")
def finished(new_command_line: Callable[[], CommandLine]) -> Finished:
    limits = ("--timeout", "2", "--memory", "0.5")
    return run_faults(new_command_line(), FAULTS, *limits, "--device", "cpu")


@pytest.mark.parametrize("file", FAULTS, ids=lambda file: file.stem)
def test_a_fault_gets_its_status_and_reason(file: Path, finished: Finished) -> None:
    require_expected(file, finished)


def test_honest_solutions_pass_before_and_after(finished: Finished) -> None:
    assert finished.records["before"]["status"] == "PASS"
    assert finished.records["after"]["status"] == "PASS"


def test_each_cell_has_one_line(finished: Finished) -> None:
    assert finished.code == 1
    assert len(finished.lines) == len(FAULTS) + 2
    assert len(finished.said) == len(finished.lines)
    assert finished.records.keys() == {"before", "after", *(file.stem for file in FAULTS)}
