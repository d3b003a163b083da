"""Both solutions of convtranspose2d against float64 in Triton's interpreter, and their launches.

Triton reads TRITON_INTERPRET when it is imported, and the session that runs this file may have imported
it already. So one child, this file run as a script, computes all cases, and the tests read its answer.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import pytest
import torch
import triton
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

FOLDER = Path(__file__).parents[1] / "solutions" / "convtranspose2d"
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
    dilation: Any = 1
    bias: bool = False
    output_padding: Any = 0
    groups: int = 1
    batch: int = 1
    height: int = 3
    width: int = 4

    @property
    def layer(self) -> tuple[Any, ...]:
        """The arguments of `ModelNew`."""
        return self[:9]


CASES = {
    "problem 81, two tiles a row": Case(4, 5, 3, 5, 1, 2, height=2, width=32),
    "problem 81's one step, in two halves for fp32": Case(21, 3, 3, 5, 1, 2, bias=True, height=2, width=3),
    "problem 75, smaller": Case(8, 8, (3, 5), (2, 3), (1, 2), (2, 1), groups=4, height=4, width=9),
    "a decoder's layer": Case(6, 5, 4, 2, 1, bias=True, batch=2, height=3, width=5),
    "more phases than columns": Case(1, 1, (1, 40), (1, 32), height=1, width=2),
    "more phases than two parts of w have room for": Case(1, 2, (1, 300), (1, 300), height=1, width=2),
    "stride 1": Case(3, 17, 3, bias=True, height=5, width=6),
    "channels past one step": Case(40, 3, (1, 2)),
    "two taps for seven phases": Case(2, 3, (1, 2), 7, bias=True),
    "stride and dilation share a factor": Case(3, 4, (2, 3), (4, 6), 0, (2, 4), bias=True),
    "fewer taps than phases, all columns": Case(2, 3, 3, 4, (1, 2)),
    "one pixel": Case(1, 1, 1, height=1, width=1),
    "output past the last tap": Case(2, 2, 2, 5, 0, 1, bias=True, output_padding=4, height=2, width=2),
    "padding beyond the kernel": Case(2, 2, 2, 1, (2, 3), height=6, width=9),
    "depthwise": Case(5, 5, 3, 2, 1, bias=True, groups=5),
}


def random_case(rng: random.Random) -> Case:
    """Draw a layer with a small output, from everything that the constructor takes."""
    while True:
        stride, dilation = ((rng.randint(1, 6), rng.randint(1, 6)), (rng.randint(1, 4), rng.randint(1, 4)))
        groups = rng.choice((1, 1, 2, 3))
        case = Case(
            groups * rng.randint(1, 5),
            groups * rng.randint(1, 9),
            (rng.randint(1, 5), rng.randint(1, 5)),
            stride,
            (rng.randint(0, 4), rng.randint(0, 4)),
            dilation,
            rng.random() < 0.5,
            tuple(rng.randrange(max(pair)) for pair in zip(stride, dilation, strict=True)),
            groups,
            rng.randint(1, 2),
            rng.randint(1, 6),
            rng.randint(1, 6),
        )
        axes = zip((case.height, case.width), *case.layer[2:6], case.output_padding, strict=True)
        sides = [(n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, k, s, p, d, extra in axes]
        if min(sides) > 0 and sides[0] * sides[1] < 300:
            return case


@functools.cache
def load(name: str) -> ModuleType:
    """Return a solution's module; its folder is not a package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(case: Case) -> nn.ConvTranspose2d:
    """Return torch's layer."""
    channels_in, channels_out, kernel, stride, padding, dilation, bias, extra, groups = case.layer
    return nn.ConvTranspose2d(
        channels_in, channels_out, kernel, stride, padding, extra, groups, bias, dilation
    )


@contextmanager
def poisoned() -> Iterator[None]:
    """Make `torch.empty` return NaN, so that an element left unwritten shows."""
    empty = torch.empty

    def nan(*size: Any, **options: Any) -> torch.Tensor:
        return empty(*size, **options).fill_(float("nan"))

    with mock.patch.object(torch, "empty", nan):
        yield


