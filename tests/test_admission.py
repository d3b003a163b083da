"""Admission: wrong answers are refused on every row, and the battery can tell a judge that lets them pass."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import admit, load, plan
from runner.judge import admission, check, fake_layers, fakes
from runner.judge.case import Case
from runner.schema import DTYPES, MATHS, Cell

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PROBLEMS = load.problem_names()
#: 8.6 GB of output, more than four times which few machines have.
TOO_LARGE = "past-int32"


def cells(problem: str, *shapes: str) -> list[Cell]:
    """All cells of some sweeps or rows."""
    return list(plan.plan_cells(load.find_problem(problem), shapes, DTYPES, MATHS, "cpu", 128))


@pytest.mark.parametrize("name", PROBLEMS)
def test_wrong_answers_are_refused_on_smoke_rows(name: str) -> None:
    """Every ninth cell: every other row, each in another arithmetic; the record has all."""
    for cell in cells(name, "smoke")[::9]:
        found = admission.admit(load.find_problem(name), cell, CPU)
        assert found.admitted, admit.render([found], "table")
        assert found.refused > 30
        assert found.honest >= 3


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_record_admits_every_row_of_smoke_and_ragged(name: str) -> None:
    """A new row, or one that was changed: `python -m runner admit`, see problems/README.md."""
    kept = {one.cell: one for one in admit.read(ROOT / "results" / "admission" / f"{name}.jsonl")}
    wanted = {cell.key for cell in cells(name, "smoke", "ragged") if cell.label != TOO_LARGE}
    assert wanted - kept.keys() == set()
    assert [one.cell for one in kept.values() if one.accepted or one.slandered or one.problem != name] == []


def small(label: str = "groups") -> admit.Admission:
    return admission.admit(load.find_problem("conv2d"), cells("conv2d", f"smoke/{label}")[0], CPU)


def test_a_judge_that_accepts_everything_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "compare", lambda *_: None)
    monkeypatch.setattr(check, "form", lambda *_: "")
    found = small()
    assert not found.admitted
    assert found.refused == 0
    assert {"zeros", "conv2d.bias ignored", "tap [0, 0] of conv2d.weight dropped", "one NaN"} <= {
        *found.accepted
    }
    assert found.noticed[0] == 0


def test_a_judge_that_refuses_everything_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "form", lambda *_: "no")
    found = small()
    assert not found.admitted
    assert found.accepted == ()
    assert found.honest == 0
    assert set(found.slandered.values()) == {"no"}


def test_a_weaker_budget_lets_fakes_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for factor in ("NORMWISE_FACTOR", "ELEMENTWISE_FACTOR"):
        monkeypatch.setattr(check, factor, 64 * getattr(check, factor))
    accepted = small().accepted
    assert {"scaled by 1 + eps", "operands in bf16"} <= {*accepted}
    assert "zeros" not in accepted


def test_what_is_not_there_to_get_wrong_is_named() -> None:
    found = small("two-tiles")
    assert "conv2d.bias ignored" in found.not_applicable["the layer has none"]
    assert "inputs of another group" in found.not_applicable["one group"]
    assert "samples shifted by one" in found.not_applicable["axis 0 has one element"]


SOLVED_BY_A_CONSTANT = """
import torch
from torch import nn

class Model(nn.Module):
    def forward(self, x):
        return torch.relu(x.mean(1, keepdim=True) - x.amax(1, keepdim=True))

def get_inputs():
    return [torch.rand(4, 8)]

def get_init_inputs():
    return []
