"""Where inputs lie in their blocks, and that their values are the mixture that was promised."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import load
from runner.contestant import build
from runner.judge.case import Case, encoded
from runner.judge.inputs import ALIGN, SCALES, TORCH_DTYPES, Item, draw_mixture, lay_out
from runner.judge.reference import ProblemFault
from runner.schema import Cell

if TYPE_CHECKING:
    from collections.abc import Callable

quick = settings(max_examples=100, deadline=None, database=None)
every_dtype = pytest.mark.parametrize("dtype", TORCH_DTYPES)
ROWS, WIDTH = 600, 64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


tensors = st.builds(
    lambda shape, dtype: torch.empty(shape, dtype=dtype, device="meta"),
    st.lists(st.integers(0, 7), max_size=4),
    st.sampled_from((torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)),
)
arguments = st.lists(tensors | st.integers() | st.none() | st.text(max_size=3), max_size=6)


@quick
@given(arguments, st.sampled_from(sorted(TORCH_DTYPES)), st.integers(1, 3))
def test_tensors_are_aligned_and_apart(values: list[Any], dtype: str, slots: int) -> None:
    """Fill every tensor of every slot with a number of its own: none is overwritten, none is misread."""
    layout = lay_out([(f"input{i}", v) for i, v in enumerate(values)], TORCH_DTYPES[dtype])
    assert layout.size % ALIGN == 0 < layout.size
    block = torch.zeros(slots * layout.size, dtype=torch.uint8)
    places = [(slot * layout.size, item) for slot in range(slots) for item in layout.tensors]
    for number, (start, item) in enumerate(places):
        assert (start + item.offset) % ALIGN == 0
        raw(item.view(block, start)).fill_(number + 1)
    for number, (start, item) in enumerate(places):
        assert bool((raw(item.view(block, start)) == number + 1).all())
        assert torch.equal(build.view(block, start + item.offset, item.to_json()), item.view(block, start))


@quick
@given(arguments, st.sampled_from(sorted(TORCH_DTYPES)))
def test_arguments_keep_order_shape_and_kind(values: list[Any], dtype: str) -> None:
    layout = lay_out([(f"input{i}", v) for i, v in enumerate(values)], TORCH_DTYPES[dtype])
    views = layout.views(torch.zeros(layout.size, dtype=torch.uint8))
    assert len(views) == len(values)
    for view, value in zip(views, values, strict=True):
        if not isinstance(value, torch.Tensor):
            assert view is value
            continue
        assert view.shape == value.shape
        assert view.is_contiguous()
        assert view.dtype == (TORCH_DTYPES[dtype] if value.is_floating_point() else value.dtype)


FAMILIES: dict[str, Callable[[torch.Tensor], bool]] = {
    "signs": lambda row: bool((row.abs() == row[0].abs()).all()),
    "sparse": lambda row: 0.5 < float((row == 0).double().mean()) < 0.97,
    "repeated": lambda row: torch.equal(row[: WIDTH // 2], row[WIDTH // 2 :]),
    "cancelling": lambda row: torch.equal(row[: WIDTH // 2], -row[WIDTH // 2 :]),
    "uniform": lambda row: bool((row >= 0).all()) and float(row.std() / row.mean()) > 0.4,
    "offset": lambda row: float(row.mean() / row.std()) > 2.5,
    "outliers": lambda row: float(row.abs().max() / row.abs().median()) > 8,
}


def family(row: torch.Tensor) -> str:
    return next((name for name, holds in FAMILIES.items() if holds(row.double())), "normal")


@every_dtype
def test_all_families_are_drawn_equally_often(dtype: str) -> None:
    """Eight families over 600 rows: 75 each, and a standard deviation of 8."""
    values = draw_mixture(ROWS, WIDTH, TORCH_DTYPES[dtype], seeded(1), (0.0, 0.0))
    found = Counter(family(row) for row in values)
    assert set(found) == {*FAMILIES, "normal"}
    assert all(40 < count < 110 for count in found.values()), found


@every_dtype
def test_half_of_the_samples_keep_their_scale_and_the_others_cover_the_range(dtype: str) -> None:
    low, high = SCALES[dtype]
    values = draw_mixture(ROWS, WIDTH, TORCH_DTYPES[dtype], seeded(2), SCALES[dtype]).double()
    assert bool(values.isfinite().all())
    sizes = values.square().mean(1).sqrt().log10()
    ordinary = float(((sizes > -1) & (sizes < 1.2)).double().mean())
    share = min(1.0, 2.2 / (high - low))
    assert 0.5 < ordinary < 0.5 + 0.5 * share + 0.15
    assert low - 0.8 < float(sizes.min()) < low + 0.7
    assert high - 0.8 < float(sizes.max()) < high + 1.3


@settings(max_examples=200, deadline=None, database=None)
@given(st.integers(0, 2**60), st.integers(1, 40), st.integers(1, 300), st.sampled_from(sorted(TORCH_DTYPES)))
def test_no_draw_overflows(seed: int, rows: int, width: int, dtype: str) -> None:
    values = draw_mixture(rows, width, TORCH_DTYPES[dtype], seeded(seed), SCALES[dtype])
    assert (tuple(values.shape), values.dtype) == ((rows, width), TORCH_DTYPES[dtype])
    assert bool(values.isfinite().all())


@every_dtype
def test_a_seed_repeats_its_draws_and_no_draw_repeats_another(dtype: str) -> None:
    first, second = seeded(3), seeded(3)
    draws = [
        draw_mixture(8, WIDTH, TORCH_DTYPES[dtype], g, SCALES[dtype]) for g in (first, first, second, second)
    ]
    assert torch.equal(draws[0], draws[2])
    assert torch.equal(draws[1], draws[3])
    rows = torch.cat(draws[:2])
    assert len(torch.unique(rows, dim=0)) == len(rows)


OURS = load.find_problem("convtranspose2d")
FOREIGN = """
import torch
class Model(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(size))
    def forward(self, x, kept, power):
        return (x * self.scale) ** power * kept
