"""Solutions that hang a GPU, break their context or take all of its memory cost their own cell alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_faults import Finished, require_expected, run_faults

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import CommandLine

pytestmark = pytest.mark.gpu

FAULTS = sorted((Path(__file__).parent / "faults" / "gpu").glob("*.py"))


@pytest.fixture(scope="module")
def finished(new_command_line: Callable[[], CommandLine]) -> Finished:
    options = ("--timeout", "10", "--quick", "--baseline", "eager", "--device", "cuda:0")
    return run_faults(new_command_line(), FAULTS, *options)


@pytest.mark.parametrize("file", FAULTS, ids=lambda file: file.stem)
def test_a_fault_gets_its_status_and_reason(file: Path, finished: Finished) -> None:
    require_expected(file, finished)


def test_honest_solutions_are_timed_before_and_after(finished: Finished) -> None:
    for name in ("before", "after"):
        assert finished.records[name]["status"] == "PASS"
        assert finished.records[name]["timed"]["rounds"] > 0


def test_each_cell_has_one_line(finished: Finished) -> None:
    assert finished.code == 1
    assert len(finished.said) == len(finished.lines) == len(FAULTS) + 2
