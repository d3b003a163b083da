"""The scatter and the GEMM with col2im against float64 in the interpreter, their chunks and launches.

As in `test_solutions_convtranspose2d`, from which the cases are, a child computes: this file run as a script.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import Phase, example, given, seed, settings
from hypothesis import strategies as st
from test_solutions_convtranspose2d import BUDGETS, CASES, Case, load, measure, reloaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

SOLUTIONS = "gemm_col2im", "scatter_atomics"
#: The tiles are the same in every arithmetic, so a few cases will do in the others.
IN_ALL = "a decoder's layer", "two taps for seven phases", "channels past one step"
#: The columns of a decoder's layer are 5760 bytes an image: of one, of half of it, and of less than a row.
LIMITS_BYTES = 6000, 4000, 1
#: A bit pattern that rounding by addition would turn into zero; it is the NaN that GPUs make.
NAN_OF_ONES = 0x7FFFFFFF


def output_size(case: Case) -> list[int]:
    """Return height and width of the output; below 1 means that there is none."""
    axes = zip((case.height, case.width), *case.layer[2:6], case.output_padding, strict=True)
    return [(n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, k, s, p, d, extra in axes]


@st.composite
def cases(draw: Callable[[Any], Any], channels: int, sizes: tuple[int, int, int]) -> Case:
    """Draw a layer and an input with at most these channels of a group and these batches, heights, widths."""

    def pair(least: int, most: int) -> tuple[int, int]:
        return draw(st.tuples(st.integers(least, most), st.integers(least, most)))

    stride, dilation, groups = pair(1, 5), pair(1, 4), draw(st.integers(1, 3))
    return Case(
        groups * draw(st.integers(1, channels)),
        groups * draw(st.integers(1, channels)),
        pair(1, 4),
        stride,
        pair(0, 3),
        dilation,
        draw(st.booleans()),
        tuple(draw(st.integers(0, max(both) - 1)) for both in zip(stride, dilation, strict=True)),
        groups,
        *(draw(st.integers(1, size)) for size in sizes),
    )


SMALL = cases(5, (2, 5, 5)).filter(lambda case: min(output_size(case)) > 0)
ANY = cases(300, (70, 1500, 1500)).filter(lambda case: min(output_size(case)) > 0)


def limited(limit_bytes: int) -> Any:
    """Return a patch of gemm_col2im that bounds its workspace."""
    return mock.patch.object(load("gemm_col2im").ModelNew, "WORKSPACE_BYTES", limit_bytes)


# the layers are small as they are drawn, and the interpreter takes minutes to shrink one
@seed(20)
@settings(max_examples=15, deadline=None, database=None, phases=[Phase.generate])
@given(case=SMALL, limit_bytes=st.integers(1, 8000))
def agree(case: Case, limit_bytes: int) -> None:
    """Hold both solutions against layers that are drawn; those that fail are printed."""
    for name in SOLUTIONS:
        with limited(limit_bytes):
            answer = measure(load(name), case, "fp32")
        assert answer.pop("error") <= BUDGETS["fp32"], (name, case)
        assert not answer.pop("unwritten"), (name, case)
        assert all(answer.values()), (name, case, answer)


def spread(module: ModuleType) -> bool:
    """Say whether a NaN of the input makes NaN of the outputs that it reaches, and of no others."""
    torch.backends.cudnn.allow_tf32 = True
    case = CASES["a decoder's layer"]
    x = torch.ones(case.batch, case.in_channels, case.height, case.width)
    reach = torch.nn.functional.conv_transpose2d(
        torch.zeros_like(x[:1, :1]).index_fill_(3, torch.tensor(2), 1.0), torch.ones(1, 1, 4, 4), None, 2, 1
    )
    x[:, 1, :, 2] = torch.tensor(NAN_OF_ONES, dtype=torch.int32).view(torch.float32)
    with torch.no_grad():
        y = module.ModelNew(*case.layer)(x)
    return torch.equal(y.isnan(), (reach > 0).expand_as(y))


def interpret() -> None:
    """Print the answers to all cases as JSON, after those that are drawn."""
    torch.set_num_threads(1)
    agree()
    rows = [
        {"solution": name, "label": label, "arithmetic": arithmetic}
        | measure(load(name), CASES[label], arithmetic)
        for label, name, arithmetic in itertools.product(CASES, SOLUTIONS, BUDGETS)
        if arithmetic == "fp32" or label in IN_ALL
    ]
    for limit_bytes in LIMITS_BYTES:
        place = {"solution": "gemm_col2im", "label": f"{limit_bytes} bytes", "arithmetic": "fp32"}
        with limited(limit_bytes):
            rows.append(place | measure(load("gemm_col2im"), CASES["a decoder's layer"], "fp32"))
    others = {ask.__name__: {name: ask(load(name)) for name in SOLUTIONS} for ask in (reloaded, spread)}
    print(json.dumps({"rows": rows, **others}))


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize("arithmetic", BUDGETS)
def test_error_is_within_the_arithmetic(answers: dict[str, Any], solution: str, arithmetic: str) -> None:
    rows = [r for r in answers["rows"] if (r["solution"], r["arithmetic"]) == (solution, arithmetic)]
    assert len(rows) >= len(CASES if arithmetic == "fp32" else IN_ALL)
    assert [r for r in rows if not r["error"] <= BUDGETS[arithmetic]] == []


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize("key", ["structural", "form", "untouched"])
def test_output_is_whole(answers: dict[str, Any], solution: str, key: str) -> None:
    assert [r for r in answers["rows"] if r["solution"] == solution and not r[key]] == []
    assert [r for r in answers["rows"] if r["solution"] == solution and r["unwritten"]] == []


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_new_weights_are_used(answers: dict[str, Any], solution: str) -> None:
    assert answers["reloaded"][solution] == [True] * 6


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_nan_stays_and_stays_where_it_belongs(answers: dict[str, Any], solution: str) -> None:
    assert answers["spread"][solution]


class Launch(NamedTuple):
    """What a kernel would have been given."""

    kernel: str
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


def launches(name: str, case: Case, dtype: torch.dtype) -> list[Launch]:
    """Return what one forward launches, on tensors without memory."""
    module = load(name)
    found: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: str) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **constants: found.append(Launch(self.kernel, grid, args, constants))

    kernels = [kernel for kernel in vars(module) if kernel.endswith("_kernel")]
    recorders = {kernel: Recorder(kernel) for kernel in kernels}
    with torch.device("meta"), torch.no_grad(), mock.patch.multiple(module, **recorders):
        x = torch.empty(case.batch, case.in_channels, case.height, case.width, dtype=dtype)
        y = module.ModelNew(*case.layer).to(dtype)(x)
    assert all(size > 0 for one in found for size in one.grid)
    assert list(y.shape) == [case.batch, case.out_channels, *output_size(case)]
    return found


TYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@given(case=ANY, dtype=TYPES)
def test_scatter_covers_pixels_and_rounds_once(case: Case, dtype: torch.dtype) -> None:
    fill, scatter, *rest = launches("scatter_atomics", case, dtype)
    sums, constants = scatter.arguments[3], scatter.constants
    height, width = output_size(case)
    planes = case.batch * case.out_channels
    assert fill.grid[0] * fill.constants["BM"] >= planes * height * width
    assert fill.arguments[0] is sums
    pixel_tiles = -(-case.batch * case.height * case.width // constants["BM"])
    taps = case.kernel_size[0] * case.kernel_size[1]
    assert scatter.grid[0] == pixel_tiles * taps
    assert scatter.grid[1] * constants["BN"] >= case.out_channels // case.groups > 0
    assert scatter.grid[2] == case.groups
    assert sums.dtype == (torch.float32 if constants["MEET"] else dtype)
    assert [one.kernel for one in rest] == ["round_kernel"] * (sums.dtype != dtype)
    for one in rest:
        assert one.grid[0] * one.constants["BM"] >= sums.numel() == one.arguments[2]


EXTENTS = st.integers(1, 9)


@given(extent=EXTENTS, kernel=EXTENTS, stride=EXTENTS, dilation=EXTENTS)
def test_taps_meet_where_two_products_have_one_pixel(
    extent: int, kernel: int, stride: int, dilation: int
) -> None:
    places = [i * stride + tap * dilation for i in range(extent) for tap in range(kernel)]
    meet = load("scatter_atomics").taps_meet(extent, kernel, stride, dilation)
    assert meet == (len(set(places)) < len(places))


def test_problem_81_needs_no_atomics() -> None:
    problem = Case(32, 64, (3, 3), (5, 5), (1, 1), (2, 2), False, (0, 0), 1, 16, 64, 128)
    fill, scatter = launches("scatter_atomics", problem, torch.float16)
    assert fill.grid == (16 * 64 * 199,)
    assert scatter.grid == (2048 * 9, 1, 1)
    assert not scatter.constants["MEET"]


AXES = st.tuples(st.integers(1, 40), EXTENTS, EXTENTS, st.integers(0, 9), EXTENTS)


@given(
    axis=AXES, extra=st.integers(0, 8), batch=st.integers(1, 9), row_bytes=EXTENTS, limit=st.integers(1, 999)
)
def test_chunks_cover_the_output_within_the_limit(
    axis: tuple[int, int, int, int, int], extra: int, batch: int, row_bytes: int, limit: int
) -> None:
    col2im = load("gemm_col2im")
    height, kernel, stride, padding, dilation = axis
    out_height = max(1, col2im.output_extent(*axis, extra))
    chunks = col2im.chunks(batch, out_height, axis, row_bytes, limit)
    covered = [pair for images, out_rows in chunks for pair in itertools.product(images, out_rows)]
    assert sorted(covered) == list(itertools.product(range(batch), range(out_height)))
    for images, out_rows in chunks:
        rows = col2im.input_rows(out_rows, *axis)
        reached = {(row + padding - tap * dilation) / stride for row in out_rows for tap in range(kernel)}
        assert {row for row in range(height) if row in reached} <= set(rows) <= set(range(height))
        one_row = len(images) == len(out_rows) == 1
        assert one_row or len(images) * len(rows) * row_bytes <= limit


# of five output rows a tap reaches one
FAR_APART = Case(1, 1, (1, 1), (5, 5), (0, 0), (1, 1), output_padding=(4, 4), height=1, width=1)


@settings(max_examples=40)
@example(case=FAR_APART, dtype=torch.float32, least_bytes=1)
@given(case=ANY, dtype=TYPES, least_bytes=st.integers(1, 2**28))
def test_workspace_is_bounded_and_used_by_all(case: Case, dtype: torch.dtype, least_bytes: int) -> None:
    height, width = output_size(case)
    row_values = case.width * case.kernel_size[0] * case.kernel_size[1] * case.out_channels
    # not more than some twenty chunks, which take their time even without memory
    limit_bytes = max(least_bytes, 4 * row_values * case.height * case.batch // 16)
    with limited(limit_bytes):
        found = launches("gemm_col2im", case, dtype)
    gathers = [one for one in found if one.kernel == "col2im_kernel"]
    gemms = [one for one in found if one.kernel == "gemm_kernel"]
    columns = gathers[0].arguments[0]
    assert columns.dtype == torch.float32
    assert {id(columns)} == {id(one.arguments[0]) for one in gathers} | {id(g.arguments[2]) for g in gemms}
    assert sum(len(one.arguments[2]) * one.arguments[6] for one in gathers) == case.batch * height
    values = [len(y) * rows * row_values for _, _, y, _, rows, *_ in (one.arguments for one in gathers)]
    assert columns.numel() == max(values)
    for _, grid, (_, _, y, _, rows, _, out_rows), constants in gathers:
        assert grid[0] == len(y) * -(-out_rows * width // constants["BM"])
        assert grid[1] * constants["BN"] >= case.out_channels
        assert len(y) * rows * row_values * 4 <= limit_bytes or len(y) == out_rows == 1
    for _, grid, (x, weight, _, images, _, rows), constants in gemms:
        assert images == len(x)
        tiles = -(-images * rows * case.width // constants["BM"]), -(-weight.shape[1] // constants["BN"])
        assert grid == (tiles[0] * tiles[1], case.groups)


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_packing_puts_the_channels_of_a_tap_in_rows(solution: str) -> None:
    groups, in_channels, out_channels, kernel = 2, 3, 4, (2, 3)
    weight = torch.randn(groups * in_channels, out_channels, *kernel)
    weight[0, 0, 0, 0] = torch.tensor(NAN_OF_ONES, dtype=torch.int32).view(torch.float32)
    before = weight.clone()
    pack = load(solution).pack
    packed = pack(weight, groups, False).reshape(groups, *kernel, out_channels, in_channels)
    assert packed.is_contiguous()
    for group, channel in itertools.product(range(groups), range(in_channels)):
        taps = packed[group, ..., channel].permute(2, 0, 1)
        assert torch.equal(taps.nan_to_num(9.0), weight[group * in_channels + channel].nan_to_num(9.0))
    rounded = pack(weight, groups, True).view_as(packed)
    assert torch.equal(rounded.isnan(), packed.isnan())
    finite = packed.isfinite()
    assert not (rounded[finite].view(torch.int32) & 0x1FFF).any()
    assert (rounded[finite] / packed[finite] - 1).abs().max() <= 2**-11
    assert torch.equal(weight.view(torch.int32), before.view(torch.int32))


if __name__ == "__main__":
    interpret()
