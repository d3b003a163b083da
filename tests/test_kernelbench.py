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


#: A problem of one layer. `made` are lines of a constructor, `answer` is what `forward` returns.
TEXT = """import torch
from torch import nn
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        {made}
    def forward(self, x, shape=None):
        return {answer}
def get_inputs():
    return {inputs}
def get_init_inputs():
    return {init}
"""
OWN = {"made": "pass", "answer": "torch.relu(x)", "inputs": "[torch.randn(3, 5)]", "init": "[]"}


def verdict(folder: Path, problem: dict[str, str], solution: dict[str, str], *words: str) -> int:
    """Judge one model by another, both as they differ from OWN; returns the exit code."""
    files = folder / "1_own.py", folder / "solution.py"
    files[0].write_text(TEXT.format(**(OWN | problem)))
    text = TEXT.format(**(OWN | solution))
    files[1].write_text(text[: text.index("def get_inputs")].replace("Model(", "ModelNew("))
    return main(["check", str(files[1]), "--problem", str(files[0]), "--device", "cpu", *words])


#: What of a problem is at fault, how, and what is said.
FAULTS = {
    "random": ("answer", "torch.dropout(x, 0.5, True)", "draws random numbers in forward"),
    "raises": ("answer", "x @ x", "the problem's Model, in float64, raises RuntimeError: mat1"),
    "writes": ("answer", "torch.relu_(x)", "writes to its inputs in forward"),
    "a count": (
        "answer",
        "x * vars(self).setdefault('n', torch.zeros(5)).add_(1)",
        "answers by what earlier calls left in it",
    ),
    "the same again": (
        "inputs",
        "[torch.manual_seed(0) and torch.randn(3, 5)]",
        "the same inputs again: have it set no seed",
    ),
    "its own seed": (
        "inputs",
        "[torch.randn(3, 5, generator=torch.Generator().manual_seed(0))]",
        "the same inputs again: have it set no seed",
    ),
    "another shape": (
        "inputs",
        "[torch.randn(int(torch.randint(2, 10**6, ())), 1)]",
        "get_inputs, drawn again, raises",
    ),
    "a dict": ("answer", "dict(y=torch.relu(x))", "the problem's Model returns a dict"),
    "no tensor": ("answer", "(torch.relu(x), None)", "output 1 of the problem's Model is a NoneType"),
    "complex": ("answer", "torch.relu(x) + 0j", "a torch.strided tensor of torch.complex64"),
    "no list": ("inputs", "torch.randn(3, 5)", "get_inputs returns a Tensor: return a list"),
    "no number": ("init", "[dict()]", "get_init_inputs holds a dict"),
    "complex buffers": (
        "made",
        "self.register_buffer('f', torch.ones(5) + 0j)",
        "complex parameters or buffers",
    ),
    "always one": ("answer", "x.sign().abs()", "one kept from others would pass"),
    "whole numbers again": ("inputs", "[torch.arange(15).reshape(3, 5)]", "one kept from others would pass"),
    "drowned": ("answer", "1e6 + x * 1e-3", "one kept from others would pass"),
    "beyond": ("answer", "x.abs() * 1e30 * 1e30", "one kept from others would pass"),
    "chaos": ("answer", "(1e9 * x).sin()", "one kept from others would pass"),
    "empty": ("inputs", "[torch.randn(0, 5)]", "an input or an output without elements"),
    "imports": ("init", "[]\nimport no_such_module", "No module named 'no_such_module'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_problem_that_fails_is_not_the_harnesss_fault(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part, text, reason = FAULTS[fault]
    assert verdict(tmp_path, {part: text}, {}, "--dtype", "fp32", "--math", "fp32") == exits.EXIT_USAGE
    assert reason in capsys.readouterr().out


#: What a constructor makes, what `forward` answers, and the inputs.
MODELS = {
    "normalises": ("self.bn = nn.BatchNorm1d(5)", "self.bn(x)", "[torch.rand(64, 5)]"),
    "keeps a table": ("self.table = torch.randn(5)", "x * self.table", "[torch.rand(3, 5)]"),
    "starts at zero": (
        "self.rnn = nn.GRU(5, 4, batch_first=True)",
        "self.rnn(x, torch.zeros(1, len(x), 4, device=x.device))[0]",
        "[torch.rand(3, 7, 5)]",
    ),
    "casts": ("self.fc = nn.Linear(5, 4)", "self.fc(x.float())", "[torch.randint(9, (3, 5))]"),
    "tells": ("self.fc = nn.Linear(5, 4)", "self.fc(x) > 0", "[torch.randn(3, 5)]"),
    "sums": ("pass", "x.sum(0)", "[torch.rand(4096, 5)]"),
    "multiplies": ("self.w = nn.Parameter(torch.rand(4096, 8))", "x @ self.w", "[torch.rand(16, 4096)]"),
    "averages": ("pass", "(x.float() / 255).mean((2, 3))", "[torch.randint(256, (4, 3, 33, 33))]"),
    "slices": ("self.fc = nn.Linear(5, 4)", "self.fc(x)[:, -1]", "[torch.randn(3, 50, 5)]"),
    "repeats": ("pass", "x.mean(1, True).expand(-1, 5).contiguous()", "[torch.randn(3, 5)]"),
    "masks": ("pass", "x * (x == x.round())", "[torch.randint(-9, 9, (64, 5)).float()]"),
    "looks up": ("self.e = nn.Embedding(9, 4)", "self.e(x.long())", "[torch.randint(9, (64,)).float()]"),
    "means": ("pass", "x.mean()", "[torch.randn(64, 5)]"),
    "channels last": (
        "self.c = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)",
        "self.c(x.to(memory_format=torch.channels_last))",
        "[torch.randn(2, 3, 6, 6)]",
    ),
    "shapes": ("pass", "x.reshape(shape)", "[torch.randn(3, 5), (5, 3)]"),
    "draws rates": (
        "self.rates = [v.item() for v in torch.linspace(0, 1, 3)]",
        "x * self.rates[1]",
        "[torch.randn(3, 5)]",
    ),
    "drops": ("self.drop = nn.Dropout(0.5)", "self.drop(x)", "[torch.randn(3, 5)]"),
    "scales": ("self.scale = nn.Parameter(torch.ones(5))", "x * self.scale", "[torch.randn(3, 5)]"),
}
#: To the nearest TF32, which keeps 10 of 23 bits.
IN_TF32 = "((({0}).view(torch.int32) + 4096) & ~8191).view(torch.float32)"
CUT = "(({0}).view(torch.int32) & ~8191).view(torch.float32)"
#: Name of a model above, what another's `forward` answers, and whether fp32 may.
ANSWERS = {
    "statistics of the batch": (
        "normalises",
        "(x - x.mean(0)) / (x.var(0, False) + 1e-5).sqrt() * self.bn.weight + self.bn.bias",
        True,
    ),
    "no normalisation": ("normalises", "x", False),
    "no affine part": ("normalises", "(x - x.mean(0)) / (x.var(0, False) + 1e-5).sqrt()", False),
    "no table": ("keeps a table", "x * 0", False),
    "one after another": ("sums", "sum(x.unbind())", True),
    "in bfloat16": ("sums", "x.bfloat16().float().sum(0)", False),
    "in TF32": ("multiplies", f"{IN_TF32.format('x')} @ {IN_TF32.format('self.w')}", False),
    "in float64": ("averages", "(x.double() / 255).mean((2, 3)).float()", True),
    "one off": ("averages", "(x.float() / 256).mean((2, 3))", False),
    "all true": ("tells", "self.fc(x) > -99", False),
    "a scale of one": ("scales", "x * 1", False),
    "zeros for a mask": ("masks", "x * 0", False),
    "zeros for a table": ("looks up", "self.e(x.long()) * 0", False),
    "four in five": ("means", "x[:, 1:].mean()", False),
}


@pytest.mark.parametrize("model", MODELS)
def test_a_copy_of_a_sound_model_passes(model: str, tmp_path: Path) -> None:
    own = dict(zip(("made", "answer", "inputs"), MODELS[model], strict=True))
    assert verdict(tmp_path, own, own, "--dtype", "fp32") == exits.EXIT_DONE


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_a_model_makes_is_not_to_be_left_out(answer: str, tmp_path: Path) -> None:
    """Nor is what is as accurate as the class refused."""
    model, forward, right = ANSWERS[answer]
    own = dict(zip(("made", "answer", "inputs"), MODELS[model], strict=True))
    found = verdict(tmp_path, own, own | {"answer": forward}, "--dtype", "fp32", "--math", "fp32")
    assert found == (exits.EXIT_DONE if right else exits.EXIT_FAILED)


@pytest.mark.parametrize(("model", "right"), [("multiplies", True), ("sums", False)])
def test_only_products_may_lose_what_tf32_loses(model: str, right: bool, tmp_path: Path) -> None:
    own = dict(zip(("made", "answer", "inputs"), MODELS[model], strict=True))
    answer = own["answer"].replace("x", CUT.format("x")).replace("self.w", CUT.format("self.w"))
    found = verdict(tmp_path, own, own | {"answer": answer}, "--dtype", "fp32", "--math", "tf32")
    assert found == (exits.EXIT_DONE if right else exits.EXIT_FAILED)


def test_a_candidates_own_table_keeps_its_dtype(tmp_path: Path) -> None:
    table = {
        "made": "self.one = torch.tensor(1 + 2.0**-20)",
        "answer": "torch.relu(x) if self.one > 1 else x",
    }
    assert verdict(tmp_path, {}, table, "--dtype", "fp16") == exits.EXIT_DONE


def test_a_few_answers_may_agree_by_luck(tmp_path: Path) -> None:
    """Eight booleans are those of another draw once in 50 times."""
    import torch

    from runner.judge.case import Case

    path = tmp_path / "1_own.py"
    few = {"made": "self.fc = nn.Linear(5, 4)", "answer": "self.fc(x) > 0", "inputs": "[torch.randn(2, 5)]"}
    path.write_text(TEXT.format(**(OWN | few)))
    problem = load.find_problem(str(path))
    (cell,) = plan.plan_cells(problem, (), ("fp32",), ("fp32",), "cpu", 128)
    for number in range(200):
        Case(problem, cell, torch.device("cpu"), number.to_bytes(16, "little")).require_distinct_answers()


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
