"""Both solutions of convtranspose1d against float64 in Triton's interpreter, and their launches.

Triton reads TRITON_INTERPRET when it is imported, and the session that runs this file may have imported
it already. So one child, this file run as a script, computes all cases, and the tests read its answer.
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

FOLDER = Path(__file__).parents[1] / "solutions" / "convtranspose1d"
SOLUTIONS = "gather_gemm", "phase_gemm"
#: The interpreter computes every dot in fp32, so only phase_gemm, which rounds by itself, differs in tf32.
BUDGETS = {"tf32": 4e-4, "fp32": 1e-6, "fp16": 5e-4}


class Case(NamedTuple):
    """A layer and the input it is given."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    bias: bool = False
    output_padding: int = 0
    groups: int = 1
    batch: int = 1
    length: int = 5

    @property
    def layer(self) -> tuple[Any, ...]:
        """The arguments of `ModelNew`."""
        return self[:9]

    @property
    def output(self) -> int:
        """The output's length."""
        span = self.dilation * (self.kernel_size - 1) + 1
        return (self.length - 1) * self.stride - 2 * self.padding + span + self.output_padding


CASES = {
    "problem 64, smaller": Case(5, 17, 3, batch=2, length=20),
    "problem 74, smaller": Case(8, 9, 5, dilation=3, length=33),
    "problem 79, smaller": Case(8, 9, 3, 2, 1, 2, length=20),
    "an upsampling layer": Case(6, 5, 16, 8, 4, bias=True, batch=2),
    "more phases than columns": Case(1, 1, 40, 32, length=1),
    "more phases than two parts of w have room for": Case(1, 2, 300, 300, length=2),
    "channels past one step": Case(40, 3, 2),
    "wavegan's phases are unequal": Case(4, 3, 25, 4, 11, bias=True, output_padding=1, length=7),
    "two taps for seven phases": Case(2, 3, 2, 7, bias=True),
    "stride and dilation share a factor": Case(3, 4, 3, 6, 0, 4, bias=True),
    "fewer taps than phases": Case(2, 3, 3, 4, 1),
    "one value": Case(1, 1, 1, length=1),
    "output past the last tap": Case(2, 2, 2, 5, 0, 1, bias=True, output_padding=4, length=2),
    "padding beyond the kernel": Case(2, 2, 2, 1, 3, length=9),
    "depthwise": Case(5, 5, 3, 2, 1, bias=True, groups=5),
    "many short signals": Case(9, 4, 4, 2, 1, batch=9, length=2),
}