def measure(module: ModuleType, case: Case, arithmetic: str) -> dict[str, Any]:
    """Run one solution on one case: its error, and the properties of its output."""
    torch.backends.cudnn.allow_tf32 = arithmetic == "tf32"
    dtype = torch.float16 if arithmetic == "fp16" else torch.float32
    torch.manual_seed(0)
    layer = reference(case).to(dtype)
    x = torch.randn(case.batch, case.in_channels, case.height, case.width, dtype=dtype)
    model = module.ModelNew(*case.layer).to(dtype)
    model.load_state_dict({f"conv_transpose2d.{name}": value for name, value in layer.state_dict().items()})
    before = x.clone()
    with torch.no_grad(), poisoned():
        y = model(x)
        truth = layer.double()(x.double())
        bias = torch.zeros(case.out_channels) if layer.bias is None else layer.bias
        reached = nn.functional.conv_transpose2d(
            torch.ones_like(x[:1, :1]).double(),
            torch.ones(1, 1, *layer.kernel_size).double(),
            None,
            layer.stride,
            layer.padding,
            layer.output_padding,
            1,
            layer.dilation,
        )
        # [1, 1, OH, OW]: exactly the bias where no tap reaches
        structural = (y.double() == bias.double()[:, None, None]) | (reached > 0)
        norm = truth.norm().clamp(min=1e-30)
        return {
            "error": ((y.double() - truth).norm() / norm).item(),
            "unwritten": int(y.isnan().sum()),
            "structural": bool(structural.all()),
            "form": y.shape == truth.shape and y.dtype == dtype and y.is_contiguous(),
            "untouched": torch.equal(x, before),
        }


def flipped(module: ModuleType) -> Any:
    """Return a patch of phase_gemm that takes the ways which it would not have taken for grids this small.

    The other order of tiles, sums of three products kept apart, channels stored in halves, and 64-bit tiles.
    """
    tiles = module.tiles

    def others(*asked: Any) -> dict[str, Any]:
        *_, split, _ = asked
        tile = tiles(*asked)
        changed = {"ROWS": not tile["ROWS"], "APART": split, "HALVES": tile["BOC"] > 1, "LONG": True}
        return tile | changed

    return mock.patch.object(module, "tiles", others)


def reloaded(module: ModuleType) -> list[bool]:
    """Say, twice for each of three sets of weights, whether the answer is that of the newest."""
    torch.backends.cudnn.allow_tf32 = False
    case = CASES["a decoder's layer"]
    layer, x = reference(case), torch.randn(case.batch, case.in_channels, case.height, case.width)
    model = module.ModelNew(*case.layer)
    answers = []
    with torch.no_grad():
        for seed, prepared in ((1, True), (2, False), (3, True)):
            torch.manual_seed(seed)
            for name, value in layer.state_dict().items():
                value.normal_()
                target = model.get_parameter(f"conv_transpose2d.{name}")
                # `data` hides the write from autograd's version counter, so that only `prepare` can tell
                (target.data if prepared else target).copy_(value)
            if prepared and hasattr(model, "prepare"):
                model.prepare()
            first, second = model(x), model(x)
            assert first.data_ptr() != second.data_ptr()
            answers += [torch.allclose(y, layer(x), atol=1e-5) for y in (first, second)]
    return answers


def child() -> None:
    """Print the answers to all cases as JSON."""
    torch.set_num_threads(1)
    rng = random.Random(20)  # noqa: S311  # cases, not secrets
    cases = CASES | {f"random {i}": random_case(rng) for i in range(6)}
    modules = {name: load(name) for name in SOLUTIONS}
    rows = [
        {"solution": name, "label": label, "case": repr(case), "arithmetic": arithmetic}
        | measure(modules[name], case, arithmetic)
        for (label, case), name in itertools.product(cases.items(), SOLUTIONS)
        for arithmetic in (BUDGETS if label in CASES else ("fp32",))
    ]
    with flipped(modules["phase_gemm"]):
        rows += [
            {"solution": "phase_gemm", "label": f"{label}, flipped", "case": repr(case), "arithmetic": "fp32"}
            | measure(modules["phase_gemm"], case, "fp32")
            for label, case in cases.items()
        ]
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
    assert len(rows) >= len(CASES)
    assert [r for r in rows if not r["error"] <= BUDGETS[arithmetic]] == []


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize("key", ["structural", "form", "untouched"])
def test_output_is_whole(answers: dict[str, Any], solution: str, key: str) -> None:
    assert [r for r in answers["rows"] if r["solution"] == solution and not r[key]] == []
    assert [r for r in answers["rows"] if r["solution"] == solution and r["unwritten"]] == []


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_new_weights_are_used(answers: dict[str, Any], solution: str) -> None:
    assert answers["reloaded"][solution] == [True] * 6


