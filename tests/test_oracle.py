"""The truth, what an arithmetic may lose of it, and which outputs depend on the inputs at all."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from runner import load
from runner.judge.inputs import TORCH_DTYPES
from runner.judge.oracle import Oracle
from runner.judge.reference import outputs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODULE = load.find_problem("convtranspose2d").module()
Shape = MODULE.Shape
DTYPES = {**TORCH_DTYPES, "tf32": torch.float32}
every_arithmetic = pytest.mark.parametrize("arithmetic", DTYPES)
quick = settings(max_examples=100, deadline=None, database=None)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def oracle_of(make: Callable[[], nn.Module], arithmetic: str) -> Oracle:
    dtype = DTYPES[arithmetic]
    with torch.random.fork_rng():
        torch.manual_seed(12345)  # nobody else's seed: noise that resembles a weight adds up
        state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in make().state_dict().items()}
    return Oracle(make, state, dtype, arithmetic)


def layer(shape: Any, arithmetic: str = "fp32") -> Oracle:
    return oracle_of(lambda: MODULE.Model(*MODULE.get_init_inputs(shape)), arithmetic)


@st.composite
def shapes(draw: st.DrawFn) -> Any:
    def axes(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
        return st.tuples(st.integers(low, high), st.integers(low, high))

    return Shape(
        batch=draw(st.integers(1, 2)),
        in_channels=draw(st.sampled_from((2, 4))),
        out_channels=draw(st.sampled_from((2, 6))),
        height=draw(st.integers(1, 5)),
        width=draw(st.integers(1, 5)),
        kernel_size=draw(axes(1, 4)),
        stride=draw(axes(1, 5)),
        padding=draw(axes(0, 4)),
        output_padding=draw(axes(0, 3)),
        dilation=draw(axes(1, 3)),
        groups=draw(st.sampled_from((1, 2))),
        bias=draw(st.booleans()),
    )


def landings(axis: Any) -> set[int]:
    """Output positions that some tap carries some input to, by trying all."""
    every = {
        i * axis.stride - axis.padding + t * axis.dilation
        for i in range(axis.size)
        for t in range(axis.kernel_size)
    }
    return {y for y in every if 0 <= y < axis.output_size()}


def reached(oracle: Oracle, x: torch.Tensor) -> torch.Tensor:
    generator = seeded(3)
    draws = ([torch.rand(x.shape, generator=generator)] for _ in itertools.count())
    (mask,) = oracle.reached(draws, generator)
    return mask


@quick
@given(shapes().filter(lambda shape: MODULE.validate(shape) is None))
def test_a_position_is_reached_if_a_tap_lands_there(shape: Any) -> None:
    oracle = layer(shape)
    x = torch.ones(1, shape.in_channels, shape.height, shape.width)
    before = oracle.truth([x])[0]
    mask = reached(oracle, x)
    rows, columns = map(landings, MODULE.axes(shape))
    expected = torch.zeros(mask.shape, dtype=torch.bool)
    for row in rows:
        expected[:, :, row, sorted(columns)] = True
    assert torch.equal(mask, expected)
    assert torch.equal(oracle.truth([x])[0], before)


def test_parameters_of_zero_reach_as_others_do() -> None:
    shape = Shape(1, 2, 2, 3, 3)
    x = torch.ones(1, 2, 3, 3)
    mask = reached(layer(shape), x)
    zeros = {"conv_transpose2d.weight": torch.zeros(2, 2, 3, 3)}
    oracle = Oracle(lambda: MODULE.Model(*MODULE.get_init_inputs(shape)), zeros, torch.float32, "fp32")
    assert torch.equal(reached(oracle, x), mask)
    assert not oracle.truth([x])[0].any()


def test_asking_what_is_reached_leaves_the_class_model_alone() -> None:
    oracle = layer(Shape(1, 2, 2, 3, 3, bias=True))
    x = torch.randn(1, 2, 3, 3, generator=seeded())
    answers = []
    for ask in (False, True):
        oracle.perturb(seeded(1), 0)
        if ask:
            reached(oracle, x)
        answers.append(oracle.class_model([x], seeded(2), 0)[0])
    assert torch.equal(*answers)


@every_arithmetic
def test_the_truth_is_float64_on_the_inputs_as_sent(arithmetic: str) -> None:
    shape = Shape(2, 3, 4, 4, 3, 3, 2, 1, dilation=1, bias=True)
    oracle = layer(shape, arithmetic)
    x = torch.randn(2, 3, 4, 3, generator=seeded()).to(oracle.dtype)
    weight, bias = (v.double() for _, v in sorted(oracle.parameters.items(), reverse=True))
    # y[n, o, i * s - p + t] += x[n, c, i] * w[c, o, t], on both axes
    full = torch.zeros(2, 4, 9, 7, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            products = torch.einsum("nchw,co->nohw", x.double(), weight[:, :, row, column])
            full[:, :, row : row + 7 : 2, column : column + 5 : 2] += products
    expected = full[:, :, 1:-1, 1:-1] + bias[:, None, None]
    (truth,) = oracle.truth([x])
    assert truth.dtype == torch.float64
    assert torch.allclose(truth, expected, rtol=1e-12, atol=1e-12)


class Gate(nn.Module):
    """Two outputs of a tensor, a mask of whole numbers and a plain number; a counter among the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, x: torch.Tensor, mask: torch.Tensor, power: int) -> tuple[torch.Tensor, torch.Tensor]:
        if x.dtype in self.refused:
            raise self.error
        return (x * self.weight) ** power * mask, mask * self.steps

    refused: tuple[torch.dtype, ...] = ()
    error: Exception = RuntimeError("no kernel for this dtype")