"""
LINEAR = SOLVED_BY_A_CONSTANT.replace(
    "torch.relu(x.mean(1, keepdim=True) - x.amax(1, keepdim=True))", "x * 2 - 1"
)


@pytest.mark.parametrize(
    ("source", "accepted"), [(SOLVED_BY_A_CONSTANT, {"zeros", "input ignored"}), (LINEAR, set())]
)
def test_a_problem_that_a_constant_solves_is_not_admitted(
    tmp_path: Path, source: str, accepted: set[str]
) -> None:
    path = tmp_path / "foreign.py"
    path.write_text(source)
    problem = load.find_problem(str(path))
    (cell,) = plan.plan_cells(problem, (), ("fp32",), ("fp32",), "cpu", 128)
    found = admission.admit(problem, cell, CPU)
    assert accepted <= {*found.accepted}
    assert bool(accepted) != found.admitted


@settings(max_examples=40, database=None)
@given(st.sampled_from(["conv2d", "convtranspose1d", "separable_conv2d"]), st.integers(0, 2**60))
def test_what_matters_is_what_moves_the_answer(name: str, seed: int) -> None:
    """By brute force: an element is left out and the answer compared."""
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    problem = load.find_problem(name)
    shape = problem.hidden_shape(rng)
    assert shape is not None
    case = Case(problem, Cell("test", "test", shape, "fp32", "fp32"), CPU, rng.randbytes(16))
    inputs = [torch.randn(item.shape, generator=case.generator) for item in case.inputs.tensors]
    truth = case.oracle.truth(inputs)
    call = fakes.Asked(case.oracle, inputs, truth, truth, truth)
    for tensor, used in admission._matters(case.oracle, inputs, one=True).items():
        place = tuple(rng.randrange(size) for size in used.shape)
        changed = fake_layers.without(tensor, place)(call)
        assert used[place] == any(not torch.equal(a, b) for a, b in zip(truth, changed, strict=True))


def test_a_fake_leaves_the_model_and_the_truth_alone() -> None:
    problem, cell = load.find_problem("conv2d"), cells("conv2d", "smoke/groups")[0]
    trial = admission.Trial(Case(problem, cell, CPU, bytes(16)))
    call = trial.calls[0]
    truth = [y.clone() for y in call.truth]
    ignorant = fake_layers.ignorant(trial.oracle.exact, trial.matters)
    for _, fake in (*fakes.constant(), *fakes.incomplete(4), *ignorant):
        admission._try(partial(fake, call))
    assert all(map(torch.equal, call.truth, truth))
    assert all(map(torch.equal, call.again(), truth))


def made(label: str = "padded", **changed: Any) -> admit.Admission:
    cell = Cell("smoke", label, {"batch": 1}, "fp32", "tf32")
    return admit.Admission("conv1d", cell, "cpu", "2.13.0", **changed)


def test_a_record_keeps_one_line_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "new" / "conv1d.jsonl"
    admit.keep(path, [made(), made("odd", refused=3), made("large", unsupported="too large")])
    admit.keep(path, [made("odd", accepted=("zeros",))])
    kept = admit.read(path)
    assert [(one.cell.split("/")[1], one.refused, one.accepted) for one in kept] == [
        ("padded", 0, ()),
        ("odd", 0, ("zeros",)),
    ]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{}\n", "no JSON\n", '{"problem": "conv1d"'])
def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text)
    with pytest.raises(load.BadInput, match="name another file"):
        admit.keep(path, [made()])
    assert path.read_text() == text


def test_failures_stand_first_and_say_why() -> None:
    table = admit.render(
        [
            made(),
            made("odd", accepted=("zeros",)),
            made("prime", slandered={"float64, rounded once": "values: 1 instead of 2"}),
            made("large", unsupported="needs 9 MiB", not_applicable={"no bias": ("bias ignored",)}),
        ],
        "table",
    )
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == [
        "smoke/odd",
        "smoke/prime",
        "smoke/large",
        "smoke/padded",
    ]
    assert "conv1d smoke/odd tf32: wrong, but accepted: zeros" in lines
    assert (
        "conv1d smoke/prime tf32: honest, but refused: float64, rounded once: values: 1 instead of 2" in lines
    )
    assert "conv1d smoke/large tf32: not run: needs 9 MiB" in lines
    assert "not applicable, no bias: bias ignored (1)" in lines
    assert lines[-1] == "1 of 4 cells are admitted"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runner", "admit", "--device", "cpu", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=100)


def test_the_command_judges_and_keeps(tmp_path: Path) -> None:
    path, output = tmp_path / "foreign.py", tmp_path / "kept.jsonl"
    path.write_text(SOLVED_BY_A_CONSTANT)
    said = run(
        "--problem", str(path), "--dtype", "fp32", "--math", "fp32", "--format", "json", "-o", str(output)
    )
    assert said.returncode == 1, said.stderr
    (one,) = json.loads(said.stdout)
    assert one["verdict"] == "NOT ADMITTED"
    assert "zeros" in one["accepted"]
    assert [kept.accepted for kept in admit.read(output)] == [tuple(one["accepted"])]
    said = run("--problem", "conv1d", "--shapes", "smoke/padded", "--dtype", "fp16")
    assert said.returncode == 0, said.stderr
    assert said.stdout.endswith("1 of 1 cells are admitted\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--problem", "conv1d", "--shapes", "smok"), "did you mean smoke"),
        (("--problem", "conv1d", "--math", "fp16"), "unknown math 'fp16'"),
        (("--problem", "conv1d", "-o", "/proc/no/such.jsonl"), "cannot write -o"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], complaint: str) -> None:
    said = run(*words)
    assert said.returncode == 2
    assert complaint in said.stderr
    assert said.stderr.count("\n") == 1
    assert said.stdout == ""
