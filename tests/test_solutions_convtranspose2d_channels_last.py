"""channels_last_gemm of convtranspose2d against float64 in Triton's interpreter, its packing and its tiles.

As in `test_solutions_convtranspose2d` a child computes: this file run as a script.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from test_solutions_convtranspose2d import BUDGETS, Case, load, poisoned
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES = {
    "problem 81, smaller": Case(4, 5, 3, 5, 1, 2, height=2, width=9),
    "problem 75, smaller": Case(8, 8, (3, 5), (2, 3), (1, 2), (2, 1), groups=4, height=4, width=5),
    "a decoder's layer": Case(70, 17, 4, 2, 1, bias=True, batch=2, height=3, width=5),
    "latents": Case(20, 33, 4, 1, 0, bias=True, batch=5, height=1, width=1),
    "one row": Case(5, 4, (3, 2), (2, 3), (1, 0), height=1, width=7),
    "an image": Case(18, 3, 4, 2, 1, bias=True, height=4, width=4),
    "stride 1": Case(3, 17, 3, bias=True, height=5, width=6),
    "stride and dilation share a factor": Case(3, 4, (2, 3), (4, 6), 0, (2, 4), bias=True),
    "one value": Case(1, 1, 1, height=1, width=1),
    "output past the last tap": Case(2, 2, 2, 5, 0, 1, bias=True, output_padding=4, height=2, width=2),
    "no tap inside the output": Case(2, 3, 1, 4, 1, 1, bias=True, output_padding=3, height=1, width=1),
    "padding beyond the kernel": Case(2, 2, 2, 1, (2, 3), height=6, width=9),
    "depthwise": Case(5, 5, 3, 2, 1, bias=True, groups=5),
}
ALL_ARITHMETICS = "a decoder's layer", "an image", "one row", "output past the last tap"


@contextmanager
def forced(rows: int, columns: int, parts: int, *, fold: bool) -> Iterator[None]:
    """Make the solution take a tile, a number of parts and the widest fold or none."""
    module, sign = load("channels_last_gemm"), -1 if fold else 1
    tiles = module.tiles
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(module, "cost_us", lambda product, *_: sign * product.columns))
        taken = mock.patch.object(module, "tiles", lambda product, *_: tiles(product, rows, columns, parts))
        stack.enter_context(taken)
        yield


def measure(case: Case, arithmetic: str) -> dict[str, Any]:
    """Run the solution on one case: its error, and the properties of its output."""
    torch.backends.cudnn.allow_tf32 = arithmetic == "tf32"
    dtype = torch.float16 if arithmetic == "fp16" else torch.float32
    torch.manual_seed(0)
    channels_in, channels_out, kernel, stride, padding, dilation, bias, extra, groups = case.layer
    sizes = kernel, stride, padding, extra, groups, bias, dilation
    layer = nn.ConvTranspose2d(channels_in, channels_out, *sizes).to(dtype)
    size = case.batch, case.in_channels, case.height, case.width
    # NaN on either side, so that a value from outside x shows even where its weight is zero
    x = torch.full((64 + math.prod(size) + 64,), float("nan"), dtype=dtype)[64:-64].view(size).normal_()
    model = load("channels_last_gemm").ModelNew(*case.layer).to(dtype)
    model.load_state_dict({f"conv_transpose2d.{name}": value for name, value in layer.state_dict().items()})
    before = x.clone()
    with torch.no_grad(), poisoned():
        y = model(x)
        truth = layer.double()(x.double())
    return {
        "error": ((y.double() - truth).norm() / truth.norm().clamp(min=1e-30)).item(),
        "unwritten": int(y.isnan().sum()),
        "form": y.shape == truth.shape and y.dtype == dtype and y.is_contiguous(),
        "untouched": torch.equal(x, before),
        "parts": next(iter(model.plans.values())).gemm["PARTS"],
    }


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Draw a size for each axis."""
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a layer with a small output, from everything that the constructor takes."""
    stride, dilation, groups = draw(pairs(1, 3)), draw(pairs(1, 3)), draw(st.integers(1, 2))
    case = Case(
        groups * draw(st.integers(1, 40 // groups)),
        groups * draw(st.integers(1, 9)),
        draw(pairs(1, 4)),
        stride,
        draw(pairs(0, 4)),
        dilation,
        draw(st.booleans()),
        tuple(draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation, strict=True)),
        groups,
        draw(st.integers(1, 3)),
        *draw(pairs(1, 4)),
    )
    axes = zip((case.height, case.width), *case.layer[2:6], case.output_padding, strict=True)
    sides = [(n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, k, s, p, d, extra in axes]
    assume(min(sides) > 0 and math.prod(sides) < 150)
    # classes of outputs, each a launch's program or more, are slow in the interpreter
    classes = [
        side if n == 1 else s for n, side, s in zip((case.height, case.width), sides, stride, strict=True)
    ]
    assume(math.prod(classes) * groups <= 12)
    return case


@settings(max_examples=16, phases=[Phase.generate], derandomize=True, deadline=None, database=None)
@given(
    case=cases(),
    tile=st.sampled_from([(16, 16), (32, 16), (16, 64)]),
    parts=st.sampled_from([1, 3]),
    fold=st.booleans(),
    arithmetic=st.sampled_from(["tf32", "fp32"]),
)
def any_layer_in_any_form(case: Case, tile: tuple[int, int], parts: int, fold: bool, arithmetic: str) -> None:
    with forced(*tile, parts, fold=fold):
        answer = measure(case, arithmetic)
    assert answer["parts"] == parts
    # the errors of few products do not average
    assert answer["error"] <= 2.5 * BUDGETS[arithmetic]
    assert not answer["unwritten"]
    assert answer["form"]
    assert answer["untouched"]


def reloaded() -> list[bool]:
    """Say, twice for each of three sets of weights, whether the answer is that of the newest."""
    torch.backends.cudnn.allow_tf32 = False
    layer, x = nn.ConvTranspose2d(3, 4, 2, 2), torch.randn(1, 3, 2, 3)
    model = load("channels_last_gemm").ModelNew(3, 4, 2, 2, bias=True)
    answers = []
    with torch.no_grad():
        for seed, prepared in ((1, True), (2, False), (3, True)):
            torch.manual_seed(seed)
            for name, value in layer.state_dict().items():
                value.normal_()
                target = model.get_parameter(f"conv_transpose2d.{name}")
                # `data` hides the write from autograd's version counter, so that only `prepare` can tell
                (target.data if prepared else target).copy_(value)
            if prepared:
                model.prepare()
            first, second = model(x), model(x)
            assert first.data_ptr() != second.data_ptr()
            answers += [torch.allclose(y, layer(x), atol=1e-5) for y in (first, second)]
    return answers


def child() -> None:
    """Print the answers to all cases as JSON; a layer of `any_layer_in_any_form` that fails is raised."""
    torch.set_num_threads(1)
    rows = [
        {"label": label, "arithmetic": arithmetic} | measure(case, arithmetic)
        for label, case in CASES.items()
        for arithmetic in (BUDGETS if label in ALL_ARITHMETICS else ("fp32",))
    ]
    any_layer_in_any_form()
    print(json.dumps({"rows": rows, "reloaded": reloaded()}))


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("arithmetic", BUDGETS)
def test_output_is_whole_and_within_the_arithmetic(answers: dict[str, Any], arithmetic: str) -> None:
    rows = [r for r in answers["rows"] if r["arithmetic"] == arithmetic]
    assert len(rows) == len(CASES if arithmetic == "fp32" else ALL_ARITHMETICS)
    assert [r for r in rows if not r["error"] <= BUDGETS[arithmetic]] == []
    assert [r for r in rows if r["unwritten"] or not (r["form"] and r["untouched"])] == []


def test_new_weights_are_used(answers: dict[str, Any]) -> None:
    assert answers["reloaded"] == [True] * 6


EXTENTS = st.integers(1, 9)


@given(extent=EXTENTS, kernel=EXTENTS, stride=EXTENTS, padding=st.integers(0, 9), dilation=EXTENTS)
def test_walk_counts_the_taps_that_reach_the_input(
    extent: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    out = (extent - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
    assume(out > 0)
    axis = load("channels_last_gemm").walk(extent, kernel, stride, padding, dilation, 0, False)
    assert axis.out == out
    found = set()
    # outputs of the last q are counted whole
    for place in range(axis.pixels * axis.stride):
        for tap in range(kernel):
            source, rest = divmod(place + padding - tap * dilation, stride)
            # one pixel's classes are outputs, and none of them lies behind the last
            if not rest and 0 <= source < extent:
                found.add((place % axis.stride, tap))
    assert axis.taps() == [sum(of == each for of, _ in found) for each in range(axis.stride)]


@given(
    channels=st.tuples(st.integers(1, 40), st.integers(1, 5)),
    groups=st.integers(1, 2),
    kernel=pairs(1, 5),
    stride=pairs(1, 5),
    padding=pairs(0, 5),
    dilation=pairs(1, 3),
    folds=st.tuples(st.booleans(), st.booleans()),
)
def test_packing_keeps_every_weight(
    channels: tuple[int, int],
    groups: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    folds: tuple[bool, bool],
) -> None:
    module = load("channels_last_gemm")
    channels_in, channels_out = (groups * each for each in channels)
    with torch.device("meta"):
        layer = nn.ConvTranspose2d(
            channels_in, channels_out, kernel, stride, padding, groups=groups, dilation=dilation
        )
    axes = module.axes_of(layer, torch.Size((1, channels_in, 20, 21)), folds)
    weight = torch.arange(1.0, 1 + layer.weight.numel()).view(layer.weight.shape)
    packed = module.pack(weight, layer, axes, 16, tf32=False, terms=1)
    assert torch.equal(packed[packed > 0].sort().values, weight.flatten())
    both = module.pack(weight / 3, layer, axes, 16, tf32=True, terms=2)
    assert not (both[:, :, :, 0].contiguous().view(torch.int32) & 0x1FFF).any()
    assert torch.equal(both.sum(3), module.pack(weight / 3, layer, axes, 16, tf32=False, terms=1))
    assert (both[:, :, :, 1].abs() <= both[:, :, :, 0].abs() * 2**-11).all()


@given(
    channels=st.tuples(st.integers(1, 2000), st.integers(1, 600)),
    kernel=EXTENTS,
    stride=EXTENTS,
    size=st.tuples(st.integers(1, 16), st.integers(1, 40), st.integers(1, 40)),
    itemsize=st.sampled_from([2, 4]),
    split=st.booleans(),
    sms=st.sampled_from([128, 132]),
)
@settings(deadline=None)
def test_tiles_cover_the_product_and_fit(
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    size: tuple[int, int, int],
    itemsize: int,
    split: bool,
    sms: int,
) -> None:
    module, split = load("channels_last_gemm"), split and itemsize == 4
    with torch.device("meta"):
        layer = nn.ConvTranspose2d(*channels, kernel, stride)
    shape = torch.Size((size[0], channels[0], *size[1:]))
    (height, width), tile = module.choose(layer, shape, itemsize, split, sms)
    rows, columns = size[0] * height.pixels * width.pixels, height.fold * width.fold * channels[1]
    assert {tile[name].bit_count() for name in ("BM", "BN", "BK")} == {1}
    assert min(tile["BM"], tile["BN"], tile["BK"]) >= 16
    classes = height.stride * width.stride
    tiled, groups, parts = module.launch_grid(tile, rows, columns, classes, layer.groups)
    assert tiled * tile["BM"] * tile["BN"] >= classes * rows * columns
    assert groups == 1
    assert height.pixels * height.stride * height.fold >= height.out
    steps = max(height.taps()) * max(width.taps()) * -(-channels[0] // tile["BK"])
    assert parts * tile["PART_STEPS"] >= steps
    assert parts == 1 or parts * 4 <= steps
    # 64 sums a thread, and what a program may have of shared memory on Ada
    assert tile["BM"] * tile["BN"] <= 64 * 32 * tile["num_warps"]
    right = tile["BM"] if tile["SWAP"] else tile["BN"]
    step_bytes = (tile["BM"] + tile["BN"] + (right if split else 0)) * tile["BK"] * itemsize
    assert step_bytes * tile["num_stages"] <= 99 * 1024


def test_few_tiles_are_split_and_many_are_not() -> None:
    module = load("channels_last_gemm")
    with torch.device("meta"):
        layer = nn.ConvTranspose2d(2048, 256, 4, 2, 1)
    for batch, split in ((1, True), (256, False)):
        _, tile = module.choose(layer, torch.Size((batch, 2048, 8, 6)), 4, False, 128)
        assert (tile["PARTS"] > 1) is split


if __name__ == "__main__":
    child()
