"""KernelBench's problem files and candidates run by path, as they are."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner import load, plan
from runner.cli import main
from runner.commands import exits

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


FAULTS = {
    "random": ("torch.relu(x)", "torch.dropout(x, 0.5, True)", "draws random numbers in forward"),
    "raises": ("torch.relu(x)", "x @ x", "the problem's Model raises RuntimeError: "),
    "empty": ("3, 5", "0, 5", "an input or an output without elements"),
    "imports": ("import torch\n", "import torch, no_such_module\n", "No module named 'no_such_module'"),
}
OWN = """import torch
class Model(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x)
def get_inputs():
    return [torch.randn(3, 5)]
def get_init_inputs():
    return []
"""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_problem_that_fails_is_not_the_harnesss_fault(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, reason = FAULTS[fault]
    assert old in OWN
    problem, solution = tmp_path / "1_own.py", tmp_path / "solution.py"
    problem.write_text(OWN.replace(old, new))
    solution.write_text(OWN[: OWN.index("def get_inputs")].replace("Model", "ModelNew"))
    words = ["--problem", str(problem), "--dtype", "fp32", "--math", "fp32", "--device", "cpu"]
    assert main(["check", str(solution), *words]) == exits.EXIT_USAGE
    assert reason in capsys.readouterr().out


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
