"""Both solutions of convtranspose3d against float64 in Triton's interpreter, and their launches.

Triton reads TRITON_INTERPRET when it is imported, and the session that runs this file may have imported
it already. So one child, this file run as a script, computes all cases, and the tests read its answer.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

FOLDER = Path(__file__).parents[1] / "solutions" / "convtranspose3d"
SOLUTIONS = "gather_gemm", "phase_gemm"
#: The interpreter computes every dot in fp32, so only phase_gemm, which rounds by itself, differs in tf32.
BUDGETS = {"tf32": 4e-4, "fp32": 1e-6, "fp16": 5e-4}


class Case(NamedTuple):
    """A layer and the input it is given."""

    in_channels: int
    out_channels: int
    kernel_size: Any
    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    groups: int = 1
    bias: bool = False
    dilation: Any = 1
    batch: int = 1
    size: tuple[int, int, int] = (2, 2, 3)

    @property
    def layer(self) -> tuple[Any, ...]:
        """The arguments of `ModelNew`, which are those of torch's layer."""
        return self[:9]


CASES = {
    "problem 58, smaller: four neighbours a row": Case(9, 5, (2, 1, 7), size=(2, 2, 5)),
    "problem 61, smaller": Case(8, 17, (1, 3, 3), size=(2, 1, 4)),
    "problem 72, smaller": Case(8, 8, (3, 2, 7), 2, (1, 0, 3), 1, 4, size=(1, 1, 3)),
    "problem 77, smaller": Case(4, 6, (1, 3, 3), 2, 1, dilation=2),
    "a decoder's layer": Case(3, 5, 4, 2, 1, bias=True, batch=2, size=(1, 1, 2)),
    "more phases than two parts of w have room for": Case(1, 2, (1, 1, 300), (1, 1, 300), size=(1, 1, 2)),
    "channels past one step": Case(40, 3, (1, 1, 2), size=(1, 2, 2)),
    "shifts two apart": Case(3, 4, (1, 2, 3), dilation=2, size=(1, 3, 4)),
    "two taps for five phases": Case(2, 3, (1, 1, 2), (1, 1, 5), bias=True),
    "stride and dilation share a factor": Case(3, 4, (1, 2, 3), (2, 4, 6), bias=True, dilation=(3, 2, 4)),
    "taps visit the phases out of order": Case(
        2, 3, (2, 3, 1), (3, 5, 1), dilation=(2, 3, 1), size=(1, 1, 2)
    ),
    "one pixel": Case(1, 1, 1, size=(1, 1, 1)),
    "output past the last tap": Case(2, 2, 1, 3, 0, 2, bias=True, size=(1, 2, 2)),
    "padding beyond the kernel": Case(2, 2, 2, 1, (1, 2, 3), size=(3, 5, 8)),
    "padding on both sides": Case(2, 2, 3, 1, 1, batch=2, size=(2, 3, 4)),
    "depthwise": Case(5, 5, (1, 3, 3), (1, 2, 2), (0, 1, 1), groups=5, bias=True),
}


#: Those computed in all arithmetics; the others hold indices and masks, which are the same in each.
ROUNDED = list(CASES)[:4]


def outputs(case: Case) -> list[int]:
    """Return the output's size along each axis."""
    axes = [n if isinstance(n, tuple) else (n,) * 3 for n in (*case.layer[2:6], case.dilation)]
    rows = zip(case.size, *axes, strict=True)
    return [(n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, k, s, p, extra, d in rows]


def per_axis(least: int, most: int) -> st.SearchStrategy[tuple[int, int, int]]:
    """Draw one size for each axis."""
    return st.tuples(*[st.integers(least, most)] * 3)


@st.composite
def layers(draw: st.DrawFn) -> Case:
    """Draw a layer from everything that the constructor takes."""
    stride, dilation, groups = draw(per_axis(1, 4)), draw(per_axis(1, 4)), draw(st.integers(1, 3))
    case = Case(
        groups * draw(st.integers(1, 9)),
        groups * draw(st.integers(1, 9)),
        draw(per_axis(1, 4)),
        stride,
        draw(per_axis(0, 3)),
        tuple(draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation, strict=True)),
        groups,
        draw(st.booleans()),
        dilation,
        draw(st.integers(1, 2)),
        draw(per_axis(1, 4)),
    )
    return case if min(outputs(case)) > 0 else case._replace(padding=0)


