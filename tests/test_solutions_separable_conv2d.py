"""Both solutions of separable_conv2d against float64 in the interpreter, and the tiles of the fast one.

Triton reads TRITON_INTERPRET when it is imported, and the session that runs this file may have imported
it already. So a child, this file run as a script, does the work, and the tests read its answer.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).parents[1]
SOLUTIONS = "fused_gemm", "two_pass"
#: The interpreter computes every dot in fp32, so only fused_gemm, which rounds by itself, differs in tf32.
BUDGETS = {"fp32": 2e-6, "tf32": 5e-4, "fp16": 1e-3}
#: The tiles are the same in every arithmetic, so a few cases will do in the others.
IN_ALL = "problem 86, smaller", "a decoder's layer", "parts of the channels"


@functools.cache
def load(path: str) -> ModuleType:
    """Return a problem's or a solution's module; their folders are not packages."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / f"{path}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


problem = load("problems/separable_conv2d")
Shape = problem.Shape

#: What the layers are, and what fused_gemm is to take instead of its own choice.
CASES: dict[str, tuple[Any, dict[str, int]]] = {
    "problem 86, smaller": (Shape(1, 5, 17, 7, 16), {"BM": 128, "BH": 2}),
    "a decoder's layer": (Shape(2, 5, 20, 5, 6, 3, 2, 1, bias=True), {"BI": 16}),
    "two steps, two channel tiles": (Shape(1, 18, 35, 3, 8, bias=True), {"BI": 16, "BOC": 16}),
    # two images, and more values than one program of the sum has
    "parts of the channels": (Shape(2, 70, 19, 3, 5, bias=True), {"BI": 16, "PARTS": 3}),
    "patches of 4 and stride 2": (Shape(1, 3, 4, 5, 16, 3, 2), {"BH": 2, "R": 4, "V": 4}),
    "patches of 4 by single pixels": (Shape(1, 3, 4, 4, 9), {"R": 4, "V": 1}),
    "dilation beyond a vector": (Shape(1, 2, 3, 9, 16, 3, 1, 6, 6), {"BH": 4, "R": 2, "V": 2}),
    "stride beyond the kernel": (Shape(2, 3, 3, 11, 14, 2, 5, 0), {}),
    "taps in a loop": (Shape(1, 2, 2, 7, 9, (3, 4), 1, (2, 3)), {"TH": 1, "TW": 2, "BH": 2}),
    "one pixel": (Shape(3, 5, 5, 1, 1, 1, padding=0), {}),
    "padding beyond the kernel": (Shape(2, 3, 3, 3, 2, 2, 2, 3), {}),
    "every argument differs": (Shape(2, 3, 6, 11, 13, (3, 2), (1, 3), (3, 0), (2, 1), bias=True), {}),
}


def pairs(least: int, most: int) -> st.SearchStrategy[Any]:
    """Draw one size for both axes, or two."""
    size = st.integers(least, most)
    return size | st.tuples(size, size)


SHAPES = st.builds(
    Shape,
    batch=st.integers(1, 2),
    in_channels=st.integers(1, 6),
    out_channels=st.integers(1, 20),
    height=st.integers(1, 6),
    width=st.integers(1, 12),
    kernel_size=pairs(1, 4),
    stride=pairs(1, 3),
    padding=pairs(0, 3),
    dilation=pairs(1, 3),
    bias=st.booleans(),
)


@contextmanager
def poisoned() -> Iterator[None]:
    """Make `torch.empty` return NaN, so that an element left unwritten shows."""
    empty = torch.empty

    def nan(*size: Any, **options: Any) -> torch.Tensor:
        return empty(*size, **options).fill_(float("nan"))

    with mock.patch.object(torch, "empty", nan):
        yield