GATE_INPUTS = [torch.tensor([1.0, 1.5, 3.0]), torch.tensor([1, 0, 1]), 2]


def test_whole_numbers_stay_whole() -> None:
    oracle = oracle_of(Gate, "bf16")
    product, counted = oracle.truth([GATE_INPUTS[0].bfloat16(), *GATE_INPUTS[1:]])
    assert product.tolist() == [1.0, 0.0, 9.0]
    assert (counted.dtype, counted.tolist()) == (torch.int64, [7, 0, 7])
    assert outputs_of(oracle.exact, [GATE_INPUTS[0].double(), *GATE_INPUTS[1:]])[0].dtype == torch.float64
    oracle.perturb(seeded(), 0)
    lost, same = oracle.class_model([GATE_INPUTS[0].bfloat16(), *GATE_INPUTS[1:]], seeded(), 0)
    assert same.tolist() == [7, 0, 7]
    assert torch.allclose(lost.double(), product, rtol=2**-7)


@pytest.fixture
def tf32_flags() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@every_arithmetic
@pytest.mark.usefixtures("tf32_flags")
def test_the_reference_runs_in_the_cells_arithmetic(arithmetic: str) -> None:
    # the other way round, so that leaving them alone shows
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = arithmetic == "fp32"
    oracle = layer(Shape(1, 2, 2, 3, 3, bias=True), arithmetic)
    observed = oracle.observed([torch.ones(1, 2, 3, 3, dtype=oracle.dtype)])
    assert observed is not None
    assert observed[0].dtype == oracle.dtype
    assert torch.backends.cudnn.allow_tf32 == (arithmetic != "fp32")
    assert torch.backends.cuda.matmul.allow_tf32 == (arithmetic != "fp32")


@pytest.mark.parametrize("error", [RuntimeError("not implemented for 'Half'"), NotImplementedError()])
def test_a_reference_that_cannot_run_in_the_dtype_is_none(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gate, "refused", (torch.float16,))
    monkeypatch.setattr(Gate, "error", error)
    oracle = oracle_of(Gate, "fp16")
    inputs = [GATE_INPUTS[0].half(), *GATE_INPUTS[1:]]
    assert oracle.observed(inputs) is None
    assert oracle.truth(inputs)[0].tolist() == [1.0, 0.0, 9.0]


def test_a_reference_that_is_broken_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "refused", (torch.float16,))
    monkeypatch.setattr(Gate, "error", TypeError("forward takes no such argument"))
    with pytest.raises(TypeError):
        oracle_of(Gate, "fp16").observed([GATE_INPUTS[0].half(), *GATE_INPUTS[1:]])


finite = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20)
LARGEST_LOSS = {"tf32": 2.0**-10, "fp32": 8e-6, "fp16": 2.0**-18, "bf16": 2.0**-18}


