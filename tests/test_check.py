"""The comparator: every wrong answer fails, no honest one does, and budgets mean what they say."""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from runner import load
from runner.contestant.emulate import truncate_to_tf32
from runner.judge import check
from runner.judge.case import Case
from runner.judge.oracle import Oracle
from runner.judge.reference import outputs_of
from runner.schema import Cell, PopulationError

if TYPE_CHECKING:
    from collections.abc import Callable

    Lose = Callable[[torch.Tensor], torch.Tensor]

PROBLEM = load.find_problem("convtranspose2d")
MODULE = PROBLEM.module()
Shape = MODULE.Shape
#: Arithmetic -> (dtype, math) of the cell.
CELLS = {
    "tf32": ("fp32", "tf32"),
    "fp32": ("fp32", "fp32"),
    "fp16": ("fp16", "tf32"),
    "bf16": ("bf16", "tf32"),
}
SHAPES = {
    "dense": Shape(2, 16, 8, 6, 7, 3, 1, 1, dilation=1),
    # two thirds of the outputs hold the bias, which no input changes
    "bias-only": Shape(2, 6, 5, 5, 4, (2, 3), (4, 5), (0, 1), dilation=1, bias=True),
    "zeros": Shape(3, 7, 6, 3, 4),
    "groups": Shape(2, 6, 9, 5, 6, 4, 2, 1, dilation=1, groups=3, bias=True),
    "one-pixel": Shape(4, 12, 5, 1, 1, 1, 1, 0, dilation=1),
    "one-channel": Shape(2, 1, 1, 9, 7, 5, 1, 2, dilation=1),
}
every_cell = pytest.mark.parametrize("arithmetic", CELLS)


@dataclass(frozen=True)
class Trial:
    """One call of a cell: what goes in, and the judge's private side."""

    case: Case
    x: torch.Tensor

    @property
    def truth(self) -> torch.Tensor:
        return self.case.oracle.truth([self.x])[0].clone()

    @property
    def observed(self) -> torch.Tensor:
        observed = self.case.oracle.observed([self.x])
        assert observed is not None
        return observed[0]

    @property
    def reached(self) -> torch.Tensor:
        assert self.case.reached is not None
        return self.case.reached[0].expand_as(self.truth)

    def tally(self, y: torch.Tensor) -> check.Tally:
        """Compare; the class model's luck is the same each time."""
        self.case.generator.manual_seed(1)
        tally = check.Tally()
        check.compare([y], [self.x], self.case.oracle, self.case.reached, self.case.generator, tally)
        return tally

    def errors(self, y: torch.Tensor) -> dict[str, PopulationError]:
        return {error.population: error for error in self.tally(y).errors}


def trial(shape: Any, arithmetic: str, seed: int = 0, *, mixture: bool = False) -> Trial:
    cell = Cell("test", "test", shape._asdict(), *CELLS[arithmetic])
    case = Case(PROBLEM, cell, torch.device("cpu"), seed.to_bytes(16, "little") + bytes(16))
    block = torch.empty(case.inputs.size, dtype=torch.uint8)
    if mixture:
        case.draw(1, block)
    (x,) = case.inputs.views(block)
    return Trial(case, x if mixture else x.normal_(generator=case.generator))


def exact(value: torch.Tensor) -> torch.Tensor:
    return value