@functools.cache
def load(name: str) -> ModuleType:
    """Return a solution's module; its folder is not a package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(case: Case) -> nn.ConvTranspose3d:
    """Return torch's layer."""
    return nn.ConvTranspose3d(*case.layer)


@contextmanager
def poisoned() -> Iterator[None]:
    """Make `torch.empty` return NaN, so that an element left unwritten shows."""
    empty = torch.empty

    def nan(*size: Any, **options: Any) -> torch.Tensor:
        return empty(*size, **options).fill_(float("nan"))

    with mock.patch.object(torch, "empty", nan):
        yield


def surrounded(x: torch.Tensor) -> torch.Tensor:
    """Return a copy of x amid NaN, so that a read beside it shows even where its weight is zero."""
    margin = torch.full((4096,), float("nan"), dtype=x.dtype)
    return torch.cat([margin, x.flatten(), margin])[4096:-4096].view(x.shape)


def measure(module: ModuleType, case: Case, arithmetic: str) -> dict[str, Any]:
    """Run one solution on one case: its error, and the properties of its output."""
    torch.backends.cudnn.allow_tf32 = arithmetic == "tf32"
    dtype = torch.float16 if arithmetic == "fp16" else torch.float32
    torch.manual_seed(0)
    layer = reference(case).to(dtype)
    x = surrounded(torch.randn(case.batch, case.in_channels, *case.size, dtype=dtype))
    model = module.ModelNew(*case.layer).to(dtype)
    model.load_state_dict({f"conv_transpose3d.{name}": value for name, value in layer.state_dict().items()})
    before = x.clone()
    with torch.no_grad(), poisoned():
        y = model(x)
        truth = layer.double()(x.double())
    return {
        "error": ((y.double() - truth).norm() / truth.norm().clamp(min=1e-30)).item(),
        "unwritten": int(y.isnan().sum()),
        "form": y.shape == truth.shape and y.dtype == dtype and y.is_contiguous(),
        "untouched": torch.equal(x, before),
    }


def reloaded(module: ModuleType) -> list[bool]:
    """Say, twice for each of three sets of weights, whether the answer is that of the newest."""
    torch.backends.cudnn.allow_tf32 = False
    case = CASES["a decoder's layer"]
    layer, x = reference(case), torch.randn(case.batch, case.in_channels, *case.size)
    model = module.ModelNew(*case.layer)
    answers = []
    with torch.no_grad():
        for seed, prepared in ((1, True), (2, False), (3, True)):
            torch.manual_seed(seed)
            for name, value in layer.state_dict().items():
                value.normal_()
                target = model.get_parameter(f"conv_transpose3d.{name}")
                # `data` hides the write from autograd's version counter, so that only `prepare` can tell
                (target.data if prepared else target).copy_(value)
            if prepared and hasattr(model, "prepare"):
                model.prepare()
            first, second = model(x), model(x)
            assert first.data_ptr() != second.data_ptr()
            answers += [torch.allclose(y, layer(x), atol=1e-5) for y in (first, second)]
    return answers


