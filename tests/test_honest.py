"""Honest kernels that look suspicious, or that other suites have refused: none may be refused here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner import lint

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import CommandLine

FOLDER = Path(__file__).parent / "honest"
PROBLEM = FOLDER / "problem.py"
FILES = sorted(set(FOLDER.glob("*.py")) - {PROBLEM})
SHAPES, ARITHMETICS = 2, 2
CONTROL = "control"


@pytest.fixture(scope="module")
def records(new_command_line: Callable[[], CommandLine]) -> list[dict[str, Any]]:
    """Run all files on all shapes, with TF32 products and with fp32 accuracy, in one run of one judge."""
    runner = new_command_line()
    dishonest = runner.folder / f"{CONTROL}.py"
    dishonest.write_text((FOLDER / "uses_a_library.py").read_text().replace("-inf", "-1e30"))
    solutions = [word for file in (*FILES, dishonest) for word in ("--solution", file)]
    runner.run("--problem", PROBLEM, *solutions, "--dtype", "fp32", "--device", "cpu", deadline_s=300)
    for cache in runner.temporary.glob(
        "torchinductor_*"
    ):  # torch's own, made when it is first asked for a form
        cache.rmdir()
    runner.require_nothing_left()
    return [json.loads(line) for line in runner.lines()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_honest_kernel_passes(file: Path, records: list[dict[str, Any]]) -> None:
    mine = [one for one in records if one["solution"] == file.stem]
    assert [one["failed"] for one in mine] == [None] * (SHAPES * ARITHMETICS)


def test_none_is_refused_but_the_control(records: list[dict[str, Any]]) -> None:
    assert len(records) == (len(FILES) + 1) * SHAPES * ARITHMETICS
    assert {one["solution"] for one in records if one["status"] != "PASS"} == {CONTROL}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_lint_advises_and_stops_nothing(file: Path) -> None:
    assert {finding.severity for finding in lint.lint(file.read_text())} <= {lint.ADVICE}
