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


ATTENTION = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
    def forward(self, q, k, v):
        return torch.softmax(q @ k.mT, -1) @ v

def get_inputs(shape=Shape()):
    return [torch.randn(shape.rows, 16, shape.columns) for _ in range(3)]
"""

FUSED_ATTENTION = ATTENTION.replace(
    "torch.softmax(q @ k.mT, -1) @ v", "nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)"
)

RECURRENT = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.cells = nn.LSTM(columns, 16)
    def forward(self, x):
        return self.cells(x)[0]

def get_inputs(shape=Shape()):
    return [torch.randn(6, shape.rows, shape.columns)]
""".replace("class Model", "BATCH_DIM = None\n\nclass Model")

NORMALISED = """
BATCH_DIM = None

class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.linear, self.norm = nn.Linear(columns, 16), nn.BatchNorm1d(16)
    def forward(self, x):
        return self.norm(self.linear(x)).relu()
"""

BLOCKS = """
BATCH_DIM = None

class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        blocks = [[nn.Linear(columns, columns), nn.BatchNorm1d(columns), nn.ReLU()] for _ in range(8)]
        self.layers = nn.Sequential(*sum(blocks, []))
    def forward(self, x):
        return self.layers(x)
"""

TURNED = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.register_buffer("rates", 10000.0 ** -(torch.arange(columns) / columns), persistent=False)
    def forward(self, x):
        positions = torch.arange(x.shape[1], device=x.device).float()
        angles = (self.rates[:, None].float() @ positions[None, :]).T
        return x * angles.cos()

def get_inputs(shape=Shape()):
    return [torch.randn(shape.rows, 2048, shape.columns)]
"""

BY_CONVOLUTION = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.convolution = nn.Conv2d(columns, 3 * columns, 1)
    def forward(self, x):
        q, k, v = self.convolution(x).flatten(2).chunk(3, 1)
        return torch.softmax(2 * q.mT @ k, -1) @ v.mT

def get_inputs(shape=Shape()):
    return [torch.randn(shape.rows, shape.columns, 4, 4)]
"""

OVERFLOWING = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
    def forward(self, q, k, v):
        return (q @ (k.mT @ v)) / (q @ k.sum(-2)[..., None])

def get_inputs(shape=Shape()):
    return [3 + torch.rand(2, 8192, 16) for _ in range(3)]
"""

CHANNELS_LAST = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.convolution = nn.Conv2d(columns, 8, 1)
    def forward(self, x):
        return self.convolution((2 * x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).view(len(x), -1)

def get_inputs(shape=Shape()):
    return [torch.randn(shape.rows, 4, 4, shape.columns)]
"""

SYMMETRIC = """
BATCH_DIM = None

class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.linear = nn.Linear(columns, 8)
    def forward(self, x):
        y = self.linear(x)
        return torch.linalg.cholesky(y @ y.T + 1e-3 * torch.eye(len(y), device=x.device, dtype=x.dtype))

def get_inputs(shape=Shape()):
    return [torch.randn(shape.rows, shape.columns)]
"""

COUNTED = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
    def forward(self, x):
        steps = torch.arange(x.shape[1], device=x.device).to(x.dtype) + 2049
        pairs = torch.stack([steps, steps], 1)
        return x + (pairs @ torch.ones(2, 1, dtype=x.dtype, device=x.device)).T