def test_gather_gemm_keeps_its_grid() -> None:
    gather = load("gather_gemm")
    sides = [gather.output_extent(n, 3, 5, 1, 2, 0) for n in (64, 128)]
    assert sides == [318, 638]
    assert gather.launch_grid(16 * sides[0] * sides[1], 64, 1) == (50721, 1)
    assert gather.launch_grid(65, 65, 3) == (2, 2, 3)


EXTENTS = st.integers(1, 9)


@given(stride=EXTENTS, dilation=EXTENTS, padding=st.integers(0, 9), kernel=EXTENTS)
def test_taps_have_one_phase_and_one_shift(stride: int, dilation: int, padding: int, kernel: int) -> None:
    phase = load("phase_gemm")
    period = phase.period(stride, dilation)
    taps = range(kernel)
    columns = [(tap * dilation - padding) % stride for tap in taps]
    for tap, column in zip(taps, columns, strict=True):
        assert column == tap * dilation - padding + phase.shift(tap, stride, padding, dilation) * stride
        assert column == columns[tap % period]
    assert len(set(columns)) == min(kernel, period)
    ahead = phase.choose_ahead(kernel, stride, padding, dilation)
    assert 0 <= ahead < stride
    assert phase.count_shifts(kernel, stride, padding - ahead, dilation) == min(
        phase.count_shifts(kernel, stride, padding - one, dilation) for one in range(stride)
    )