def get_inputs():
    return [torch.rand(4, 5), torch.randint(0, 2, (5,)), 2]
def get_init_inputs():
    return [5]
"""


def case(problem: load.Problem, dtype: str = "fp32", entropy: bytes = bytes(16)) -> Case:
    shape = {} if problem.foreign else OURS.sweeps(128)["smoke"]["asymmetric"]
    return Case(problem, Cell("test", "test", shape, dtype, "tf32"), torch.device("cpu"), entropy)


@every_dtype
def test_slots_hold_different_values_each_time(dtype: str) -> None:
    found = case(OURS, dtype)
    size = found.inputs.size
    block = torch.zeros(3 * size, dtype=torch.uint8)
    seen = []
    for _ in range(2):
        found.draw(3, block)
        seen += [found.inputs.views(block, slot * size)[0].clone() for slot in range(3)]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert all(x.isfinite().all() for x in seen)
    before = block.clone()
    found.draw(1, block)
    assert torch.equal(block[size:], before[size:])


def test_the_entropy_decides_parameters_and_inputs() -> None:
    def drawn(entropy: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        found = case(OURS, entropy=entropy)
        block = torch.zeros(found.inputs.size, dtype=torch.uint8)
        found.draw(1, block)
        return block, torch.cat([v.flatten() for v in found.state.values()])

    first, again, other = (drawn(bytes([n]) * 16) for n in (1, 1, 2))
    for kind in range(2):
        assert torch.equal(first[kind], again[kind])
        assert not torch.equal(first[kind], other[kind])


def test_a_foreign_problem_draws_by_its_own_generator() -> None:
    found = case(load.Problem("foreign", Path("foreign.py"), FOREIGN))
    block = torch.zeros(found.inputs.size, dtype=torch.uint8)
    seen = []
    for _ in range(6):
        found.draw(1, block)
        x, kept, power = found.inputs.views(block)
        assert power == 2
        assert bool(((x >= 0) & (x < 1)).all())
        assert set(kept.tolist()) <= {0, 1}
        seen.append(x.clone())
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert found.reached is None
    assert [tuple(y.shape) for y in found.expected] == [(4, 5)]


@pytest.mark.parametrize("value", [3, 0.5, True, None, "same", (1, 2), [3, (1, 2)], [[], ()]])
def test_constructor_arguments_survive_the_job(value: Any) -> None:
    decoded = build.decode(encoded("get_inputs", value))
    assert decoded == value
    assert type(decoded) is type(value)


def test_other_constructor_arguments_are_named() -> None:
    with pytest.raises(ProblemFault, match="get_init_inputs holds a Tensor"):
        encoded("get_init_inputs", [torch.zeros(1)])


def test_an_item_knows_its_bytes() -> None:
    assert Item("x", (3, 5), torch.bfloat16, 0).size == 30
    assert Item("x", (), torch.int64, 0).size == 8