@quick
@given(finite, st.sampled_from(sorted(DTYPES)), st.integers(0, 5))
def test_an_operand_loses_at_most_what_its_class_may(values: list[float], arithmetic: str, draw: int) -> None:
    oracle = layer(Shape(1, 1, 1, 1, 1, 1, 1, 0), arithmetic)
    value = torch.tensor(values).clamp(-1e38, 1e38)
    value[value.abs() < 1e-37] = 0.0  # flushing subnormals is nobody's loss
    lost = oracle.operand(value, seeded(draw), draw)
    error = (lost - value.double()).abs()
    assert lost.dtype == torch.float64
    assert bool((error <= LARGEST_LOSS[arithmetic] * value.double().abs()).all())
    if arithmetic == "tf32" and draw == 0:
        assert bool((lost.abs() <= value.double().abs()).all())


@quick
@given(finite, st.integers(0, 5))
def test_what_tf32_can_hold_is_never_lost(values: list[float], draw: int) -> None:
    oracle = layer(Shape(1, 1, 1, 1, 1, 1, 1, 0), "tf32")
    held = (torch.tensor(values).view(torch.int32) & ~0x1FFF).view(torch.float32)
    assert torch.equal(oracle.operand(held, seeded(draw), draw).float(), held)


def test_draws_of_tf32_lose_differently() -> None:
    oracle = layer(Shape(1, 1, 1, 1, 1, 1, 1, 0), "tf32")
    value = torch.randn(4000, generator=seeded())
    first, second, third = (oracle.operand(value, seeded(5 + draw), draw) for draw in range(3))
    assert not torch.equal(second, third)
    toward_zero, either = ((y.abs() - value.abs()).mean() / value.abs().mean() for y in (first, second))
    assert toward_zero == pytest.approx(-3.6e-4, rel=0.1)  # half a unit of 2**-10, over the mean mantissa
    assert abs(either) < 0.1 * 3.6e-4


@pytest.mark.parametrize(("arithmetic", "bits"), [("fp16", 11), ("bf16", 8)])
def test_half_precisions_accumulate_in_fp32_and_round_once(arithmetic: str, bits: int) -> None:
    """An error beyond half a unit in the last place of the result would be accumulation in the dtype."""
    oracle = layer(Shape(1, 512, 4, 4, 4, 3, 1, 1, dilation=1), arithmetic)
    x = torch.rand(1, 512, 4, 4, generator=seeded()).to(oracle.dtype)
    (truth,) = oracle.truth([x])
    for draw in range(2):
        oracle.perturb(seeded(draw), draw)
        (lost,) = oracle.class_model([x], seeded(9 + draw), draw)
        assert torch.equal(lost, lost.to(oracle.dtype).double())
        half_unit = 2.0 ** (truth.abs().log2().floor() + 1 - bits) / 2
        assert bool(((lost - truth).abs() <= 1.1 * half_unit + 2.0**-17 * truth.abs().max()).all())
        assert float((lost - truth).norm() / truth.norm()) > 0.2 * 2.0**-bits


@pytest.mark.parametrize(("arithmetic", "low", "high"), [("tf32", 3e-4, 1e-3), ("fp32", 2e-6, 1e-5)])
def test_the_class_model_loses_as_much_as_the_class(arithmetic: str, low: float, high: float) -> None:
    oracle = layer(Shape(1, 64, 8, 6, 6, 3, 1, 1, dilation=1), arithmetic)
    x = torch.randn(1, 64, 6, 6, generator=seeded())
    (truth,) = oracle.truth([x])
    for draw in range(3):
        oracle.perturb(seeded(draw), draw)
        (lost,) = oracle.class_model([x], seeded(9 + draw), draw)
        assert low / (1 + 2 * math.sqrt(draw)) < float((lost - truth).norm() / truth.norm()) < high


def test_perturbing_touches_the_class_model_alone() -> None:
    oracle = layer(Shape(1, 2, 2, 3, 3, bias=True), "tf32")
    x = torch.randn(1, 2, 3, 3, generator=seeded())
    given_values = {name: value.clone() for name, value in oracle.parameters.items()}
    before = oracle.truth([x])[0], oracle.observed([x])
    oracle.perturb(seeded(), 1)
    assert torch.equal(oracle.truth([x])[0], before[0])
    assert torch.equal((oracle.observed([x]) or [])[0], (before[1] or [])[0])
    assert all(torch.equal(value, given_values[name]) for name, value in oracle.parameters.items())


def test_a_model_without_parameters() -> None:
    oracle = oracle_of(nn.ReLU, "fp16")
    assert oracle.truth([torch.tensor([-1.0, 2.0]).half()])[0].tolist() == [0.0, 2.0]
    assert reached(oracle, torch.ones(1, 2)).all()