@contextmanager
def tiled(module: ModuleType, tile: dict[str, int]) -> Iterator[None]:
    """Make a solution that chooses tiles choose this one, but for what it leaves out."""
    if not hasattr(module, "tiles"):
        yield
        return
    tiles = module.tiles
    with mock.patch.object(module, "tiles", lambda *a: tiles(*a) | tile):
        yield


def measure(module: ModuleType, shape: Any, tile: dict[str, int], arithmetic: str) -> dict[str, Any]:
    """Run one solution on one layer: its error, and the properties of its output."""
    torch.backends.cudnn.allow_tf32 = arithmetic == "tf32"
    dtype = torch.float16 if arithmetic == "fp16" else torch.float32
    torch.manual_seed(0)
    layer = problem.Model(*problem.get_init_inputs(shape)).to(dtype)
    x = torch.randn(shape.batch, shape.in_channels, shape.height, shape.width).to(dtype)
    model = module.ModelNew(*problem.get_init_inputs(shape)).to(dtype)
    model.load_state_dict(layer.state_dict())
    before = x.clone()
    with torch.no_grad(), poisoned(), tiled(module, tile):
        y = model(x)
        truth = layer.double()(x.double())
    norm = truth.norm().clamp(min=1e-30)
    return {
        "error": ((y.double() - truth).norm() / norm).item(),
        "unwritten": int(y.isnan().sum()),
        "form": y.shape == truth.shape and y.dtype == dtype and y.is_contiguous(),
        "untouched": torch.equal(x, before),
    }


@seed(20)
@settings(max_examples=6, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=SHAPES.filter(lambda shape: problem.validate(shape) is None))
def agree(shape: Any) -> None:
    """Hold both solutions against layers that are drawn; those that fail are printed."""
    for name in SOLUTIONS:
        answer = measure(load(f"solutions/separable_conv2d/{name}"), shape, {}, "fp32")
        assert answer.pop("error") <= BUDGETS["fp32"], (name, shape)
        assert not answer.pop("unwritten"), (name, shape)
        assert all(answer.values()), (name, shape, answer)


def interpret() -> None:
    """Print the answers to all cases as JSON, after those that are drawn."""
    torch.set_num_threads(1)
    agree()
    rows = [
        {"solution": name, "label": label, "arithmetic": arithmetic}
        | measure(load(f"solutions/separable_conv2d/{name}"), *CASES[label], arithmetic)
        for label, name, arithmetic in itertools.product(CASES, SOLUTIONS, BUDGETS)
        if arithmetic == "fp32" or label in IN_ALL
    ]
    print(json.dumps(rows))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize("arithmetic", BUDGETS)
def test_error_is_within_the_arithmetic(rows: list[dict[str, Any]], solution: str, arithmetic: str) -> None:
    mine = [r for r in rows if (r["solution"], r["arithmetic"]) == (solution, arithmetic)]
    assert len(mine) == len(CASES if arithmetic == "fp32" else IN_ALL)
    assert [r for r in mine if not r["error"] <= BUDGETS[arithmetic]] == []


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize("key", ["form", "untouched"])
def test_output_is_whole(rows: list[dict[str, Any]], solution: str, key: str) -> None:
    assert [r for r in rows if r["solution"] == solution and not r[key]] == []
    assert [r for r in rows if r["solution"] == solution and r["unwritten"]] == []