"""

LARGEST = """
class Model(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.linear = nn.Linear(columns, 40)
    def forward(self, x):
        return self.linear(x).argmax(-1)
"""


def case_of(model: str, folder: Path, math: str, dtype: str = "fp32") -> Case:
    path = folder / "operator.py"
    path.write_text(SHAPE + model)
    problem = load.find_problem(str(path))
    cell = Cell("smoke", "small", {"rows": 24, "columns": 96}, dtype, math)
    return Case(problem, cell, torch.device("cpu"), bytes(range(16)))


def verdicts(case: Case, answer: Answer) -> list[str]:
    """Return what is wrong with an answer to each of the checked calls, and to a timed one."""
    found = []
    for call in ("own", "mixture", 0, 1):
        block, tally = torch.empty(case.inputs.size, dtype=torch.uint8), check.Tally()
        if call == "own":
            case.draw_own(block)
        else:
            case.draw(1, block, None if isinstance(call, str) else call)
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


def truncated(x: torch.Tensor) -> torch.Tensor:
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def by_tensor_cores(inputs: list[torch.Tensor], _: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    q, k, v = map(truncated, inputs)
    return [truncated(torch.softmax(q @ k.mT, -1)) @ v]


def by_bf16(inputs: list[torch.Tensor], _: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    q, k, v = map(truncated, inputs)
    return [torch.softmax(q @ k.mT, -1).bfloat16().float() @ v]


def unrolled(
    inputs: list[torch.Tensor], state: dict[str, torch.Tensor], lost: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    of_input, of_hidden = (lost(state[f"cells.weight_{kind}_l0"]).T for kind in ("ih", "hh"))
    bias = state["cells.bias_ih_l0"] + state["cells.bias_hh_l0"]
    hidden = cell = torch.zeros(inputs[0].shape[1], 16)
    answers = []
    for x in inputs[0]:
        i, f, g, o = (lost(x) @ of_input + lost(hidden) @ of_hidden + bias).chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        answers.append(hidden)
    return [torch.stack(answers)]


@pytest.mark.parametrize("model", [ATTENTION, FUSED_ATTENTION], ids=["products", "one operator"])
def test_what_is_made_inside_may_lose_digits_where_it_is_multiplied(model: str, tmp_path: Path) -> None:
    case = case_of(model, tmp_path, "tf32")
    assert verdicts(case, by_tensor_cores) == [""] * 4
    assert any(verdicts(case, by_bf16))
    assert any(verdicts(case_of(model, tmp_path, "fp32"), by_tensor_cores))


def test_a_hidden_state_may_lose_digits(tmp_path: Path) -> None:
    case = case_of(RECURRENT, tmp_path, "tf32")
    assert verdicts(case, lambda x, state: unrolled(x, state, truncated)) == [""] * 4
    assert any(verdicts(case, lambda x, state: unrolled(x, state, lambda v: v.bfloat16().float())))
    exact = case_of(RECURRENT, tmp_path, "fp32")
    assert verdicts(exact, lambda x, state: unrolled(x, state, lambda v: v)) == [""] * 4
    assert any(verdicts(exact, lambda x, state: unrolled(x, state, truncated)))


def test_sums_may_begin_with_a_bias(tmp_path: Path) -> None:
    """Of small inputs each addition to it loses what normalisation by the batch then enlarges."""

    def answer(
        inputs: list[torch.Tensor], state: dict[str, torch.Tensor], eps: float = 1e-5
    ) -> list[torch.Tensor]:
        y = state["linear.bias"].expand(len(inputs[0]), -1)
        for column in range(inputs[0].shape[1]):
            y = y + inputs[0][:, column : column + 1] * state["linear.weight"][:, column]
        centred = y - y.mean(0)
        y = centred * (centred.square().mean(0) + eps).rsqrt() * state["norm.weight"] + state["norm.bias"]
        return [y.relu()]

    case = case_of(NORMALISED, tmp_path, "fp32")
    assert verdicts(case, answer) == [""] * 4
    assert any(verdicts(case, lambda x, state: answer(x, state, 1e-2)))


def test_what_keeps_from_dividing_by_zero_matters_in_fp16(tmp_path: Path) -> None:
    model = LAYER_NORM.replace("nn.LayerNorm(columns)", "nn.LayerNorm(columns, eps=1e-4)")
    case = case_of(model, tmp_path, "tf32", "fp16")

    def answer(inputs: list[torch.Tensor], state: dict[str, torch.Tensor], eps: float) -> list[torch.Tensor]:
        wide = inputs[0].float()
        y = functional.layer_norm(
            wide, wide.shape[-1:], state["norm.weight"].float(), state["norm.bias"].float(), eps
        )
        return [y.relu().half(), y.mean(-1).half()]

    assert verdicts(case, lambda x, state: answer(x, state, 1e-4)) == [""] * 4
    assert any(verdicts(case, lambda x, state: answer(x, state, 0.0))[2:])


def test_the_largest_of_near_ones_may_be_another_one(tmp_path: Path) -> None:
    case = case_of(LARGEST, tmp_path, "tf32")

    def answer(
        inputs: list[torch.Tensor], state: dict[str, torch.Tensor], columns: int = 40
    ) -> list[torch.Tensor]:
        y = truncated(inputs[0]) @ truncated(state["linear.weight"]).T + state["linear.bias"]
        return [y[:, :columns].argmax(-1)]

    for _ in range(20):
        assert verdicts(case, answer) == [""] * 4
    assert any(verdicts(case, lambda x, state: answer(x, state, 20)))


def test_what_a_class_model_leaves_in_its_layers_is_no_state(tmp_path: Path) -> None:
    """Normalised by the batch again and again, losses of two calls are far apart."""
    case = case_of(BLOCKS, tmp_path, "tf32", "bf16")
    block = torch.empty(case.inputs.size, dtype=torch.uint8)
    case.draw_own(block)
    inputs = case.inputs.views(block)
    for draw in range(3):
        case.oracle.perturb(case.generator, draw)
        assert len(case.oracle.class_model(inputs, case.generator, draw)) == 1


def test_a_product_of_one_term_loses_nothing(tmp_path: Path) -> None:
    """Angles of 2048 positions, which an operand's error would turn by radians."""
    case = case_of(TURNED, tmp_path, "fp32")
    assert verdicts(case, lambda inputs, _: case.oracle.observed(inputs) or []) == [""] * 4

    def lossy(inputs: list[torch.Tensor], _: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        rates = 10000.0 ** -(torch.arange(96) / 96)
        angles = torch.arange(2048).float()[:, None] * rates
        return [inputs[0] * angles.cos().bfloat16().float()]

    assert all(verdicts(case, lossy))


def test_a_convolution_may_be_followed_by_a_product(tmp_path: Path) -> None:
    def answer(inputs: list[torch.Tensor], state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        weight, bias = truncated(state["convolution.weight"]), state["convolution.bias"]
        made = functional.conv2d(truncated(inputs[0]), weight, bias).flatten(2)
        q, k, v = (truncated(one) for one in made.chunk(3, 1))
        return [truncated(torch.softmax(2 * q.mT @ k, -1)) @ v.mT]

    assert verdicts(case_of(BY_CONVOLUTION, tmp_path, "tf32"), answer) == [""] * 4


def test_what_fp16_has_no_number_for_costs_no_budget(tmp_path: Path) -> None:
    case = case_of(OVERFLOWING, tmp_path, "tf32", "fp16")
    block = torch.empty(case.inputs.size, dtype=torch.uint8)
    case.draw_own(block)
    q, k, v = inputs = case.inputs.views(block)
    wide = [x.float() for x in (q, k, v)]
    answer = (wide[0] @ (wide[1].mT @ wide[2])) / (wide[0] @ wide[1].sum(-2)[..., None])
    tally = check.Tally()
    check.compare([answer.half()], inputs, case.oracle, case.reached, case.generator, tally)
    assert tally.wrong == ""
    check.compare([answer.half() + 0.1], inputs, case.oracle, case.reached, case.generator, tally)
    assert tally.wrong


@pytest.mark.parametrize("model", [CHANNELS_LAST, SYMMETRIC], ids=["strides", "symmetry"])
def test_losses_leave_strides_and_symmetry(model: str, tmp_path: Path) -> None:
    """A view of other strides raises, as does a root of what is not symmetric: none is lost then."""
    case = case_of(model, tmp_path, "tf32")
    block = torch.empty(case.inputs.size, dtype=torch.uint8)
    case.draw_own(block)
    inputs = case.inputs.views(block)
    assert case.oracle.composed
    for draw in range(8):
        case.oracle.perturb(case.generator, draw)
        (answer,) = case.oracle.class_model(inputs, case.generator, draw)
        assert not torch.equal(answer.double(), case.oracle.truth(inputs)[0])
    assert case.oracle.composed


def test_whole_numbers_that_are_multiplied_lose_nothing(tmp_path: Path) -> None:
    """Numbers above 2048, of which TF32 has no odd ones."""
    case = case_of(COUNTED, tmp_path, "tf32")
    block = torch.empty(case.inputs.size, dtype=torch.uint8)
    case.draw_own(block)
    inputs = case.inputs.views(block)
    (truth,) = case.oracle.truth(inputs)
    assert case.oracle.composed
    for draw in range(4):
        case.oracle.perturb(case.generator, draw)
        (answer,) = case.oracle.class_model(inputs, case.generator, draw)
        assert float((answer - truth).abs().max()) < 0.1