@settings(max_examples=6, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(case=layers().filter(lambda case: math.prod(outputs(case)) < 100), name=st.sampled_from(SOLUTIONS))
def check_random_layer(case: Case, name: str) -> None:
    """Hold one solution on one random layer against torch; only the child calls this."""
    answer = measure(load(name), case, "fp32")
    assert answer["form"]
    assert answer["error"] <= BUDGETS["fp32"]


def apart(module: ModuleType) -> Any:
    """Return a patch of phase_gemm that keeps the sums of three products apart, however short they are."""
    tiles = module.tiles
    return mock.patch.object(module, "tiles", lambda *asked: tiles(*asked) | {"APART": asked[-1]})


def child() -> None:
    """Print the answers to all cases as JSON; end in an error at a random layer that is wrong."""
    torch.set_num_threads(1)
    modules = {name: load(name) for name in SOLUTIONS}
    rows = [
        {"solution": name, "label": label, "arithmetic": arithmetic}
        | measure(modules[name], case, arithmetic)
        for (label, case), name, arithmetic in itertools.product(CASES.items(), SOLUTIONS, BUDGETS)
        if arithmetic == "fp32" or label in ROUNDED
    ]
    with apart(modules["phase_gemm"]):
        rows += [
            {"solution": "phase_gemm", "label": f"{label}, apart", "arithmetic": "fp32"}
            | measure(modules["phase_gemm"], case, "fp32")
            for label, case in CASES.items()
        ]
    check_random_layer()
    print(json.dumps({"rows": rows, "reloaded": {n: reloaded(m) for n, m in modules.items()}}))


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
    assert len(rows) >= len(CASES if arithmetic == "fp32" else ROUNDED)
    assert [r for r in rows if not r["error"] <= BUDGETS[arithmetic]] == []


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize("key", ["form", "untouched"])
def test_output_is_whole(answers: dict[str, Any], solution: str, key: str) -> None:
    assert [r for r in answers["rows"] if r["solution"] == solution and not r[key]] == []
    assert [r for r in answers["rows"] if r["solution"] == solution and r["unwritten"]] == []


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_new_weights_are_used(answers: dict[str, Any], solution: str) -> None:
    assert answers["reloaded"][solution] == [True] * 6


def test_gather_gemm_keeps_its_grid() -> None:
    gather = load("gather_gemm")
    sides = [gather.output_extent(n, 3, 2, 1, 2, 0) for n in (16, 32, 32)]
    assert sides == [33, 65, 65]
    assert gather.launch_grid(16 * 33 * 65 * 65, 64, 1) == (34857, 1)
    assert gather.launch_grid(65, 65, 3) == (2, 2, 3)


def test_a_stride_too_large_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"stride=.*1025.* gather_gemm"):
        load("phase_gemm").ModelNew(1, 1, 1, (1, 1, 1025))


SIZES = st.integers(1, 9)


@given(
    extent=SIZES,
    kernel=SIZES,
    stride=SIZES,
    padding=st.integers(0, 9),
    dilation=SIZES,
    extra=st.integers(0, 8),
)
def test_zeros_behind_a_row_serve_both_neighbours(
    extent: int, kernel: int, stride: int, padding: int, dilation: int, extra: int
) -> None:
    phase = load("phase_gemm")
    axis = kernel, stride, padding, dilation
    out = phase.output_extent(extent, *axis, extra % max(stride, dilation))
    if out < 1:
        return
    padded = phase.padded_extent(out, stride, padding)
    for y, tap in itertools.product(range(out), range(kernel)):
        if (y + padding - tap * dilation) % stride == 0:
            place = y // stride + phase.shift(tap, *axis[1:])
            assert place == (y + padding - tap * dilation) // stride
            # in its own row, or among the zeros of the row before
            assert place < padded
            assert place >= 0 or place + padded >= extent


