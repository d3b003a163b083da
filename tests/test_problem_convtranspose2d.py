"""The problem file, executed as KernelBench executes it: in an empty namespace."""

from __future__ import annotations

import ast
import inspect
import math
import random
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

PATH = Path(__file__).parents[1] / "problems" / "convtranspose2d.py"
SOURCE = PATH.read_text(encoding="utf-8")


def execute() -> SimpleNamespace:
    namespace: dict[str, Any] = {}
    exec(compile(SOURCE, str(PATH), "exec"), namespace)  # noqa: S102  the file's contract, not a stranger's text
    return SimpleNamespace(**namespace)


problem = execute()
Shape = problem.Shape
ROWS = [(sweep, label, shape) for sweep, rows in problem.SWEEPS.items() for label, shape in rows.items()]
SMS = (108, 128, 132, 142)


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  repeatable on purpose


def per_axis(low: int, high: int) -> st.SearchStrategy[Any]:
    size = st.integers(low, high)
    return size | st.tuples(size, size)


@st.composite
def layers(draw: st.DrawFn) -> Any:
    """Small layers, many of them impossible."""
    return Shape(
        *(draw(st.integers(1, high)) for high in (3, 6, 6, 6, 6)),
        kernel_size=draw(per_axis(1, 4)),
        stride=draw(per_axis(1, 5)),
        padding=draw(per_axis(0, 5)),
        output_padding=draw(per_axis(0, 3)),
        dilation=draw(per_axis(1, 3)),
        groups=draw(st.sampled_from((1, 1, 2, 3))),
        bias=draw(st.booleans()),
    )


possible = layers().filter(lambda shape: problem.validate(shape) is None)
quick = settings(max_examples=200, deadline=None, database=None)


def products(shape: Any) -> list[tuple[int, ...]]:
    """List (input row, input column, tap row, tap column, output row, output column) by trying all."""
    vertical, horizontal = (
        [
            (i, t, y)
            for i in range(axis.size)
            for t in range(axis.kernel_size)
            for y in range(axis.output_size())
            if y == i * axis.stride - axis.padding + t * axis.dilation
        ]
        for axis in problem.axes(shape)
    )
    return [(ih, iw, th, tw, y, x) for ih, th, y in vertical for iw, tw, x in horizontal]


@quick
@given(possible)
def test_flops_and_bytes_equal_brute_force(shape: Any) -> None:
    reached = products(shape)
    weights_per_tap = shape.in_channels * shape.out_channels // shape.groups
    inputs = shape.batch * shape.in_channels * len({p[:2] for p in reached})
    weights = weights_per_tap * len({p[2:4] for p in reached})
    outputs = math.prod(problem.output_shape(shape)) + shape.out_channels * shape.bias
    assert problem.flops(shape) == 2 * shape.batch * weights_per_tap * len(reached)
    assert problem.min_bytes(shape, 2) == 2 * (inputs + weights + outputs)


@quick
@given(possible)
def test_torch_multiplies_as_often_and_gives_that_shape(shape: Any) -> None:
    model = problem.Model(*problem.get_init_inputs(shape))
    model.requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        parameter.fill_(1)
    if shape.bias:
        model.conv_transpose2d.bias.zero_()
    (x,) = problem.get_inputs(shape)
    # with ones everywhere each output is the number of products that reach it
    y = model.double()(torch.ones_like(x, dtype=torch.float64))
    assert y.shape == problem.output_shape(shape)
    assert problem.flops(shape) == 2 * int(y.sum())


