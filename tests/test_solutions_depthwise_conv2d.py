"""Both solutions of depthwise_conv2d against float64 in the interpreter, and what the fast one compiles to.

Triton reads TRITON_INTERPRET when it is imported, and the session that runs this file may have imported
it already. So children, this file run as a script, do the work, and the tests read their answers.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).parents[1]
SOLUTIONS = "direct", "register_patches"
BUDGETS = {"fp32": 1e-6, "fp16": 5e-4}
#: The values are the same in every case, so a few will do in 16 bits.
IN_FP16 = "problem 82, smaller", "vectors of 4 behind padding", "every argument differs"


@functools.cache
def load(path: str) -> ModuleType:
    """Return a problem's or a solution's module; their folders are not packages."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / f"{path}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


problem = load("problems/depthwise_conv2d")
Shape = problem.Shape

#: What the layer is, and the tile that register_patches is to take instead of its own choice.
CASES: dict[str, tuple[Any, dict[str, int]]] = {
    "problem 82, smaller": (Shape(1, 2, 2, 12, 16, 3), {"BH": 4, "R": 2}),
    "problem 85, smaller": (Shape(2, 2, 2, 8, 16, (3, 7)), {"BH": 2, "R": 2}),
    "vectors of 4 behind padding": (Shape(1, 3, 3, 9, 12, 3, 1, 1, bias=True), {"BH": 8, "R": 4}),
    "vectors of 4 and stride 2": (Shape(1, 2, 2, 9, 16, 3, 2, 1), {"BH": 4, "R": 4}),
    "vectors of 4, cut": (Shape(1, 2, 2, 4, 8, 2), {"BH": 2, "R": 4}),
    "dilation beyond a vector": (Shape(1, 2, 2, 13, 16, 3, 1, 6, 6), {"BH": 2, "R": 4}),
    "stride beyond the kernel": (Shape(2, 3, 3, 11, 14, 2, 5), {"BH": 2, "R": 2}),
    "three outputs per channel": (Shape(2, 2, 6, 5, 7, 3, 2, 1, bias=True), {"BH": 2, "R": 1}),
    "taps in a loop": (Shape(1, 2, 2, 7, 9, (5, 6), 1, (2, 3)), {"TH": 1, "TW": 3, "BH": 2, "R": 1}),
    "rows of taps in a loop": (Shape(1, 2, 2, 8, 8, (4, 3), 1, 2), {"TH": 2, "BH": 2, "R": 2}),
    "one pixel": (Shape(3, 5, 5, 1, 1, 1), {}),
    "padding beyond the kernel": (Shape(2, 3, 3, 3, 2, 2, 2, 3, bias=True), {"R": 2}),
    "every argument differs": (Shape(2, 3, 6, 11, 13, (3, 2), (1, 3), (3, 0), (2, 1), bias=True), {"BH": 4}),
}


def pairs(least: int, most: int) -> st.SearchStrategy[Any]:
    """Draw one size for both axes, or two."""
    size = st.integers(least, most)
    return size | st.tuples(size, size)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Any, dict[str, int]]:
    """Draw a layer from everything that the constructor takes, and a tile that suits it."""
    channels = draw(st.integers(1, 4))
    shape = Shape(
        draw(st.integers(1, 2)),
        channels,
        channels * draw(st.integers(1, 2)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 12)),
        draw(pairs(1, 4)),
        draw(pairs(1, 3)),
        draw(pairs(0, 3)),
        draw(pairs(1, 3)),
        draw(st.booleans()),
    )
    widest = next(r for r in (4, 2, 1) if shape.width % r == 0)
    tile = {"BH": draw(st.sampled_from((1, 2, 4))), "R": draw(st.sampled_from((1, 2, 4)))}
    return shape, tile | {"R": min(tile["R"], widest)}


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
    """Make a solution that chooses tiles choose this one, in programs of two warps."""
    if not hasattr(module, "tiles"):
        yield
        return
    tiles = module.tiles
    with mock.patch.object(module, "tiles", lambda *a: tiles(*a) | {"BP": 64, "num_warps": 2} | tile):
        yield


def measure(module: ModuleType, shape: Any, tile: dict[str, int], arithmetic: str) -> dict[str, Any]:
    """Run one solution on one layer: its error, and the properties of its output."""
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
@settings(max_examples=8, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=layers().filter(lambda drawn: problem.validate(drawn[0]) is None))
def agree(drawn: tuple[Any, dict[str, int]]) -> None:
    """Hold both solutions against a layer that is drawn; the layer that fails is printed."""
    shape, tile = drawn
    for name in SOLUTIONS:
        answer = measure(load(f"solutions/depthwise_conv2d/{name}"), shape, tile, "fp32")
        assert answer.pop("error") <= BUDGETS["fp32"], (name, shape, tile)
        assert not answer.pop("unwritten"), (name, shape, tile)
        assert all(answer.values()), (name, shape, tile, answer)


