"""KernelBench's problem files and candidates run by path, as they are."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner import load, plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import CommandLine

FOLDER = Path(__file__).parent / "kernelbench"
PROBLEM = FOLDER / "7_gated_linear.py"
CANDIDATE = FOLDER / "gated_linear_triton.py"
VALUE = "        self.value = nn.Linear(in_features, out_features)\n"


def renamed(source: str) -> str:
    """Give the parameters other names; their order stays."""
    return re.sub(r"self\.(value|gate|offset)", r"self.my_\1", source)


def reordered(source: str) -> str:
    """Construct `value` last, so that the state has another order."""
    end = "* 0.5)\n"
    assert source.count(VALUE) == source.count(end) == 1
    return source.replace(VALUE, "").replace(end, end + VALUE)


CANDIDATES: dict[str, Callable[[str], str]] = {
    "as_it_is": str,
    "other_names": renamed,
    "another_order": reordered,
    "other_names_in_another_order": lambda source: renamed(reordered(source)),
    "wrong": lambda source: source.replace("+ second", "- second"),
}


@pytest.fixture(scope="module")
def records(new_command_line: Callable[[], CommandLine]) -> dict[str, dict[str, Any]]:
    """Run the problem on all candidates; return their records by name."""
    runner = new_command_line()
    arguments: list[str | Path] = [
        "--problem",
        PROBLEM,
        "--dtype",
        "fp32",
        "--math",
        "fp32",
        "--device",
        "cpu",
    ]
    for name, change in CANDIDATES.items():
        file = runner.folder / f"{name}.py"
        file.write_text(change(CANDIDATE.read_text()))
        arguments += ["--solution", file]
    assert runner.run(*arguments) == 1
    found = [json.loads(line) for line in runner.lines()]
    assert len(found) == len(CANDIDATES)
    return {one["solution"]: one for one in found}


@pytest.mark.parametrize("name", ["as_it_is", "other_names", "another_order"])
def test_parameters_are_matched_by_name_or_else_by_order(
    name: str, records: dict[str, dict[str, Any]]
) -> None:
    record = records[name]
    assert record["status"] == "PASS"
    assert record["problem"] == "7_gated_linear"
    assert (record["cell"]["sweep"], record["cell"]["label"]) == ("kernelbench", "7_gated_linear")
    (launch,) = record["checked"]["launches"]
    assert (launch["kernel"], launch["grid"]) == ("gated_kernel", [6, 1, 1])


def test_parameters_that_match_neither_way_are_listed(records: dict[str, dict[str, Any]]) -> None:
    failed = records["other_names_in_another_order"]["failed"]
    assert failed["status"] == "BUILD"
    assert re.search(r"expected offset \[1, 10\], value\.weight .*; ModelNew has my_offset", failed["reason"])


def test_a_wrong_candidate_is_wrong(records: dict[str, dict[str, Any]]) -> None:
    assert records["wrong"]["status"] == "WRONG"


@pytest.mark.skipif("KERNELBENCH_ROOT" not in os.environ, reason="KERNELBENCH_ROOT names no checkout")
def test_upstreams_problem_81_is_ours() -> None:
    import torch

    from runner.judge.case import Case

    (path,) = Path(os.environ["KERNELBENCH_ROOT"]).glob("KernelBench/level1/81_*.py")
    theirs, ours = load.find_problem(str(path)), load.find_problem("convtranspose2d")
    cases = []
    for problem, shapes in ((theirs, ()), (ours, ("kernelbench/81",))):
        (cell,) = plan.plan_cells(problem, shapes, ("fp32",), ("tf32",), "cpu", 128)
        cases.append(Case(problem, cell, torch.device("cpu"), bytes(16)))
    first, second = cases
    assert theirs.foreign
    assert first.init == second.init
    assert first.inputs.items == second.inputs.items
    assert [p.shape for p in first.parameters.tensors] == [p.shape for p in second.parameters.tensors]
    assert [y.shape for y in first.expected] == [y.shape for y in second.expected]