@given(case=layers(), split=st.booleans())
def test_no_address_leaves_the_channels_last_copy(case: Case, split: bool) -> None:
    phase = load("phase_gemm")
    with torch.device("meta"):
        layer = reference(case)
    layout = phase.geometry(layer, 4, split)
    sizes = phase.frame(layer, layout, torch.Size((case.batch, case.in_channels, *case.size)))
    axes = list(zip(layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True))
    reach = [[phase.shift(tap, *axis) for tap in range(kernel)] for kernel, *axis in axes]
    D, H, W = (-(-sizes[f"O{name}"] // layout[f"S{name}"]) for name in "DHW")
    row, plane = sizes["LW"], sizes["LW"] * sizes["LH"]
    first = min(reach[0]) * plane + min(reach[1]) * row + layout["LOW"]
    last = (case.batch - 1) * sizes["LD"] * plane
    last += (D - 1 + max(reach[0])) * plane + (H - 1 + max(reach[1])) * row
    last += (W - 1) // layout["FOLD"] * layout["FOLD"] + layout["LOW"] + (layout["RUNS"] - 1) * layout["STEP"]
    last += -(-layout["RUN"] // layout["CHANNELS"]) - 1
    assert sizes["LEAD"] + first >= 0
    assert sizes["LEAD"] + last < sizes["PIXELS"]
    assert (
        sizes["LEAD"] % sizes["BP"] == sizes["PIXELS"] % sizes["BP"] == layout["CHANNELS"] % sizes["BC"] == 0
    )


@given(case=layers(), split=st.booleans())
def test_packing_keeps_every_weight_in_every_neighbour(case: Case, split: bool) -> None:
    phase = load("phase_gemm")
    with torch.device("meta"):
        layer = reference(case)
    layout = phase.geometry(layer, 4, split)
    weight = torch.arange(1.0, 1 + layer.weight.numel()).reshape(layer.weight.shape)
    packed = phase.pack(weight, layout, tf32=False, split=False)
    if split:
        whole = phase.pack(weight / 3, layout, tf32=False, split=False)
        high, low = phase.pack(weight / 3, layout, tf32=False, split=True)
        assert torch.equal(high + low, whole)
        assert not (high.view(torch.int32) & 0x1FFF).any()
    kept = packed.movedim(4, 0).flatten(1)
    assert kept.shape[0] == layout["FOLD"]
    assert all(torch.equal(part[part > 0].sort().values, weight.flatten()) for part in kept)


def test_packing_rounds_to_nearest_tf32() -> None:
    phase = load("phase_gemm")
    layout = phase.geometry(nn.ConvTranspose3d(2, 3, 1), 4, split=False)
    weight = torch.randn(2, 3, 1, 1, 1)
    packed = phase.pack(weight, layout, tf32=True, split=False)[0, 0, 0, 0, 0, 0, :3, :2].T.contiguous()
    assert not (packed.view(torch.int32) & 0x1FFF).any()
    assert ((packed / weight[..., 0, 0, 0]) - 1).abs().max() <= 2**-11


@settings(max_examples=60)
@given(
    channels=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    kernel=SIZES,
    stride=st.sampled_from((1, 2, 3, 5, 64)),
    rows=st.integers(1, 10**7),
    itemsize=st.sampled_from((2, 4)),
    split=st.booleans(),
)
def test_tiles_cover_the_output_and_fit(
    channels: tuple[int, int], kernel: int, stride: int, rows: int, itemsize: int, split: bool
) -> None:
    phase = load("phase_gemm")
    with torch.device("meta"):
        layout = phase.geometry(nn.ConvTranspose3d(*channels, kernel, stride), itemsize, split)
    tile = phase.tiles(layout, rows, split)
    row_tiles, channel_tiles, groups = phase.launch_grid(layout, tile, rows)
    columns = layout["FOLD"] * layout["PHASES"]
    assert row_tiles * tile["BM"] >= stride * stride * rows
    assert channels[1] <= channel_tiles * tile["BOC"] <= layout["OC_ROWS"]
    assert groups == 1
    assert {n.bit_count() for n in (tile["BM"], tile["BOC"], layout["BK"], columns)} == {1}
    assert tile["BM"] >= 16
    assert columns * tile["BOC"] >= 16
    assert layout["RUN"] % layout["BK"] == 0
    # 64 values a thread, unless the fewest columns and rows that a dot takes have more slots
    values = tile["BM"] * (columns << layout["JOINS"]) * tile["BOC"]
    assert values <= 2048 * tile["num_warps"] or (tile["BM"], columns * tile["BOC"]) == (16, 16)


def test_a_fold_pays_where_channels_are_few_and_taps_many() -> None:
    fold = load("phase_gemm").choose_fold
    # problems 58, 61, 72 and 73 in TF32; a product in three parts makes zeros dearer
    assert [fold(7, 16, 16, False), fold(3, 64, 64, False), fold(4, 16, 16, False)] == [8, 2, 4]
    assert [fold(2, 64, 64, False), fold(3, 64, 64, True), fold(7, 128, 128, False)] == [1, 1, 1]


if __name__ == "__main__":
    child()