@example(channels=(16, 256), kernel=(3, 3), size=(1, 100, 100, 100), split=False)
@given(
    channels=st.tuples(st.integers(1, 1200), st.integers(1, 1200)),
    kernel=st.tuples(st.integers(1, 40), st.integers(1, 130)),
    size=st.tuples(st.integers(1, 64), st.integers(1, 500), st.integers(1, 500), st.integers(1, 500)),
    split=st.booleans(),
)
def test_tiles_cover_the_output_and_fit(
    channels: tuple[int, int], kernel: tuple[int, int], size: tuple[int, int, int, int], split: bool
) -> None:
    fused = load("solutions/separable_conv2d/fused_gemm")
    with torch.device("meta"):
        layers = fused.ModelNew(*channels, kernel)
    batch, width, out_height, out_width = size
    tile = fused.tiles(layers, batch, width, out_height, out_width, split)
    programs, parts = fused.launch_grid(tile, batch, channels[1], out_height, out_width)
    patches = batch * -(-out_height // tile["BH"]) * -(-out_width // tile["R"])
    pixels = patches * tile["BH"] * tile["R"]
    assert programs == -(-pixels // tile["BM"]) * -(-channels[1] // tile["BOC"])
    assert kernel[0] % tile["TH"] == kernel[1] % tile["TW"] == 0
    # pieces begin where a vector may: in every row, and in every patch
    assert width % tile["V"] == tile["R"] % tile["V"] == 0
    # a loop over columns leaves pieces unaligned
    assert tile["V"] == 1 or tile["TW"] == kernel[1]
    assert {tile[name].bit_count() for name in ("BM", "BI", "BOC", "BH", "R", "V")} == {1}
    # what tl.dot and wgmma take
    assert tile["BM"] >= 64
    assert min(tile["BI"], tile["BOC"]) >= 16
    # a whole patch for each thread, so that no layout has to spread one over several
    assert tile["BM"] * tile["BI"] >= 32 * tile["num_warps"] * tile["BH"] * tile["R"]
    # and no more sums than registers; half as many where steps are long
    assert tile["BM"] * tile["BOC"] <= (64 if tile["BI"] == 64 else 128) * 32 * tile["num_warps"]
    # parts run side by side, and none is empty
    assert parts == tile["PARTS"]
    assert parts == 1 or programs * parts * tile["num_warps"] <= 8 * 128
    part = -(-channels[0] // (tile["BI"] * parts)) * tile["BI"]
    assert (parts - 1) * part < channels[0] <= parts * part


@pytest.mark.parametrize(
    ("label", "split", "chosen"),
    [
        ("kernelbench/86", False, (128, 128, 64, 1, 8)),
        ("kernelbench/86", True, (64, 128, 64, 1, 4)),
        ("layers/mobilenet-13-b1", False, (64, 128, 64, 16, 4)),
        ("layers/xception-middle-b1", False, (64, 256, 64, 6, 8)),
        ("layers/xception-middle-b1", True, (64, 128, 32, 6, 4)),
        ("layers/nasnet-7x7-b1", True, (64, 256, 32, 6, 4)),
        ("layers/deeplab-aspp-b1", False, (64, 256, 32, 13, 4)),
    ],
)
def test_shapes_have_the_tiles_that_were_chosen_on_an_h200(
    label: str, split: bool, chosen: tuple[int, ...]
) -> None:
    """PATH.md lists what was tried: pixels, channels, input channels a step, parts and warps."""
    fused = load("solutions/separable_conv2d/fused_gemm")
    sweep, name = label.split("/")
    shape = problem.SWEEPS[sweep][name]
    with torch.device("meta"):
        layers = fused.ModelNew(*problem.get_init_inputs(shape))
    tile = fused.tiles(layers, shape.batch, shape.width, shape.height, shape.width, split)
    assert tuple(tile[key] for key in ("BM", "BOC", "BI", "PARTS", "num_warps")) == chosen


@pytest.mark.parametrize(("in_channels", "chosen"), [(16, (128, 4)), (17, (256, 8))])
def test_eight_warps_have_a_patch_for_each_thread(in_channels: int, chosen: tuple[int, int]) -> None:
    """64 pixels by 16 channels are half a patch for each of 256 threads."""
    fused = load("solutions/separable_conv2d/fused_gemm")
    with torch.device("meta"):
        layers = fused.ModelNew(in_channels, 256, 3)
    tile = fused.tiles(layers, 1, 100, 100, 100, False)
    assert (tile["BOC"], tile["num_warps"]) == chosen


if __name__ == "__main__":
    interpret()
