"""The baselines themselves: layouts, arithmetic and what each asks of cuDNN or Inductor."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from runner import load
from runner.baselines import channels_last_free, fill
from runner.baselines import compile as compiled
from runner.contestant.build import set_arithmetic
from runner.schema import DTYPES, MATHS

if TYPE_CHECKING:
    from collections.abc import Iterator

SWITCHES = {"benchmark", "benchmark_limit", "deterministic"}


@pytest.fixture
def restored() -> Iterator[None]:
    known = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = known


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("name", [n for n in load.baseline_names() if n != "compile"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("math", MATHS)
def test_a_baseline_computes_in_the_arithmetic_of_its_cell(name: str, dtype: str, math: str) -> None:
    """What makes the headline like with like: one switch for both sides, and no baseline turns it."""
    module = import_module(f"runner.baselines.{name}")
    set_arithmetic(dtype, math)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    assert before == ((dtype != "fp32" or math == "tf32"),) * 2
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    wrapped = module.wrap(nn.Conv2d(4, 6, 3).to(kind))
    with torch.inference_mode():
        y = wrapped(torch.rand(2, 4, 5, 7).to(kind))
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    assert {parameter.dtype for parameter in wrapped.parameters()} == {y.dtype} == {kind}
    assert module.FLAGS.keys() <= SWITCHES


def test_fill_writes_what_the_model_would_and_calls_it_once_for_a_form() -> None:
    model = Noted()
    filled = fill.wrap(model)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    for batch in (2, 2, 4):
        x = torch.rand(batch, 3, 4, 4)
        forms = [(y.shape, y.dtype, y.stride()) for y in Noted()(x, 2)]
        given = filled(x, 2)
        assert [(y.shape, y.dtype, y.stride()) for y in given] == forms
        assert all(torch.equal(y, torch.ones_like(y)) for y in given)
    assert len(calls) == 2
    conv = fill.wrap(nn.Conv2d(3, 5, 3))
    assert conv(torch.rand(1, 3, 4, 4)).shape == (1, 5, 2, 2)


sizes = st.integers(1, 5)


@given(st.lists(sizes, min_size=4, max_size=5), sizes, st.booleans())
def test_the_free_layout_reads_and_writes_the_same_bytes(
    shape: list[int], out_channels: int, transposed: bool
) -> None:
    kinds = {(4, False): nn.Conv2d, (5, False): nn.Conv3d}
    kinds |= {(4, True): nn.ConvTranspose2d, (5, True): nn.ConvTranspose3d}
    batch, channels, *extents = shape
    model = kinds[len(shape), transposed](channels, out_channels, 3, padding=1)
    x = torch.randn(shape)
    with torch.inference_mode():
        expected = model(x.view(batch, *extents, channels).movedim(-1, 1))
        free = channels_last_free.wrap(model)
        y = free(x)
    assert y.shape == expected.shape
    assert y.is_contiguous()
    assert torch.allclose(y.view(batch, *y.shape[2:], out_channels).movedim(-1, 1), expected, atol=1e-5)


class Noted(nn.Module):
    """Keeps what it was given and gave back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 3, 1, 1))

    def forward(self, x: torch.Tensor, scale: int) -> list[torch.Tensor]:
        self.given, self.made = x, x * self.weight * scale
        return [self.made, self.made.sum(dim=(2, 3))]


def test_nothing_is_copied_on_either_side() -> None:
    model = Noted()
    x = torch.randn(2, 3, 4, 5)
    y, means = channels_last_free.wrap(model)(x, 2)
    assert model.given.is_contiguous(memory_format=torch.channels_last)
    assert model.given.data_ptr() == x.data_ptr()
    assert y.data_ptr() == model.made.data_ptr()
    assert y.shape == x.shape
    assert means.shape == (2, 3)
    assert torch.equal(y, 2 * x)


def test_where_there_is_no_such_layout_the_file_says_so() -> None:
    with pytest.raises(ValueError, match="channels_last_free: tensors of 3 dimensions"):
        channels_last_free.wrap(nn.Conv1d(2, 3, 3))


def test_compile_tunes_everything_but_captures_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor itself is left out: its C++ takes minutes on a busy machine."""
    compile_fx = pytest.importorskip("torch._inductor.compile_fx")
    asked: dict[str, Any] = {}

    def inductor(graph: torch.fx.GraphModule, _: object, config_patches: dict[str, Any], **__: object) -> Any:
        asked.update(config_patches)
        return graph.forward

    monkeypatch.setattr(compile_fx, "compile_fx", inductor)
    model, x = nn.Conv2d(2, 3, 3), torch.rand(1, 2, 5, 5)
    with torch.inference_mode():
        wrapped = compiled.wrap(model)
        assert not asked
        assert torch.equal(wrapped(x), model(x))
    assert asked["max_autotune"]
    assert not asked.get("triton.cudagraphs")


def test_which_run_when_none_is_named() -> None:
    assert load.default_baselines() == ["channels_last", "cudnn", "eager"]
    modules = {name: import_module(f"runner.baselines.{name}") for name in load.baseline_names()}
    assert [name for name, module in modules.items() if module.DEFAULT] == load.default_baselines()
    assert [name for name, module in modules.items() if module.HEADLINE] == [
        "channels_last",
        "cudnn",
        "eager",
    ]


def test_a_baseline_that_may_not_lead_never_runs_alone() -> None:
    default = tuple(load.default_baselines())
    assert load.chosen_baselines([]) == default
    assert load.chosen_baselines(["fill"]) == load.chosen_baselines(["fill", "fill"]) == (*default, "fill")
    assert load.chosen_baselines(["cudnn"]) == ("cudnn",)
    assert load.chosen_baselines(["fill", "cudnn"]) == ("fill", "cudnn")
    with pytest.raises(load.BadInput, match=r"'cuddn'.*cudnn"):
        load.chosen_baselines(["cuddn"])
