"""The judge on problems of the contract that are no convolutions: honest answers pass, wrong ones fail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from runner import load
from runner.judge import check
from runner.judge.case import Case
from runner.judge.inputs import EXTREMES
from runner.schema import Cell

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[[list[torch.Tensor], dict[str, torch.Tensor]], list[torch.Tensor]]

SHAPE = """
from typing import NamedTuple
import torch
from torch import nn

class Shape(NamedTuple):
    rows: int = 24
    columns: int = 96

SWEEPS = {"smoke": {"small": Shape()}}
BATCH_DIM = 0

def get_inputs(shape=Shape()):
    return [torch.randn(shape.rows, shape.columns)]

def get_init_inputs(shape=Shape()):
    return [shape.columns]
"""

SOFTMAX = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
    def forward(self, x):
        return torch.softmax(x, -1)
"""

LAYER_NORM = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.norm = nn.LayerNorm(columns)
    def forward(self, x):
        y = self.norm(x)
        return y.relu(), y.mean(-1)
"""

EMBEDDING = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.table = nn.Embedding(50, 8)
    def forward(self, x):
        return self.table(x).sum(1)

def get_inputs(shape=Shape()):
    return [torch.randint(50, (shape.rows, shape.columns))]
"""

LINEAR = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.linear = nn.Linear(columns, 5)
    def forward(self, x):
        return self.linear(x)
"""

CLIPPED = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.linear = nn.Linear(columns, 5)
    def forward(self, x):
        y = self.linear(x)
        return nn.functional.relu6(y), torch.relu(-y), torch.tanh(y)
"""


def case_of(model: str, folder: Path, math: str) -> Case:
    path = folder / "operator.py"
    path.write_text(SHAPE + model)
    problem = load.find_problem(str(path))
    cell = Cell("smoke", "small", {"rows": 24, "columns": 96}, "fp32", math)
    return Case(problem, cell, torch.device("cpu"), bytes(range(16)))


def verdicts(case: Case, answer: Answer) -> list[str]:
    """Return what is wrong with an answer on each of the checked calls' families of inputs."""
    found = []
    for extreme in (None, None, *EXTREMES):
        block, tally = torch.empty(case.inputs.size, dtype=torch.uint8), check.Tally()
        case.draw(1, block, extreme)
        inputs = case.inputs.views(block)
        outputs = answer(inputs, case.state)
        check.compare(outputs, inputs, case.oracle, case.reached, case.generator, tally)
        found.append(tally.wrong)
    return found


def by_powers_of_two(inputs: list[torch.Tensor], _: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    scaled = inputs[0] * 1.4426950408889634
    powers = torch.exp2(scaled - scaled.amax(-1, keepdim=True))
    return [powers / powers.sum(-1, keepdim=True)]


def through_tf32(inputs: list[torch.Tensor], _: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    x = inputs[0].contiguous()
    return [torch.softmax((x.view(torch.int32) & ~0x1FFF).view(torch.float32), -1)]


def of_the_first_half(inputs: list[torch.Tensor], _: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    x = inputs[0].clone()
    x[:, 48:] = float("-inf")
    return [torch.softmax(x, -1)]


def normalised(inputs: list[torch.Tensor], state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    centred = inputs[0] - inputs[0].mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    y = centred * scale * state["norm.weight"] + state["norm.bias"]
    return [y.relu(), y.mean(-1)]


def without_parameters(inputs: list[torch.Tensor], _: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    y = functional.layer_norm(inputs[0], inputs[0].shape[-1:])
    return [y.relu(), y.mean(-1)]


def with_another_second(inputs: list[torch.Tensor], state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    first, second = normalised(inputs, state)
    return [first, second.flip(0)]


def looked_up(inputs: list[torch.Tensor], state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [state["table.weight"][inputs[0]].sum(1)]


def of_two_words(inputs: list[torch.Tensor], state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [state["table.weight"][inputs[0].clamp(max=1)].sum(1)]


@pytest.mark.parametrize("math", ["tf32", "fp32"])
@pytest.mark.parametrize(
    ("model", "answer"),
    [(SOFTMAX, by_powers_of_two), (LAYER_NORM, normalised), (EMBEDDING, looked_up)],
    ids=["softmax", "layer norm", "embedding"],
)
def test_honest_answers_pass(model: str, answer: Answer, math: str, tmp_path: Path) -> None:
    case = case_of(model, tmp_path, math)
    assert case.reached is not None
    assert all(mask.all() for mask in case.reached)
    assert verdicts(case, answer) == [""] * 4


@pytest.mark.parametrize(
    ("model", "answer"),
    [
        (SOFTMAX, through_tf32),
        (SOFTMAX, of_the_first_half),
        (LAYER_NORM, without_parameters),
        (LAYER_NORM, with_another_second),
        (EMBEDDING, of_two_words),
    ],
    ids=["tf32", "half", "no parameters", "second output", "two words"],
)
def test_wrong_answers_fail(model: str, answer: Answer, tmp_path: Path) -> None:
    case = case_of(model, tmp_path, "tf32")
    found = verdicts(case, answer)
    assert any(found)
    if answer is with_another_second:
        assert all("of output 1" in wrong for wrong in found if wrong)


@pytest.mark.parametrize("math", ["tf32", "fp32"])
def test_what_clips_and_saturates_is_reached(math: str, tmp_path: Path) -> None:
    case = case_of(CLIPPED, tmp_path, math)
    assert case.reached is not None
    assert all(mask.all() for mask in case.reached)
    assert verdicts(case, lambda inputs, _: case.oracle.observed(inputs) or []) == [""] * 4


def test_only_products_have_the_budget_of_tf32(tmp_path: Path) -> None:
    assert case_of(SOFTMAX, tmp_path, "tf32").oracle.arithmetic == "fp32"
    assert case_of(LINEAR, tmp_path, "tf32").oracle.arithmetic == "tf32"