def truncate(value: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(truncate_to_tf32(value.numpy()))


def nearest(value: torch.Tensor) -> torch.Tensor:
    """Round to TF32, ties away from zero, as cvt.rna does."""
    return ((value.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def through(dtype: torch.dtype) -> Lose:
    return lambda value: value.to(dtype).to(value.dtype)


def parameters(t: Trial) -> dict[str, torch.Tensor]:
    """Copy weight and, if there is one, bias, in fp32."""
    return {name.rpartition(".")[2]: value.float().clone() for name, value in t.case.state.items()}


def layer(t: Trial, state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Run the reference's layer in fp32."""
    model = MODULE.Model(*t.case.init)
    with torch.no_grad():
        y: torch.Tensor = functional_call(model, {f"conv_transpose2d.{n}": v for n, v in state.items()}, (x,))
    return y


def answer(
    t: Trial, lose: Lose = exact, change: Callable[[dict[str, torch.Tensor]], object] = id
) -> torch.Tensor:
    """Compute in fp32 on operands that lost something, with changed parameters; round to the cell's dtype."""
    state = parameters(t)
    state["weight"] = lose(state["weight"])
    change(state)
    return layer(t, state, lose(t.x.float())).to(t.case.dtype)


def split(t: Trial) -> torch.Tensor:
    """Reduce even and odd input elements apart and add the halves: another order of the same sums."""
    even = torch.arange(t.x[0].numel()).view(t.x.shape[1:]) % 2
    state = parameters(t)
    y = layer(t, state, t.x.float() * even)
    if "bias" in state:
        state["bias"].zero_()
    return (y + layer(t, state, t.x.float() * (1 - even))).to(t.case.dtype)


def three_products(t: Trial) -> torch.Tensor:
    """3xTF32: the product of the high parts, and those of each high part with the other's low part."""
    state = parameters(t)
    weight = state.pop("weight")
    none = {name: torch.zeros_like(bias) for name, bias in state.items()}
    w_high, x_high = truncate(weight), truncate(t.x)
    w_low, x_low = truncate(weight - w_high), truncate(t.x - x_high)
    y = layer(t, {"weight": w_low, **none}, x_high) + layer(t, {"weight": w_high, **none}, x_low)
    return y + layer(t, {"weight": w_high, **state}, x_high)


HONEST: dict[str, dict[str, Callable[[Trial], torch.Tensor]]] = {
    "tf32": {
        "truncated": lambda t: answer(t, truncate),
        "rounded": lambda t: answer(t, nearest),
        "fp32": answer,
        "split": split,
    },
    "fp32": {"fp32": answer, "3xtf32": three_products, "split": split},
    "fp16": {"fp32 accumulation": answer, "split": split, "exact": lambda t: t.truth.half()},
    "bf16": {"fp32 accumulation": answer, "split": split, "exact": lambda t: t.truth.bfloat16()},
}


def small_shape(rng: random.Random) -> Any:
    """Draw small layers of any kind, one-pixel and one-channel ones among them."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return rng.randint(low, high), rng.randint(low, high)

    while True:
        groups = rng.choice((1, 1, 1, 2))
        shape = Shape(
            batch=rng.randint(1, 3),
            in_channels=groups * rng.choice((1, 2, 5, 16, 40)),
            out_channels=groups * rng.choice((1, 2, 5, 9)),
            height=rng.choice((1, 2, 5, 9)),
            width=rng.choice((1, 3, 8)),
            kernel_size=pair(1, 4),
            stride=pair(1, 4),
            padding=pair(0, 2),
            output_padding=pair(0, 1),
            dilation=pair(1, 2),
            groups=groups,
            bias=rng.random() < 0.5,
        )
        if MODULE.validate(shape) is None:
            return shape


@every_cell
def test_no_honest_answer_is_refused(arithmetic: str) -> None:
    """72 layers each, on the mixture with its scales from 1e-9 to 1e6, by every honest way there is."""
    rng = random.Random(arithmetic)  # noqa: S311 - repeatable on purpose
    for seed in range(72):
        t = trial(small_shape(rng), arithmetic, seed, mixture=True)
        for name, compute in HONEST[arithmetic].items():
            assert not t.tally(compute(t)).wrong, (name, seed, t.case.cell.shape)


@settings(max_examples=80, deadline=None, database=None)
@given(st.sampled_from(sorted(CELLS)), st.integers(0, 2**60), st.floats(0, 1))
def test_nothing_nearer_to_the_truth_than_the_reference_is_refused(
    arithmetic: str, seed: int, share: float
) -> None:
    """Each element is either the reference's own or the truth, rounded once."""
    t = trial(small_shape(random.Random(seed)), arithmetic, seed, mixture=True)  # noqa: S311
    own = torch.rand(t.truth.shape, generator=t.case.generator) < share
    y = torch.where(own, t.observed, t.truth.to(t.case.dtype))
    found = t.tally(y)
    assert not found.wrong
    assert all(
        e.normwise <= e.normwise_budget and e.elementwise <= e.elementwise_budget for e in found.errors
    )


def test_the_class_model_truncates_as_the_interpreter_does() -> None:
    t = trial(SHAPES["dense"], "tf32", mixture=True)
    lost = t.case.oracle.operand(t.x, t.case.generator, 0)
    assert torch.equal(lost.float(), truncate(t.x))


def stale(t: Trial, _: torch.Tensor) -> torch.Tensor:
    return answer(Trial(t.case, torch.randn_like(t.x)))


def put(value: float) -> Callable[[Trial, torch.Tensor], torch.Tensor]:
    """Replace one element, which some tap reaches."""

    def change(t: Trial, y: torch.Tensor) -> torch.Tensor:
        y[tuple(t.reached.nonzero()[-1])] = value
        return y

    return change


def last_row(t: Trial, y: torch.Tensor) -> torch.Tensor:
    """Leave out the last row that has any taps."""
    row = int(t.reached.any(dim=3).nonzero()[:, 2].max())
    y[:, :, row] = 0.0
    return y


def drop_tap(state: dict[str, torch.Tensor]) -> None:
    """Leave out a tap at the middle: near the edges of the kernel a tap may reach no output."""
    rows, columns = state["weight"].shape[2:]
    state["weight"][:, :, rows // 2, columns // 2] = 0.0


WRONG: dict[str, Callable[[Trial, torch.Tensor], torch.Tensor]] = {
    "zeros": lambda _, y: torch.zeros_like(y),
    "mean": lambda _, y: torch.full_like(y, float(y.float().mean())),
    "mean of each channel": lambda _, y: y.float().mean((2, 3), keepdim=True).to(y.dtype).expand_as(y) * 0.9,
    "another call's answer": stale,
    "first sample for all": lambda _, y: y[:1].expand_as(y),
    "samples swapped": lambda _, y: y.flip(0),
    "last sample missing": lambda _, y: torch.cat([y[:-1], torch.zeros_like(y[-1:])]),
    "last row missing": last_row,
    "negated": lambda _, y: -y,
    "1 % too large": lambda _, y: y * 1.01 if y.dtype == torch.float32 else y * 1.05,
    "one tap dropped": lambda t, _: answer(t, change=drop_tap),
    "one NaN": put(float("nan")),
    "one infinity": put(float("inf")),
    "one infinity below": put(float("-inf")),
    "NaN everywhere": lambda _, y: torch.full_like(y, float("nan")),
    "one zero": put(0.0),
}


@every_cell
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_wrong_answer_fails(shape: Any, arithmetic: str) -> None:
    t = trial(shape, arithmetic)
    assert not t.tally(answer(t)).wrong
    passed = [name for name, change in WRONG.items() if not t.tally(change(t, answer(t))).wrong]
    assert passed == []


@every_cell
@pytest.mark.parametrize("label", ["bias-only", "groups"])
def test_an_ignored_bias_fails(label: str, arithmetic: str) -> None:
    t = trial(SHAPES[label], arithmetic)
    y = answer(t, change=lambda state: state["bias"].zero_())
    assert t.tally(y).wrong
    where_reached = torch.where(t.reached, y, answer(t))
    assert t.tally(where_reached).wrong.startswith("values: ")


@pytest.mark.parametrize(
    ("arithmetic", "lose"),
    [
        ("tf32", through(torch.bfloat16)),
        ("tf32", through(torch.float8_e4m3fn)),
        ("fp32", truncate),
        ("fp32", nearest),
        ("fp32", through(torch.float16)),
        ("fp32", through(torch.bfloat16)),
        ("fp16", through(torch.bfloat16)),
        ("fp16", through(torch.float8_e4m3fn)),
        ("bf16", through(torch.float8_e4m3fn)),
    ],
)
@pytest.mark.parametrize("label", ["dense", "zeros", "groups"])
def test_a_lower_precision_fails(label: str, arithmetic: str, lose: Lose) -> None:
    for seed in range(5):
        t = trial(SHAPES[label], arithmetic, seed)
        assert t.tally(answer(t, lose)).wrong.startswith("values: ")


@pytest.mark.parametrize("arithmetic", ["tf32", "fp32", "bf16"])
@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_the_range_of_fp16_fails_in_a_wider_cell(arithmetic: str, scale: float) -> None:
    """One sample of a batch is enough, though beside the others it is nothing."""
    t = trial(SHAPES["dense"], arithmetic)
    t.x[1] *= scale
    assert not t.tally(answer(t)).wrong
    assert t.tally(answer(t, through(torch.float16))).wrong


#: One slice; no tap reaches 42 % of it, which must not dilute the rest.
SPARSE = Shape(1, 16, 9, 7, 8, 3, 4, 1, dilation=1, bias=True)


def population_rms(t: Trial) -> float:
    return float((t.truth * t.reached).norm() / t.reached.sum().sqrt())


@every_cell
def test_one_element_over_its_budget_fails(arithmetic: str) -> None:
    t = trial(SPARSE, arithmetic)
    y = t.truth.to(t.case.dtype)
    budget = t.errors(y)["reached"].elementwise_budget * population_rms(t)
    # the smallest, where the dtype is finest
    place = tuple((t.truth.abs() + ~t.reached * 1e9 == t.truth[t.reached].abs().min()).nonzero()[0])
    for share, wrong in ((0.95, False), (1.05, True)):
        y[place] = float(t.truth[place]) + share * budget
        found = t.tally(y)
        assert bool(found.wrong) == wrong
        assert found.errors[0].elementwise == pytest.approx(
            share * found.errors[0].elementwise_budget, rel=0.01
        )
        if wrong:
            assert str([int(i) for i in place]) in found.wrong


@pytest.mark.parametrize("arithmetic", ["tf32", "fp32"])
def test_errors_of_all_elements_over_their_budget_fail(arithmetic: str) -> None:
    """Each of them stays far below what a single element may have."""
    t = trial(SPARSE, arithmetic)
    budget = t.errors(t.observed)["reached"].normwise_budget * population_rms(t)
    for share, wrong in ((0.95, False), (1.05, True)):
        found = t.tally((t.truth + t.reached * share * budget).to(t.case.dtype))
        assert bool(found.wrong) == wrong
        assert found.errors[0].normwise == pytest.approx(share * found.errors[0].normwise_budget, rel=0.01)
        assert found.errors[0].elementwise < 0.7 * found.errors[0].elementwise_budget


@every_cell
@pytest.mark.parametrize("label", ["bias-only", "zeros"])
def test_where_no_tap_reaches_one_rounding_is_allowed(label: str, arithmetic: str) -> None:
    t = trial(SHAPES[label], arithmetic)
    y = answer(t)
    info = torch.finfo(y.dtype)
    place = tuple((~t.reached).nonzero()[-1])
    value = float(t.truth[place])
    unit = info.eps * abs(value) + info.smallest_normal
    for change, wrong in (
        (0.0, False),
        (0.7 * unit, False),
        (-0.7 * unit, False),
        (3 * unit, True),
        (-3 * unit, True),
    ):
        y[place] = value + change
        found = t.tally(y)
        assert bool(found.wrong) == wrong, change
        assert not wrong or "where no tap reaches" in found.wrong
    y[place] = float("nan")
    assert t.tally(y).wrong
    if label == "zeros":
        y[place] = -0.0
        assert not t.tally(y).wrong


def two_layers(seed: int, arithmetic: str) -> tuple[Case, torch.Tensor]:
    """Two layers with biases: where no tap reaches, the second multiplies the bias of the first."""
    problem = load.find_problem("separable_conv2d")
    shape = problem.outline.Shape(2, 40, 9, 3, 2, 2, 2, 3, bias=True)
    cell = Cell("test", "test", shape._asdict(), *CELLS[arithmetic])
    case = Case(problem, cell, torch.device("cpu"), seed.to_bytes(16, "little"))
    assert case.reached is not None
    assert not case.reached[0].all()
    block = torch.empty(case.inputs.size, dtype=torch.uint8)
    case.draw(1, block)
    return case, case.inputs.views(block)[0]


def two_layers_verdict(case: Case, x: torch.Tensor, y: torch.Tensor) -> str:
    tally = check.Tally()
    check.compare([y.to(case.dtype)], [x], case.oracle, case.reached, case.generator, tally)
    return tally.wrong


def lossy_layers(case: Case, x: torch.Tensor, lose: Lose) -> torch.Tensor:
    """Lose digits of what each of the two layers multiplies, of the first one's result too."""
    model = case.problem.module().Model(*case.init)
    model.load_state_dict({name: value.float() for name, value in case.state.items()})
    with torch.no_grad():
        for name in ("depthwise", "pointwise"):
            weight = model.get_submodule(name).weight
            weight.copy_(lose(weight.clone()))
        y: torch.Tensor = model.pointwise(lose(model.depthwise(lose(x.float()))))
    return y


@every_cell
def test_a_computed_constant_may_lose_what_the_class_loses(arithmetic: str) -> None:
    lose = truncate if arithmetic == "tf32" else exact
    for seed in range(20):
        case, x = two_layers(seed, arithmetic)
        assert not two_layers_verdict(case, x, lossy_layers(case, x, lose)), seed
        truth = case.oracle.truth([x])[0]
        for factor in (0.0, 0.95, 1.05):
            wrong = torch.where(case.reached[0], truth, truth * factor)
            assert "where no tap reaches" in two_layers_verdict(case, x, wrong)


def test_a_copied_constant_may_not() -> None:
    """TF32 loses digits of what it multiplies; a bias is added."""
    t = trial(SHAPES["bias-only"], "tf32")
    y = torch.where(t.reached, t.truth, truncate(t.truth.float()))
    assert "where no tap reaches" in t.tally(y.float()).wrong


@settings(max_examples=40, deadline=None, database=None)
@given(st.sampled_from(["tf32", "fp32", "bf16"]), st.integers(-30, 19), st.integers(0, 99))
def test_powers_of_two_change_neither_errors_nor_budgets(arithmetic: str, power: int, seed: int) -> None:
    t = trial(SHAPES["zeros"], arithmetic, seed)
    scaled = Trial(t.case, t.x * 2.0**power)
    lose = truncate if arithmetic == "tf32" else exact
    plain, moved = (astuple(one.errors(answer(one, lose))["reached"])[1:] for one in (t, scaled))
    assert moved == pytest.approx(plain, rel=1e-9)


def test_a_flushed_output_excuses_no_other() -> None:
    """What is too small for fp16 may become zero; a hundred times more may not be off by as much."""
    t = trial(SHAPES["dense"], "fp16")
    t.x.mul_(2.0**-8)
    y = answer(t)
    assert not t.tally(y).wrong
    assert t.tally((y.double() * (1 + 2.0**-7)).half()).wrong
    t.x.mul_(2.0**-12)
    assert not t.tally(torch.zeros_like(y)).wrong


class Product(nn.Module):
    """Rows of few outputs, so that the class model is drawn several times."""

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w


def test_truncation_of_positive_operands_is_honest() -> None:
    """All of its errors have one sign, which those of a random rounding have not."""
    oracle = Oracle(Product, {}, torch.float32, "tf32")
    inputs = [torch.rand(n, generator=torch.Generator().manual_seed(1)) for n in ((32, 48), (48, 16))]
    y = outputs_of(Product(), [truncate(x).double() for x in inputs])[0].float()
    tally = check.Tally()
    check.compare([y], inputs, oracle, None, torch.Generator().manual_seed(0), tally)
    assert not tally.wrong


def test_a_single_output_is_not_left_to_luck() -> None:
    """An honest 3xTF32 may lose 4e-6; one draw of the class model may happen to lose nothing."""
    for seed in range(40):
        t = trial(Shape(1, 1, 1, 1, 1, 1, 1, 0, dilation=1), "fp32", seed)
        t.case.generator.manual_seed(seed)
        tally = check.Tally()
        y = (t.truth * (1 + 4e-6)).float()
        check.compare([y], [t.x], t.case.oracle, t.case.reached, t.case.generator, tally)
        assert not tally.wrong


class Coarse(nn.Module):
    """A reference that loses far more than its class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3 if x.dtype == torch.float64 else (x * 3).bfloat16().float()


def test_what_the_reference_loses_a_solution_may_lose() -> None:
    oracle = Oracle(Coarse, {}, torch.float32, "fp32")
    inputs = [torch.randn(8, 8, generator=torch.Generator().manual_seed(0))]
    (observed,), (truth,) = oracle.observed(inputs) or [], oracle.truth(inputs)
    for share, wrong in ((1, False), (3, True)):
        tally = check.Tally()
        y = (truth + share * (observed - truth)).float()
        check.compare([y], inputs, oracle, None, torch.Generator(), tally)
        assert bool(tally.wrong) == wrong


def test_a_small_sample_cannot_hide_behind_a_large_one() -> None:
    t = trial(SHAPES["dense"], "tf32")
    t.x[0] *= 1e6
    y = answer(t, truncate)
    assert not t.tally(y).wrong
    y[1] = 0.0
    assert t.tally(y).wrong


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_chunks_cover_the_whole_batch(monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    monkeypatch.setattr(check, "_CHUNK_ELEMENTS", 1)
    t = trial(SHAPES["zeros"], "fp32")
    y = answer(t)
    assert not t.tally(y).wrong
    y[bad] *= 1.01
    assert t.tally(y).wrong


def test_kernelbench_is_told_apart() -> None:
    """Its tolerance is no part of the verdict: honest TF32 misses it."""
    t = trial(SHAPES["dense"], "tf32")
    assert t.tally(t.observed).kernelbench_close
    found = t.tally(answer(t, truncate))
    assert not found.wrong
    assert not found.kernelbench_close


class Pair(nn.Module):
    """Two outputs, one of whole numbers; half precision is not supported."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
        if x.dtype == torch.float16:
            raise NotImplementedError
        y = x @ self.weight + shift
        return y, y.argmax(dim=1)


def pair_verdict(dtype: torch.dtype, change: Callable[[list[torch.Tensor]], object]) -> str:
    state = {name: value.detach().to(dtype) for name, value in Pair().state_dict().items()}
    oracle = Oracle(Pair, state, dtype, {torch.float32: "fp32", torch.float16: "fp16"}[dtype])
    inputs = [torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).to(dtype), 3]
    outputs = [y.to(dtype) if y.is_floating_point() else y.clone() for y in oracle.truth(inputs)]
    change(outputs)
    tally = check.Tally()
    check.compare(outputs, inputs, oracle, None, torch.Generator(), tally)
    return tally.wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "no reference"])
def test_several_outputs_and_whole_numbers(dtype: torch.dtype) -> None:
    """Also where PyTorch cannot run the reference in the cell's dtype: the class model alone decides."""
    assert not pair_verdict(dtype, id)
    assert pair_verdict(dtype, lambda y: y[1][4:].add_(1)).startswith("values: ")
    assert pair_verdict(dtype, lambda y: y[0].mul_(1.02)).startswith("values: ")
    assert pair_verdict(dtype, lambda y: y[0][0].fill_(float("nan"))).startswith("NaN or infinity: ")