@st.composite
def layers(draw: st.DrawFn) -> Case:
    """Draw a layer with a short output, from everything that the constructor takes."""
    stride, dilation, groups = draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.integers(1, 3))
    case = Case(
        groups * draw(st.integers(1, 6)),
        groups * draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
        stride,
        draw(st.integers(0, 9)),
        dilation,
        draw(st.booleans()),
        draw(st.integers(0, max(stride, dilation) - 1)),
        groups,
        draw(st.integers(1, 3)),
        draw(st.integers(1, 20)),
    )
    shortest = max(1, -(-(case.length - case.output + 1) // stride) + case.length - 1)
    return case if case.output > 0 else case._replace(padding=0, length=min(shortest, 20))


@functools.cache
def load(name: str) -> ModuleType:
    """Return a solution's module; its folder is not a package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(case: Case) -> nn.ConvTranspose1d:
    """Return torch's layer."""
    channels_in, channels_out, kernel, stride, padding, dilation, bias, extra, groups = case.layer
    return nn.ConvTranspose1d(
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
    x = surrounded(torch.randn(case.batch, case.in_channels, case.length, dtype=dtype))
    model = module.ModelNew(*case.layer).to(dtype)
    model.load_state_dict({f"conv1d_transpose.{name}": value for name, value in layer.state_dict().items()})
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


def flipped(module: ModuleType) -> Any:
    """Return a patch of phase_gemm with the other order of tiles, and sums of three products kept apart."""
    tiles = module.tiles

    def others(*asked: Any) -> dict[str, Any]:
        tile = tiles(*asked)
        return tile | {"ROWS": not tile["ROWS"], "APART": asked[-1]}

    return mock.patch.object(module, "tiles", others)


def reloaded(module: ModuleType) -> list[bool]:
    """Say, twice for each of three sets of weights, whether the answer is that of the newest."""
    torch.backends.cudnn.allow_tf32 = False
    case = CASES["an upsampling layer"]
    layer, x = reference(case), torch.randn(case.batch, case.in_channels, case.length)
    model = module.ModelNew(*case.layer)
    answers = []
    with torch.no_grad():
        for seed, prepared in ((1, True), (2, False), (3, True)):
            torch.manual_seed(seed)
            for name, value in layer.state_dict().items():
                value.normal_()
                target = model.get_parameter(f"conv1d_transpose.{name}")
                # `data` hides the write from autograd's version counter, so that only `prepare` can tell
                (target.data if prepared else target).copy_(value)
            if prepared and hasattr(model, "prepare"):
                model.prepare()
            first, second = model(x), model(x)
            assert first.data_ptr() != second.data_ptr()
            answers += [torch.allclose(y, layer(x), atol=1e-5) for y in (first, second)]
    return answers


@settings(max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(case=layers(), name=st.sampled_from(SOLUTIONS))
def check_random_layer(case: Case, name: str) -> None:
    """Hold one solution on one random layer against torch; only the child calls this."""
    answer = measure(load(name), case, "fp32")
    assert answer["form"]
    assert answer["error"] <= BUDGETS["fp32"]


def child() -> None:
    """Print the answers to all cases as JSON; end in an error at a random layer that is wrong."""
    torch.set_num_threads(1)
    modules = {name: load(name) for name in SOLUTIONS}
    rows = [
        {"solution": name, "label": label, "arithmetic": arithmetic}
        | measure(modules[name], case, arithmetic)
        for (label, case), name, arithmetic in itertools.product(CASES.items(), SOLUTIONS, BUDGETS)
    ]
    with flipped(modules["phase_gemm"]):
        rows += [
            {"solution": "phase_gemm", "label": f"{label}, flipped", "arithmetic": "fp32"}
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
    assert len(rows) >= len(CASES)
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
    assert gather.output_extent(131072, 3, 2, 1, 2, 0) == 262145
    assert gather.launch_grid(16 * 262145, 64, 1) == (65537, 1)
    assert gather.launch_grid(65, 65, 3) == (2, 2, 3)


def test_a_stride_too_large_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"stride=1025: .* gather_gemm"):
        load("phase_gemm").ModelNew(1, 1, 1, 1025)


SIZES = st.integers(1, 9)


@given(stride=SIZES, dilation=SIZES, padding=st.integers(0, 9), kernel=SIZES)
def test_taps_have_one_phase_and_one_shift(stride: int, dilation: int, padding: int, kernel: int) -> None:
    phase = load("phase_gemm")
    phases = [(tap * dilation - padding) % stride for tap in range(kernel)]
    for tap, column in enumerate(phases):
        assert column == tap * dilation - padding + phase.shift(tap, stride, padding, dilation) * stride
    assert len(set(phases)) == min(kernel, phase.period(stride, dilation))
    ahead = phase.choose_ahead(kernel, stride, padding, dilation)
    assert 0 <= ahead < stride
    assert phase.count_shifts(kernel, stride, padding - ahead, dilation) == min(
        phase.count_shifts(kernel, stride, padding - one, dilation) for one in range(stride)
    )


@given(
    kernel=SIZES,
    stride=SIZES,
    padding=st.integers(0, 9),
    dilation=SIZES,
    channels=st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
def test_packing_keeps_every_weight(
    kernel: int, stride: int, padding: int, dilation: int, channels: tuple[int, int]
) -> None:
    phase = load("phase_gemm")
    with torch.device("meta"):
        layer = nn.ConvTranspose1d(*channels, kernel, stride, padding, dilation=dilation)
        small = phase.geometry(nn.ConvTranspose1d(2, 3, kernel, stride, padding, dilation=dilation))
    layout = phase.geometry(layer)
    assert layout["BE"] * layout["BI"] in {16, 32}
    assert layout["SHIFTS"] % layout["BE"] == layout["CHANNELS"] % layout["BI"] == 0
    assert layout["PHASES"] << layout["JOINS"] >= stride
    weight = torch.arange(1.0, 1 + 2 * 3 * kernel).reshape(2, 3, kernel)
    packed = phase.pack(weight, small, tf32=False, split=False)
    assert torch.equal(packed[packed > 0].sort().values, weight.flatten())
    high, low = phase.pack(weight / 3, small, tf32=False, split=True)
    assert not (high.view(torch.int32) & 0x1FFF).any()
    assert torch.equal((high + low)[packed > 0].sort().values, weight.flatten() / 3)


def test_packing_rounds_to_nearest_tf32() -> None:
    phase = load("phase_gemm")
    weight = torch.randn(2, 3, 1)
    layout = phase.geometry(nn.ConvTranspose1d(2, 3, 1))
    packed = phase.pack(weight, layout, tf32=True, split=False)[0, 0, 0, :, :2].T
    assert not (packed.contiguous().view(torch.int32) & 0x1FFF).any()
    assert ((packed / weight[..., 0]) - 1).abs().max() <= 2**-11


@settings(max_examples=40)
@given(
    channels=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    kernel=SIZES,
    stride=st.sampled_from((1, 2, 3, 5, 8, 300)),
    size=st.tuples(st.integers(1, 64), st.integers(1, 100_000)),
    split=st.booleans(),
)
def test_tiles_cover_the_output_and_fit(
    channels: tuple[int, int], kernel: int, stride: int, size: tuple[int, int], split: bool
) -> None:
    phase = load("phase_gemm")
    with torch.device("meta"):
        layout = phase.geometry(nn.ConvTranspose1d(*channels, kernel, stride))
    tile = layout | phase.tiles(layout, *size, split)
    rows, channel_tiles, groups = phase.launch_grid(layout, tile, *size)
    slots = layout["PHASES"] << layout["JOINS"]
    assert rows * tile["BM"] * stride >= size[0] * size[1]
    assert channel_tiles * tile["BOC"] >= channels[1]
    assert groups == 1
    assert {n.bit_count() for n in (tile["BM"], tile["BOC"], tile["BE"], tile["BI"])} == {1}
    assert tile["BM"] >= 16
    assert layout["PHASES"] * tile["BOC"] >= 16
    assert layout["CHANNELS"] % tile["BI"] == 0
    # 64 values a thread, unless the fewest columns and rows that a dot takes have more slots
    values = tile["BM"] * slots * tile["BOC"]
    assert values <= 2048 * tile["num_warps"] or (tile["BM"], layout["PHASES"] * tile["BOC"]) == (16, 16)


if __name__ == "__main__":
    child()
