"""The solutions of conv1d, conv2d and conv3d against float64 in Triton's interpreter, and their plans.

Triton reads TRITON_INTERPRET when it is imported, and the session that runs this file may have imported
it already. So one child, this file run as a script, computes all cases, and the tests read its answer.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import random
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from runner.load import find_problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).parents[1] / "solutions"
SOLUTIONS = "implicit_gemm", "channels_last_gemm"
LAYERS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BUDGETS = {"tf32": 4e-4, "fp32": 1e-6, "fp16": 5e-4}
#: The interpreter computes every dot in fp32, so only what rounds by itself has something to show in tf32.
RUNS = [("implicit_gemm", "fp32"), ("implicit_gemm", "fp16"), *(("channels_last_gemm", a) for a in BUDGETS)]


class Case(NamedTuple):
    """A layer and the input it is given: as many axes as `size` has."""

    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    kernel_size: Any
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    bias: bool = False
    batch: int = 1

    @property
    def layer(self) -> tuple[Any, ...]:
        """The arguments of `ModelNew`."""
        return self.in_channels, self.out_channels, *self[3:9]


CASES = {
    "one position": Case(1, 1, (1,), 1),
    "a tile ends in a signal": Case(3, 5, (43,), 3, 1, 1, bias=True, batch=3),
    "strided and dilated": Case(5, 6, (41,), 3, 3, 2, 4, batch=2),
    "taps in blocks": Case(9, 4, (70,), 60, bias=True),
    "one pixel": Case(3, 2, (4, 3), (4, 3), batch=2),
    "axes differ": Case(5, 6, (9, 8), (2, 3), (3, 2), (0, 1), (1, 2), bias=True),
    "groups": Case(6, 9, (5, 6), 3, 2, 1, groups=3, bias=True),
    "channels past one step": Case(40, 17, (3, 5), (1, 2), padding=(0, 1)),
    "padding beyond the kernel": Case(3, 4, (3, 2), 2, 2, 3, bias=True),
    "depthwise": Case(5, 5, (4, 6), 3, 1, 1, groups=5),
    "one voxel": Case(1, 1, (1, 1, 1), 1),
    "three axes differ": Case(3, 6, (6, 9, 8), (1, 2, 3), (2, 3, 1), (0, 1, 2), (1, 3, 2), bias=True),
    "three axes in groups": Case(4, 6, (3, 4, 3), 2, 1, 1, groups=2, batch=2),
}


def random_case(rng: random.Random, axes: int) -> Case:
    """Draw a layer with a small output, from everything that the constructor takes."""
    while True:
        groups = rng.choice((1, 1, 2, 3))
        draw = [[rng.randint(*span) for _ in range(axes)] for span in ((1, 3), (1, 3), (0, 3), (1, 3))]
        case = Case(
            groups * rng.randint(1, 5),
            groups * rng.randint(1, 9),
            tuple(rng.randint(1, 24 // axes) for _ in range(axes)),
            *(tuple(values) if axes > 1 else values[0] for values in draw),
            groups=groups,
            bias=rng.random() < 0.5,
            batch=rng.randint(1, 2),
        )
        axis = zip(case.size, *draw, strict=True)
        sides = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axis]
        if min(sides) > 0 and math.prod(sides) < 200:
            return case


@functools.cache
def load(axes: int, name: str) -> ModuleType:
    """Return a solution's module; its folder is not a package."""
    spec = importlib.util.spec_from_file_location(f"conv{axes}d_{name}", ROOT / f"conv{axes}d" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def poisoned() -> Iterator[None]:
    """Make `torch.empty` return NaN, so that an element left unwritten shows."""
    empty = torch.empty

    def nan(*size: Any, **options: Any) -> torch.Tensor:
        return empty(*size, **options).fill_(float("nan"))

    with mock.patch.object(torch, "empty", nan):
        yield


@contextmanager
def forced(module: ModuleType, *, copy: bool) -> Iterator[None]:
    """Make channels_last_gemm reduce one tap a step in three parts, from its copy or in place."""
    tiles = module.tiles

    def in_parts(*facts: Any) -> dict[str, Any]:
        tile: dict[str, Any] = tiles(*facts)
        return tile | {"PARTS": 3, "BM": 64, "BN": 64, "SWAP": copy and not facts[3]}

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(module, "copies_input", return_value=copy))
        stack.enter_context(mock.patch.object(module, "patch", return_value=1))
        stack.enter_context(mock.patch.object(module, "tiles", in_parts))
        yield