def interpret() -> None:
    """Print the answers to all cases as JSON, after those that are drawn."""
    torch.set_num_threads(1)
    agree()
    rows = [
        {"solution": name, "label": label, "arithmetic": arithmetic}
        | measure(load(f"solutions/depthwise_conv2d/{name}"), *CASES[label], arithmetic)
        for label, name, arithmetic in itertools.product(CASES, SOLUTIONS, BUDGETS)
        if arithmetic == "fp32" or label in IN_FP16
    ]
    print(json.dumps(rows))


def compiled() -> None:
    """Print how often each access to memory occurs in the PTX of problem 82, with patches of 4x2, as JSON."""
    import triton  # not in the interpreter
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = load("solutions/depthwise_conv2d/register_patches").register_patches_kernel
    sizes = {"H": 512, "W": 512, "OC": 64, "MULTIPLIER": 1, "OH": 510, "OW": 510, "KH": 3, "KW": 3}
    steps = {"SH": 1, "SW": 1, "PH": 0, "PW": 0, "DH": 1, "DW": 1}
    tile = {"HAS_BIAS": False, "bias": None, "TH": 3, "TW": 3, "BH": 4, "R": 2, "BP": 128}
    constants = {(kernel.arg_names.index(name),): value for name, value in (sizes | steps | tile).items()}
    types = dict.fromkeys(("x", "w", "y"), "*fp32") | {"PLANES": "i32"}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in types}
    source = ASTSource(kernel, signature, constants, aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    accesses = re.findall(r"(?:ld|st)\.(?:global|shared)(?:\.v\d)?", ptx)
    print(json.dumps({access: accesses.count(access) for access in accesses}))


def run_child(work: str, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, __file__, work],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = run_child("interpret", TRITON_INTERPRET="1")
    return answers


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize("arithmetic", BUDGETS)
def test_error_is_within_the_arithmetic(rows: list[dict[str, Any]], solution: str, arithmetic: str) -> None:
    mine = [r for r in rows if (r["solution"], r["arithmetic"]) == (solution, arithmetic)]
    assert len(mine) == len(CASES if arithmetic == "fp32" else IN_FP16)
    assert [r for r in mine if not r["error"] <= BUDGETS[arithmetic]] == []


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize("key", ["form", "untouched"])
def test_output_is_whole(rows: list[dict[str, Any]], solution: str, key: str) -> None:
    assert [r for r in rows if r["solution"] == solution and not r[key]] == []
    assert [r for r in rows if r["solution"] == solution and r["unwritten"]] == []


def test_patches_load_each_input_once() -> None:
    """Four rows of two outputs meet six rows of two pieces, and nothing goes through shared memory."""
    accesses = run_child("compiled", TRITON_INTERPRET="0", TRITON_DEFAULT_FP_FUSION="1")
    assert accesses == {"ld.global.v2": 6 * 2, "ld.global": 3 * 3, "st.global.v2": 4}


@given(
    channels=st.tuples(st.integers(1, 600), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 40), st.integers(1, 130)),
    size=st.tuples(st.integers(1, 64), st.integers(1, 500), st.integers(1, 500), st.integers(1, 500)),
)
def test_tiles_cover_the_output_and_fit(
    channels: tuple[int, int], kernel: tuple[int, int], size: tuple[int, int, int, int]
) -> None:
    patches = load("solutions/depthwise_conv2d/register_patches")
    in_channels, multiplier = channels
    with torch.device("meta"):
        layer = patches.ModelNew(in_channels, in_channels * multiplier, kernel).conv2d
    batch, width, out_height, out_width = size
    tile = patches.tiles(layer, batch, width, out_height, out_width)
    planes = batch * in_channels * multiplier
    (programs,) = patches.launch_grid(tile, planes, out_height, out_width)
    rows, columns = -(-out_height // tile["BH"]), -(-out_width // tile["R"])
    assert 0 <= programs * tile["BP"] - planes * rows * columns < tile["BP"]
    assert kernel[0] % tile["TH"] == kernel[1] % tile["TW"] == width % tile["R"] == 0
    # a loop over columns leaves pieces unaligned
    assert tile["R"] == 1 or tile["TW"] == kernel[1]
    assert {n.bit_count() for n in (tile["BH"], tile["R"], tile["BP"])} == {1}
    assert tile["BP"] == 32 * tile["num_warps"]
    assert tile["BH"] == 1 or tile["BH"] * tile["R"] * tile["TH"] * tile["TW"] <= 1024


if __name__ == "__main__":
    {"interpret": interpret, "compiled": compiled}[sys.argv[1]]()