@quick
@given(possible, st.sampled_from(((1, 1), (4, 2), (7, 64))))
def test_tiles_partition_the_outputs_by_phase_and_group(shape: Any, block: tuple[int, int]) -> None:
    batch, channels, height, width = problem.output_shape(shape)
    rows, columns = problem.axes(shape)
    phases = Counter((y % rows.stride, x % columns.stride) for y in range(height) for x in range(width))
    per_group = math.ceil(channels // shape.groups / block[1])
    pixel_tiles = sum(math.ceil(batch * pixels / block[0]) for pixels in phases.values())
    assert problem.tiles(shape, *block) == shape.groups * per_group * pixel_tiles


@pytest.mark.parametrize(
    ("label", "gflop", "fp32_bytes", "output"),
    [
        ("57", 618.5, 4_303_511_552, (8, 64, 1026, 1026)),
        ("65", 360.8, 1_082_499_072, (8, 64, 514, 518)),
        ("69", 515.4, 1_644_920_832, (64, 128, 130, 260)),
        ("71", 77.3, 1_076_928_512, (8, 32, 514, 1026)),
        ("75", 7.986, 873_486_336, (16, 64, 257, 766)),
        ("78", 179.9, 1_073_827_840, (8, 32, 512, 1024)),
        ("81", 4.757, 847_863_808, (16, 64, 318, 638)),
    ],
)
def test_kernelbench_figures(label: str, gflop: float, fp32_bytes: int, output: tuple[int, ...]) -> None:
    shape = problem.SWEEPS["kernelbench"][label]
    assert problem.flops(shape) / 1e9 == pytest.approx(gflop, rel=3e-4)
    assert problem.min_bytes(shape, 4) == fp32_bytes
    assert problem.output_shape(shape) == output


def test_problem_81_is_the_default_in_arguments_inputs_and_parameters() -> None:
    assert problem.get_init_inputs() == [32, 64, 3, 5, 1, 2]
    torch.manual_seed(42)
    (x,) = problem.get_inputs()
    model = problem.Model(*problem.get_init_inputs())
    torch.manual_seed(42)
    expected = torch.rand(16, 32, 64, 128)
    layer = torch.nn.ConvTranspose2d(32, 64, 3, stride=5, padding=1, dilation=2, bias=False)
    assert x.dtype == torch.float32
    assert torch.equal(x, expected)
    assert list(model.state_dict()) == ["conv_transpose2d.weight"]
    assert torch.equal(model.conv_transpose2d.weight, layer.weight)


@pytest.mark.parametrize(
    ("label", "arguments"),
    [
        ("57", [64, 64, 3]),
        ("65", [64, 64, (3, 7)]),
        ("69", [64, 128, (3, 5)]),
        ("71", [32, 32, 3]),
        ("78", [32, 32, (3, 7), (1, 1), (1, 3)]),
        ("81", [32, 64, 3, 5, 1, 2]),
        # upstream's model of 75 takes groups where that of 81 takes bias, so ours cannot be both
        ("75", [32, 64, (3, 5), (2, 3), (1, 2), (2, 1), False, 0, 4]),
    ],
)
def test_init_inputs_are_as_short_as_upstreams(label: str, arguments: list[Any]) -> None:
    assert problem.get_init_inputs(problem.SWEEPS["kernelbench"][label]) == arguments


@quick
@given(possible)
def test_the_model_is_the_layer_that_the_shape_describes(shape: Any) -> None:
    layer = problem.Model(*problem.get_init_inputs(shape)).conv_transpose2d
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "dilation")
    built = Shape(*shape[:5])._replace(**{name: getattr(layer, name) for name in (*names, "groups")})
    assert problem.axes(built) == problem.axes(shape)
    assert built[:3] == shape[:3]
    assert (layer.groups, layer.bias is not None) == (shape.groups, shape.bias)


def test_omitted_arguments_are_the_constructors_defaults() -> None:
    parameters = list(inspect.signature(problem.Model).parameters.values())
    plain = Shape(kernel_size=1, stride=1, padding=0, dilation=1)
    assert len(problem.get_init_inputs(plain)) == sum(p.default is p.empty for p in parameters)
    full = problem.get_init_inputs(plain._replace(groups=2))
    assert full[3:-1] == [p.default for p in parameters[3:-1]]


def test_an_output_depends_on_the_input_of_its_batch_index_alone() -> None:
    assert (problem.PARAMETERS, problem.BATCH_DIM) == ("fixed", 0)
    shape = problem.SWEEPS["smoke"]["asymmetric"]
    model = problem.Model(*problem.get_init_inputs(shape)).double()
    x = problem.get_inputs(shape)[0].double()
    assert torch.allclose(torch.cat([model(part) for part in x.split(1)]), model(x))


def test_imports() -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported == {"__future__", "math", "random", "torch", "typing"}