@contextmanager
def halved(module: ModuleType) -> Iterator[None]:
    """Make conv2d's channels_last_gemm take all taps in two rounds, as it does where columns are many."""
    tiles = module.tiles

    def in_rounds(layout: dict[str, int], *facts: Any) -> dict[str, Any]:
        return halve(layout, tiles(layout, *facts))

    with mock.patch.object(module, "tiles", in_rounds):
        yield


def halve(layout: dict[str, int], tile: dict[str, Any]) -> dict[str, Any]:
    """Give a tile of conv2d that crosses all taps half of them."""
    taps = layout["KH"] * layout["KW"]
    if tile["PATCH"] < taps:
        return tile
    PATCH, BK = -(-taps // 2), tile["BK"]
    return tile | {"PATCH": PATCH, "DEPTH": -(-PATCH * layout["ICG"] // BK) * BK}


def measure(module: ModuleType, case: Case, arithmetic: str) -> dict[str, Any]:
    """Run one solution on one case: its error, and the properties of its output."""
    torch.backends.cudnn.allow_tf32 = arithmetic == "tf32"
    dtype = torch.float16 if arithmetic == "fp16" else torch.float32
    torch.manual_seed(0)
    axes = len(case.size)
    layer = LAYERS[axes](*case.layer).to(dtype)
    size = case.batch, case.in_channels, *case.size
    # NaN on either side, so that a value from outside x shows even where its weight is zero
    x = torch.full((64 + math.prod(size) + 64,), float("nan"), dtype=dtype)[64:-64].view(size).normal_()
    model = module.ModelNew(*case.layer).to(dtype)
    model.load_state_dict({f"conv{axes}d.{name}": value for name, value in layer.state_dict().items()})
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


def reloaded(axes: int, module: ModuleType) -> list[bool]:
    """Say, twice for each of three sets of weights, whether the answer is that of the newest."""
    torch.backends.cudnn.allow_tf32 = False
    case = Case(3, 4, (5,) * axes, 2, bias=True)
    layer, x = LAYERS[axes](*case.layer), torch.randn(1, 3, *case.size)
    model = module.ModelNew(*case.layer)
    answers = []
    with torch.no_grad():
        for seed, prepared in ((1, True), (2, False), (3, True)):
            torch.manual_seed(seed)
            for name, value in layer.state_dict().items():
                value.normal_()
                target = model.get_parameter(f"conv{axes}d.{name}")
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
    cases = CASES | {f"random {axes}-{i}": random_case(rng, axes) for axes in LAYERS for i in range(3)}
    rows = []
    for label, case in cases.items():
        axes, row = len(case.size), {"label": label, "case": repr(case)}
        for name, arithmetic in RUNS if label in CASES else [("channels_last_gemm", "fp32")]:
            answer = measure(load(axes, name), case, arithmetic)
            rows.append(row | {"solution": name, "arithmetic": arithmetic} | answer)
        for copy, arithmetic in ((True, "tf32"), (False, "fp32")):
            module = load(axes, "channels_last_gemm")
            with forced(module, copy=copy):
                answer = measure(module, case, arithmetic)
            forms = {"solution": "channels_last_gemm", "arithmetic": arithmetic, "copied": copy}
            rows.append(row | forms | answer)
        if axes == 2:
            module = load(axes, "channels_last_gemm")
            with halved(module):
                answer = measure(module, case, "fp32")
            rows.append(row | {"solution": "channels_last_gemm", "arithmetic": "fp32", "rounds": 2} | answer)
    answers = {f"{axes}, {name}": reloaded(axes, load(axes, name)) for axes in LAYERS for name in SOLUTIONS}
    print(json.dumps({"rows": rows, "reloaded": answers}))


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(("solution", "arithmetic"), RUNS)
def test_error_is_within_the_arithmetic(answers: dict[str, Any], solution: str, arithmetic: str) -> None:
    rows = [r for r in answers["rows"] if (r["solution"], r["arithmetic"]) == (solution, arithmetic)]
    assert len(rows) >= len(CASES)
    assert [r for r in rows if not r["error"] <= BUDGETS[arithmetic]] == []


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_output_is_whole(answers: dict[str, Any], solution: str) -> None:
    rows = [r for r in answers["rows"] if r["solution"] == solution]
    assert [r for r in rows if r["unwritten"] or not (r["form"] and r["untouched"])] == []


def test_new_weights_are_used(answers: dict[str, Any]) -> None:
    assert answers["reloaded"] == {f"{axes}, {name}": [True] * 6 for axes in LAYERS for name in SOLUTIONS}


@pytest.mark.parametrize(
    ("layer", "pixels"),
    [((3, 96, 11, 4, 2), 256 * 55 * 55), ((3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3)), 16 * 56 * 56)],
    ids=["kernelbench/50", "layers/r3d-stem-b1"],
)
def test_two_that_took_ptxas_long_are_unrolled_ten_times_at_most(layer: tuple[Any, ...], pixels: int) -> None:
    """Twelve and fourteen steps of three products kept it busy for 18 and 12 s."""
    axes = 3 if isinstance(layer[2], tuple) else 2
    module = load(axes, "channels_last_gemm")
    with torch.device("meta"):
        layout = module.geometry(LAYERS[axes](*layer))
    tile = module.tiles(layout, pixels, 4, True, 227 * 1024)
    # half of 121 taps, and a plane of 49
    assert tile["PATCH"] == (61 if axes == 2 else 49)
    assert tile["DEPTH"] // tile["BK"] <= 10


@pytest.mark.parametrize(
    ("place", "arithmetic", "key", "of_128", "of_132"),
    [
        ("conv3d/layers/video-vae-b1", (4, False), "PARTS", 5, 3),
        ("conv2d/layers/sd-unet-inner-b2", (4, False), "PARTS", 12, 13),
        ("conv2d/layers/sd-unet-inner-b2", (4, True), "PARTS", 6, 13),
    ],
)
def test_tiles_fill_the_sms_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    arithmetic: tuple[int, bool],
    key: str,
    of_128: int,
    of_132: int,
) -> None:
    """On an H100 video-vae-b1 took 320 us in three parts and 361 in five, and both PATH.md have others."""
    name, sweep, label = place.split("/")
    problem, module = find_problem(name).module(), load(3 if name == "conv3d" else 2, "channels_last_gemm")
    shape = problem.SWEEPS[sweep][label]
    with torch.device("meta"):
        model = module.ModelNew(*problem.get_init_inputs(shape))
        (x,) = problem.get_inputs(shape)
    y = getattr(model, name)(x)
    pixels = y.numel() // y.shape[1]
    assert module.tiles(model.layout, pixels, *arithmetic)[key] == of_128
    assert module.tiles(model.layout, pixels, *arithmetic, sms=132)[key] == of_132
    monkeypatch.setattr(module, "device_limits", lambda _: (99 * 1024, 132))
    *_, tile = model.plan(x, not arithmetic[1])
    assert tile[key] == of_132


@pytest.mark.parametrize("axes", [2, 3])
def test_a_program_that_is_alone_on_its_sm_has_more_stages(axes: int) -> None:
    """C3D's conv5a in TF32, 128 programs: on an H100 44 us with five stages, 52 with three."""
    module = load(axes, "channels_last_gemm")
    with torch.device("meta"):
        layout = module.geometry(LAYERS[axes](512, 512, 3, 1, 1))
    pixels = 4 * 2 * 7 * 7
    assert module.tiles(layout, pixels, 4, False, 227 * 1024)["num_stages"] == 5
    assert module.tiles(layout, 64 * pixels, 4, False, 227 * 1024)["num_stages"] == 3


@pytest.mark.parametrize(
    ("label", "room", "chosen"),
    [
        ("62", 99, (256, 64, 2)),
        ("62", 227, (256, 64, 4)),
        ("55", 99, (128, 128, 3)),
        ("55", 227, (256, 128, 4)),
    ],
)
def test_large_outputs_have_256_rows(label: str, room: int, chosen: tuple[int, ...]) -> None:
    """Of 128 channels where four stages have room. On an H100 62 took 2.11 ms so, 2.26 with 128 rows."""
    problem, module = find_problem("conv2d").module(), load(2, "channels_last_gemm")
    shape = problem.SWEEPS["kernelbench"][label]
    with torch.device("meta"):
        model = module.ModelNew(*problem.get_init_inputs(shape))
        y = model.conv2d(*problem.get_inputs(shape))
    tile = module.tiles(model.layout, y.numel() // y.shape[1], 4, False, room * 1024)
    assert (tile["BM"], tile["BN"], tile["num_stages"]) == chosen


@pytest.mark.parametrize("axes", [2, 3])
def test_a_device_says_what_it_has(monkeypatch: pytest.MonkeyPatch, axes: int) -> None:
    properties = SimpleNamespace(shared_memory_per_block_optin=232448, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    module = load(axes, "channels_last_gemm")
    assert module.device_limits(SimpleNamespace(is_cuda=True, device="cuda:0")) == (232448, 132)
    assert module.device_limits(torch.empty(0)) == (99 * 1024, 128)


def test_cards_before_hopper_take_all_taps_of_a_patch_in_one_round() -> None:
    """Compiled for an RTX 4090 two rounds of problem 50 in fp32 spill 250 words a thread, one spills 32."""
    module = load(2, "channels_last_gemm")
    with torch.device("meta"):
        layout = module.geometry(nn.Conv2d(3, 96, 11, 4, 2))
    assert module.tiles(layout, 256 * 55 * 55, 4, True, 99 * 1024)["PATCH"] == 121


CHANNELS = st.integers(1, 700)
EXTENTS = st.integers(1, 7)
#: Bytes of shared memory that a program may have, and SMs: an RTX 4090, an A100 and an H100.
ADA, A100, HOPPER = (99 * 1024, 128), (163 * 1024, 108), (227 * 1024, 132)


@given(
    axes=st.sampled_from(list(LAYERS)),
    channels=st.tuples(CHANNELS, CHANNELS),
    kernel=EXTENTS,
    stride=EXTENTS,
    pixels=st.integers(1, 2**33),
    arithmetic=st.sampled_from([(2, False), (4, False), (4, True)]),
    device=st.sampled_from([ADA, A100, HOPPER, (99 * 1024, 1)]),
)
@example(  # four stages of 256 rows on Ada
    axes=2, channels=(48, 128), kernel=3, stride=1, pixels=2**20, arithmetic=(4, False), device=ADA
)
@example(  # taps in two rounds
    axes=2, channels=(3, 96), kernel=11, stride=4, pixels=256 * 55 * 55, arithmetic=(4, True), device=HOPPER
)
@example(  # ten steps, halved
    axes=2, channels=(5, 128), kernel=8, stride=2, pixels=2**18, arithmetic=(4, True), device=HOPPER
)
@example(  # nine steps, halved and rounded up
    axes=2, channels=(20, 128), kernel=5, stride=1, pixels=2**18, arithmetic=(4, True), device=HOPPER
)
@example(  # planes one by one, where all taps would take nine steps of 128 channels
    axes=3, channels=(10, 128), kernel=3, stride=1, pixels=2**18, arithmetic=(4, True), device=HOPPER
)
@example(  # an A100 has room, and no registers for the sums of four warps
    axes=2, channels=(3, 96), kernel=11, stride=4, pixels=256 * 55 * 55, arithmetic=(4, False), device=A100
)
@example(axes=3, channels=(8, 128), kernel=3, stride=1, pixels=2**18, arithmetic=(4, True), device=A100)
def test_tiles_cover_the_product_and_fit(
    axes: int,
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    pixels: int,
    arithmetic: tuple[int, bool],
    device: tuple[int, int],
) -> None:
    """On three devices and on a single SM; conv1d asks for the memory alone."""
    room, _ = device
    module, (itemsize, split) = load(axes, "channels_last_gemm"), arithmetic
    with torch.device("meta"):
        layout = module.geometry(LAYERS[axes](*channels, kernel, stride))
    tile = module.tiles(layout, pixels, itemsize, split, *device[: 1 if axes == 1 else 2])
    taps, steps = kernel**axes, tile["DEPTH"] // tile["BK"]
    assert {tile[name].bit_count() for name in ("BM", "BN", "BK")} == {1}
    assert min(tile["BM"], tile["BN"], tile["BK"]) >= 16
    assert tile["DEPTH"] % tile["BK"] == 0
    rounds = -(-taps // 2), -(-kernel // 2)
    assert taps % tile["PATCH"] == 0 or (axes == 2 and split and tile["PATCH"] in rounds)
    assert channels[0] * tile["PATCH"] <= tile["DEPTH"] < channels[0] * tile["PATCH"] + tile["BK"]
    # one block of taps is unrolled, others walk a loop, and only the loop is shared
    assert tile["PATCH"] == 1 or (steps <= 16 and not tile["COPY"] and tile["PARTS"] == 1)
    # nine steps of three products over 128 x 128 compile for 8 s for Hopper, ten for 12 s, ten over half of
    # that for 6 s; for Ada sixteen take 10 s
    most = {1: 16, 2: 9 if room >= 200 * 1024 else 16, 3: 8 if tile["BN"] > 64 else 10}[axes]
    assert tile["PATCH"] == 1 or not split or steps <= most
    assert tile["PARTS"] == 1 or tile["PARTS"] * 8 <= taps * steps
    # 64 sums a thread; 128 on Hopper, for conv1d on an A100, or where x is copied past registers: steps of 16
    # leave others room for four stages of 256 x 128 (218 registers and none spilled, for an RTX 4090)
    many = room >= (128 if axes == 1 else 200) * 1024 or (tile["COPY"] and tile["BK"] == 16)
    sums = 128 if many else 64
    assert tile["BM"] * tile["BN"] <= sums * 32 * tile["num_warps"]
    step_bytes = (tile["BM"] + tile["BN"] * (2 if split else 1)) * tile["BK"] * itemsize
    assert step_bytes * tile["num_stages"] <= room


@given(
    axes=st.sampled_from(list(LAYERS)),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 9)),
    kernel=st.integers(1, 4),
    split=st.booleans(),
    rounds=st.sampled_from([1, 2]),
)
def test_packing_keeps_every_weight(
    axes: int, channels: tuple[int, int], kernel: int, split: bool, rounds: int
) -> None:
    module = load(axes, "channels_last_gemm")
    layer = LAYERS[axes](*channels, kernel)
    layout = module.geometry(layer)
    tile = module.tiles(layout, 10**6, 4, split)
    if axes == rounds == 2:
        tile = halve(layout, tile)
    packed = module.pack(layer.weight, layout, tile, tf32=not split, split=split)
    if split:
        packed = packed.sum(0)
    # [OC, taps, ICG] as `pack` promises, and zeros behind each patch
    weights = packed.reshape(channels[1], -1, tile["DEPTH"])
    width = tile["PATCH"] * channels[0]
    assert not weights[..., width:].any()
    patches = weights[..., :width].reshape(channels[1], -1, tile["PATCH"], channels[0])
    weights = torch.zeros(channels[1], kernel**axes, channels[0])
    for i_patch in range(patches.shape[1]):
        first = min(i_patch * tile["PATCH"], kernel**axes - tile["PATCH"])
        weights[:, first : first + tile["PATCH"]] += patches[:, i_patch]
    expected = layer.weight.detach().flatten(2).transpose(1, 2)
    assert (weights - expected).abs().max() <= (0 if split else 2**-11) * expected.abs().max()


@pytest.mark.parametrize("axes", LAYERS)
def test_packed_weights_are_tf32_to_nearest(axes: int) -> None:
    module = load(axes, "channels_last_gemm")
    layer = LAYERS[axes](7, 5, 2)
    layout = module.geometry(layer)
    tile = module.tiles(layout, 10**6, 4, False)
    packed = module.pack(layer.weight, layout, tile, tf32=True, split=False)
    assert not (packed.view(torch.int32) & 0x1FFF).any()
    weights = packed.flatten(1)[:, : 7 * 2**axes].reshape(5, -1, 7).transpose(1, 2)
    assert (weights / layer.weight.detach().flatten(2) - 1).abs().max() <= 2**-11


if __name__ == "__main__":
    child()