@given(
    kernel=EXTENTS,
    stride=EXTENTS,
    padding=st.integers(0, 9),
    dilation=EXTENTS,
    channels=st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
def test_packing_keeps_every_weight(
    kernel: int, stride: int, padding: int, dilation: int, channels: tuple[int, int]
) -> None:
    phase = load("phase_gemm")
    with torch.device("meta"):
        layer = nn.ConvTranspose2d(*channels, kernel, stride, padding, dilation=dilation)
    layout = phase.geometry(layer)
    assert layout["BE"] * layout["BI"] in {16, 32}
    assert layout["SHIFTS"] % layout["BE"] == layout["CHANNELS"] % layout["BI"] == 0
    assert layout["PHASES"] << layout["JOINS"] >= stride
    weight = torch.arange(1.0, 1 + 2 * 3 * kernel**2).reshape(2, 3, kernel, kernel)
    with torch.device("meta"):
        small = phase.geometry(nn.ConvTranspose2d(2, 3, kernel, stride, padding, dilation=dilation))
    packed = phase.pack(weight, small, tf32=False, split=False)
    assert torch.equal(packed[packed > 0].sort().values, weight.flatten())
    high, low = phase.pack(weight / 3, small, tf32=False, split=True)
    assert not (high.view(torch.int32) & 0x1FFF).any()
    assert torch.equal((high + low)[packed > 0].sort().values, weight.flatten() / 3)


def test_packing_rounds_to_nearest_tf32() -> None:
    phase = load("phase_gemm")
    layout = phase.geometry(nn.ConvTranspose2d(2, 3, 1))
    weight = torch.randn(2, 3, 1, 1)
    packed = phase.pack(weight, layout, tf32=True, split=False)[0, 0, 0, 0, :, :2].T.contiguous()
    assert not (packed.view(torch.int32) & 0x1FFF).any()
    assert ((packed / weight[..., 0, 0]) - 1).abs().max() <= 2**-11


@example(  # a single channel has no halves
    channels=(32, 1), kernel=9, stride=9, size=(1, 9, 9), itemsize=4, split=True, room=227 * 1024
)
@example(channels=(64, 1), kernel=9, stride=9, size=(1, 9, 9), itemsize=4, split=True, room=227 * 1024)
@given(
    channels=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    kernel=EXTENTS,
    stride=EXTENTS,
    size=st.tuples(st.integers(1, 64), st.integers(1, 500), st.integers(1, 500)),
    itemsize=st.sampled_from([2, 4]),
    split=st.booleans(),
    room=st.sampled_from([99 * 1024, 227 * 1024]),
)
def test_tiles_cover_the_output_and_fit(
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    size: tuple[int, int, int],
    itemsize: int,
    split: bool,
    room: int,
) -> None:
    phase = load("phase_gemm")
    with torch.device("meta"):
        layout = phase.geometry(nn.ConvTranspose2d(*channels, kernel, stride))
    tile = layout | phase.tiles(layout, *size, itemsize, split and itemsize == 4, room)
    programs, groups = phase.launch_grid(layout, tile, *size)
    batch, height, width = size
    slots = layout["PHASES"] << layout["JOINS"]
    rows, rest = divmod(programs, triton.cdiv(channels[1], tile["BOC"]))
    assert (rest, groups) == (0, 1)
    assert rows * tile["BM"] * stride >= batch * height * width
    assert {n.bit_count() for n in (tile["BM"], tile["BOC"], tile["BE"], tile["BI"])} == {1}
    assert tile["BM"] >= 16
    assert layout["PHASES"] * tile["BOC"] >= 16
    assert layout["CHANNELS"] % tile["BI"] == 0
    assert tile["BOC"] > 1 or not tile["HALVES"]
    # 128 values a thread, of which half are joined zeros; of half the size twice as many
    assert tile["BM"] * slots * tile["BOC"] * itemsize <= 65536


@pytest.mark.parametrize(
    ("room", "itemsize", "split", "chosen"),
    [
        (227, 4, False, (256, 2)),
        (227, 4, True, (128, 1)),
        (227, 2, False, (128, 1)),
        (163, 4, False, (128, 1)),
        (99, 4, False, (128, 1)),
    ],
    ids=["tf32", "fp32", "fp16", "tf32 on an A100", "tf32 on an RTX 4090"],
)
def test_a_few_steps_have_the_tiles_that_an_h100_was_fastest_with(
    room: int, itemsize: int, split: bool, chosen: tuple[int, int]
) -> None:
    """Problem 75: in two stages fp32 took 0.39 to 0.42 ms, not 0.375; in one TF32 took 0.354, not 0.345.

    256 values of q win there; on the other cards they would spill.
    """
    phase = load("phase_gemm")
    with torch.device("meta"):
        layout = phase.geometry(nn.ConvTranspose2d(32, 64, (3, 5), (2, 3), (1, 2), groups=4, dilation=(2, 1)))
    tile = phase.tiles(layout, 16, 257, 766, itemsize, split, room * 1024)
    assert (tile["BM"], tile["num_stages"]) == chosen
    assert tile["HALVES"] == split


@pytest.mark.parametrize(("batch", "long"), [(2047, False), (2048, True)])
def test_tiles_are_numbered_in_64_bits_from_two_to_the_31_values_of_q(batch: int, long: bool) -> None:
    phase = load("phase_gemm")
    with torch.device("meta"):
        layout = phase.geometry(nn.ConvTranspose2d(1, 1, 1))
    tile = phase.tiles(layout, batch, 1 << 20, 1, 2, split=False)
    assert (tile["ROWS"], tile["LONG"]) == (False, long)


@pytest.mark.parametrize(
    ("channels", "split", "chosen"),
    [(32, False, (2, False)), (32, True, (1, True)), (16, True, (2, False))],
    ids=["tf32", "fp32", "fp32 of fewer channels"],
)
def test_one_step_of_three_products_is_stored_in_halves(
    channels: int, split: bool, chosen: tuple[int, bool]
) -> None:
    """Problem 81: PATH.md has the times of both, with one and two stages; not timed with fewer channels."""
    phase = load("phase_gemm")
    with torch.device("meta"):
        layout = phase.geometry(nn.ConvTranspose2d(channels, 64, 3, 5, 1, dilation=2))
    tile = phase.tiles(layout, 16, 318, 638, 4, split)
    assert (tile["num_stages"], tile["HALVES"]) == chosen


if __name__ == "__main__":
    child()