def test_shapes_and_counts_need_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Anything(type):
        def __getattr__(cls, name: str) -> type:
            return Anything(name, (), {})

    stub = ModuleType("torch")
    stub.nn = Anything("nn", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", stub)
    bare = execute()
    assert bare.SWEEPS == problem.SWEEPS
    assert bare.waves(128) == problem.waves(128)
    assert bare.random_shape(seeded(3)) == problem.random_shape(seeded(3))
    assert bare.validate(bare.Shape(stride=0))
    assert bare.flops(bare.Shape()) == problem.flops(Shape())
    assert bare.min_bytes(bare.Shape(), 4) == problem.min_bytes(Shape(), 4)


def test_every_row_can_exist_and_fits_a_card() -> None:
    for sweep, label, shape in [*ROWS, *(("waves", label, s) for label, s in problem.waves(142).items())]:
        assert problem.validate(shape) is None, (sweep, label)
        assert problem.flops(shape) > 0, (sweep, label)
        assert problem.min_bytes(shape, 4) < 20e9, (sweep, label)
    assert list(problem.SWEEPS) == ["smoke", "kernelbench", "layers", "ragged"]
    assert min(len(problem.SWEEPS["layers"]), len(problem.SWEEPS["ragged"])) >= 8
    assert len({shape for _, _, shape in ROWS}) == len(ROWS)


def test_every_row_says_why_it_exists() -> None:
    lines = SOURCE.splitlines()
    labels = {f'    "{label}": ' for _, label, _ in ROWS}
    rows = [n for n, line in enumerate(lines) if any(line.startswith(label) for label in labels)]
    assert len(rows) == len(ROWS)
    assert all(lines[n - 1].startswith("    # ") for n in rows)


def gather_programs(shape: Any, block_m: int, block_n: int) -> int:
    """Count tiles of a grid over the flattened output, phases mixed."""
    batch, channels, height, width = problem.output_shape(shape)
    return math.ceil(batch * height * width / block_m) * math.ceil(channels / block_n)


def test_smoke_is_small_and_covers_the_constructor() -> None:
    shapes = problem.SWEEPS["smoke"].values()
    for shape in shapes:
        vertical, horizontal = problem.axes(shape)
        assert gather_programs(shape, 64, 64) <= 8, shape
        assert shape.in_channels // shape.groups * vertical.kernel_size * horizontal.kernel_size <= 64, shape
    for name in ("kernel_size", "stride", "padding", "output_padding", "dilation"):
        assert any(isinstance(getattr(shape, name), tuple) for shape in shapes), name
    assert any(shape.groups > 1 and shape.bias for shape in shapes)
    assert any(shape.in_channels == shape.out_channels == 1 for shape in shapes)


def test_layers_are_where_grid_layout_decides() -> None:
    for label, shape in problem.SWEEPS["layers"].items():
        assert 0.1 <= problem.tiles(shape, 128, 64) / 128 <= 4, label
        assert label.endswith(f"-b{shape.batch}")


def test_ragged_rows_are_what_they_are_called() -> None:
    ragged = problem.SWEEPS["ragged"]
    for label, step in (("tile-minus-one", -1), ("tile-plus-one", 1)):
        _, channels, height, width = problem.output_shape(ragged[label])
        assert (
            (height * width - step) % 128
            == (channels - step) % 64
            == (ragged[label].in_channels - step) % 32
            == 0
        )
    for name in ("gaps", "far-apart"):
        reached = {product[4:] for product in products(ragged[name]._replace(height=9, width=9))}
        small = problem.output_shape(ragged[name]._replace(height=9, width=9))
        assert len(reached) < math.prod(small[2:]) / 2
    assert problem.axes(ragged["cropped"])[0].used() < ragged["cropped"].height


@pytest.mark.parametrize("sms", SMS)
def test_wave_labels_tell_the_truth(sms: int) -> None:
    shapes = problem.waves(sms)
    assert 12 <= len(shapes) <= 21
    for label, shape in shapes.items():
        tile, _, rest = label.partition("@")
        edge, role = rest.split("w-")
        block_m, block_n = map(int, tile.split("x"))
        count, limit = problem.tiles(shape, block_m, block_n), float(edge) * sms
        if role == "wider":
            assert limit < count <= float(edge) * (sms + 4) < count + 4, label
        else:
            below, above = {"under": (4, 8), "full": (0, 4), "over": (-4, 0)}[role]
            assert count + below <= limit < count + above, label
        # a kernel may tile each phase, the flattened output or each image: the edge is the same
        assert count == gather_programs(shape, block_m, block_n), label
        assert count == shape.batch * problem.tiles(shape._replace(batch=1), block_m, block_n), label


def test_all_edges_of_128_sms_are_met_exactly() -> None:
    shapes = problem.waves(128)
    full = {
        (tile, problem.tiles(shape, *tile))
        for label, shape in shapes.items()
        if label.endswith("-full")
        for tile in ((64, 64), (128, 64), (128, 128))
        if tile[1] <= shape.out_channels
    }
    assert {count for _, count in full} >= {32, 64, 128, 256, 512, 1024}
    # the edges that tiles share
    assert full >= {((64, 64), 128), ((128, 64), 256), ((128, 64), 512), ((64, 64), 1024)}


def test_waves_tell_128_sms_from_132() -> None:
    shapes = problem.waves(128)
    for label in ("128x64@1w-over", "64x64@4w-wider", "128x128@2w-wider", "128x128@8w-wider"):
        block_m, block_n = map(int, label.partition("@")[0].split("x"))
        count = problem.tiles(shapes[label], block_m, block_n)
        assert math.ceil(count / 128) == math.ceil(count / 132) + 1, label
        assert count % 132 == 0, label


@pytest.mark.parametrize("sms", SMS)
def test_tiles_are_equal_work(sms: int) -> None:
    work = {
        label: problem.flops(shape) / problem.tiles(shape, *map(int, label.partition("@")[0].split("x")))
        for label, shape in problem.waves(sms).items()
    }
    assert max(work.values()) < 1.05 * min(work.values())
    assert max(work.values()) < 2 * 128 * 64 * 128 * 4


def test_few_sms_leave_out_what_has_no_tile() -> None:
    assert all(
        problem.validate(shape) is None for sms in range(1, 40) for shape in problem.waves(sms).values()
    )


def test_hidden_shapes_are_possible_small_and_varied() -> None:
    shapes = [problem.random_shape(seeded(seed)) for seed in range(400)]
    assert shapes == [problem.random_shape(seeded(seed)) for seed in range(400)]
    for shape in shapes:
        assert problem.validate(shape) is None
        assert problem.flops(shape) > 0
        assert problem.tiles(shape, 64, 64) <= 9
        assert gather_programs(shape, 64, 64) <= 9
    for name, default in Shape(kernel_size=1, stride=1, padding=0, dilation=1)._asdict().items():
        values = [getattr(shape, name) for shape in shapes]
        assert len({*values, default}) > 1, name
        if name in ("kernel_size", "stride", "padding", "output_padding", "dilation"):
            assert any(isinstance(v, tuple) and v[0] != v[1] for v in values), name
            assert any(isinstance(v, int) for v in values), name
    assert len(set(shapes)) == len(shapes)


@quick
@given(layers())
def test_validate_agrees_with_torch(shape: Any) -> None:
    x = torch.zeros(shape.batch, shape.in_channels, shape.height, shape.width, dtype=torch.float64)
    try:
        y = problem.Model(*problem.get_init_inputs(shape)).double()(x)
    except (ValueError, RuntimeError):
        assert problem.validate(shape) is not None
    else:
        assert problem.validate(shape) is None
        assert y.numel() > 0


@pytest.mark.parametrize(
    ("fields", "start", "remedy"),
    [
        ({"batch": 0}, "batch=0", "at least 1"),
        ({"in_channels": -3}, "in_channels=-3", "at least 1"),
        ({"height": (3, 4)}, "height=(3, 4)", "whole number"),
        ({"width": 2.5}, "width=2.5", "whole number"),
        ({"groups": 0}, "groups=0", "at least 1"),
        ({"kernel_size": 0}, "kernel_size=0", "at least 1"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size=(3, 3, 3)", "two axes"),
        ({"stride": (1, 0)}, "stride=(1, 0)", "at least 1"),
        ({"padding": -1}, "padding=-1", "at least 0"),
        ({"dilation": "2"}, "dilation=2", "whole number"),
        ({"bias": 2}, "bias=2", "true or false"),
        ({"groups": 3}, "groups=3 does not divide in_channels=32", "divisor of both"),
        ({"in_channels": 33, "groups": 3}, "groups=3 does not divide out_channels=64", "divisor of both"),
        ({"output_padding": 5}, "output_padding=5 along the height", "stride and dilation, which is 5"),
        ({"output_padding": (0, 7)}, "output_padding=7 along the width", "stride and dilation, which is 5"),
        ({"height": 1, "padding": 3}, "padding=3 along the height leaves an output of -1", "lower padding"),
        ({"width": 1, "padding": (0, 3)}, "padding=3 along the width leaves an output of -1", "raise width"),
    ],
)
def test_validate_names_field_and_remedy(fields: dict[str, Any], start: str, remedy: str) -> None:
    complaint = problem.validate(Shape(**fields))
    assert complaint.startswith(start)
    assert remedy in complaint
    assert "\n" not in complaint
