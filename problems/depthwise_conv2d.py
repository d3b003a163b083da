"""Two-dimensional depthwise convolution: KernelBench level 1, problems 82 to 85, as sweeps.

Every input channel is convolved by itself, with one kernel for each of its output channels (one or more).
Output pixel y of an axis reads input pixel i through tap t where

    i = y * stride - padding + t * dilation,    0 <= i < size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    import random

#: As torch spells it: one size for both axes, or (height, width).
PerAxis = int | tuple[int, int]

#: The axes of the layer, as fields of `Shape`,
AXES = ("height", "width")
#: and the fields that each of them has.
PER_AXIS = ("kernel_size", "stride", "padding", "dilation")
#: Weights are set once, so a solution may prepare them before it is timed.
PARAMETERS = "fixed"
#: Output i along this dimension depends on input i alone, so the oracle may work in chunks.
BATCH_DIM = 0
#: Labels of rows that a card of 24 GB cannot hold, with the copies that judging needs.
LARGE = frozenset({"84"})


class Shape(NamedTuple):
    """Input [batch, in_channels, height, width] and the layer; the defaults are problem 84."""

    batch: int = 64
    in_channels: int = 128
    out_channels: int = 128
    height: int = 256
    width: int = 512
    kernel_size: PerAxis = 3
    stride: PerAxis = 1
    padding: PerAxis = 0
    dilation: PerAxis = 1
    bias: bool = False

    @property
    def groups(self) -> int:
        """Every input channel is a group of its own."""
        return self.in_channels


KERNELBENCH_84 = Shape()


class Model(nn.Module):
    """The reference: `nn.Conv2d` with a group per input channel, arguments in the order of problem 84."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = (kernel_size, stride, padding, dilation)
        self.conv2d = nn.Conv2d(in_channels, out_channels, *sizes, groups=in_channels, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, in_channels, height, width] to `output_shape`, in the dtype of x."""
        y: torch.Tensor = self.conv2d(x)
        return y


def get_inputs(shape: Shape = KERNELBENCH_84) -> list[torch.Tensor]:
    """Return the arguments of `forward`: one fp32 tensor, uniform in [0, 1)."""
    return [torch.rand(shape.batch, shape.in_channels, shape.height, shape.width)]


def get_init_inputs(shape: Shape = KERNELBENCH_84) -> list[PerAxis]:
    """Return the positional arguments of `Model`, without the trailing ones that are its defaults.

    A shape therefore asks no more of a constructor than it needs. Upstream's four models have four different
    constructors: candidates for problem 84 can be built, the others need its arguments.
    """
    optional = {"stride": 1, "padding": 0, "dilation": 1, "bias": False}
    values = [(getattr(shape, name), default) for name, default in optional.items()]
    while values and values[-1][0] == values[-1][1]:
        values.pop()
    return [shape.in_channels, shape.out_channels, shape.kernel_size, *(value for value, _ in values)]


class Axis(NamedTuple):
    """The layer along one axis: sizes in pixels."""

    size: int
    kernel_size: int
    stride: int
    padding: int
    dilation: int

    def span(self) -> int:
        """Return the pixels from the first tap to the last."""
        return self.dilation * (self.kernel_size - 1) + 1

    def output_size(self) -> int:
        """Return the output's pixels; below 1 means that the layer has no output (formula of torch)."""
        return (self.size + 2 * self.padding - self.span()) // self.stride + 1

    def reaches(self) -> list[range]:
        """Return for each tap the input pixels that it carries to an output pixel."""
        ranges = []
        for tap in range(self.kernel_size):
            offset = tap * self.dilation - self.padding
            # before the image, the first pixel is the first one that a stride leads to
            start = offset if offset >= 0 else offset % self.stride
            stop = min(self.size, offset + self.output_size() * self.stride)
            ranges.append(range(start, stop, self.stride))
        return ranges

    def used(self) -> int:
        """Return how many input pixels reach an output pixel through any tap."""
        total = 0
        # input pixel modulo the stride -> the end of what is counted; from tap to tap it only moves up
        ends: dict[int, int] = {}
        for reach in self.reaches():
            phase = reach.start % self.stride
            total += len(range(max(reach.start, ends.get(phase, 0)), reach.stop, self.stride))
            ends[phase] = reach.start + len(reach) * self.stride
        return total


def axes(shape: Shape) -> tuple[Axis, ...]:
    """Return the layer along each axis; the one place where `PerAxis` is resolved."""
    layer = [_per_axis(getattr(shape, name)) for name in PER_AXIS]
    return tuple(Axis(getattr(shape, name), *sizes) for name, *sizes in zip(AXES, *layer, strict=True))


def _per_axis(size: PerAxis) -> tuple[int, ...]:
    return size if isinstance(size, tuple) else (size,) * len(AXES)


def output_shape(shape: Shape) -> tuple[int, ...]:
    """Return [batch, out_channels, and the output's size along each axis]."""
    return shape.batch, shape.out_channels, *(axis.output_size() for axis in axes(shape))


def flops(shape: Shape) -> int:
    """Count two operations for every product that reaches the output; adding the bias is not counted.

    Padding need not be multiplied: where there is any, this is less than outputs times taps.
    """
    taps = math.prod(sum(map(len, axis.reaches())) for axis in axes(shape))
    return 2 * shape.batch * shape.out_channels * (shape.in_channels // shape.groups) * taps


def min_bytes(shape: Shape, itemsize: int) -> int:
    """Count each output and bias once, and each input and weight that some product uses, at `itemsize` bytes.

    A stride beyond the kernel skips inputs, and a small image meets few taps: to count all is no lower bound.
    """
    layer = axes(shape)
    inputs = shape.batch * shape.in_channels * math.prod(axis.used() for axis in layer)
    taps = math.prod(sum(map(bool, axis.reaches())) for axis in layer)
    weights = shape.in_channels * (shape.out_channels // shape.groups) * taps
    biases = shape.out_channels if shape.bias else 0
    return itemsize * (inputs + weights + biases + math.prod(output_shape(shape)))


def tiles(shape: Shape, block_m: int, block_n: int) -> int:
    """Count output tiles of block_m pixels by block_n channels; a tile spans groups, which are channels."""
    batch, out_channels, *sizes = output_shape(shape)
    return _ceil_div(out_channels, block_n) * _ceil_div(batch * math.prod(sizes), block_m)


def validate(shape: Shape) -> str | None:
    """Say in one line why the layer cannot exist and what to change, or return None."""
    complaint = _invalid_size(shape)
    if complaint:
        return complaint
    if shape.out_channels % shape.in_channels:
        return (
            f"out_channels={shape.out_channels} is no multiple of in_channels={shape.in_channels}: "
            "every input channel has the same number of output channels"
        )
    for name, axis in zip(AXES, axes(shape), strict=True):
        if axis.output_size() < 1:
            return (
                f"kernel_size={axis.kernel_size} along the {name} spans {axis.span()} pixels of "
                f"{axis.size + 2 * axis.padding}: lower kernel_size or dilation, or raise {name} or padding"
            )
    return None


def _invalid_size(shape: Shape) -> str | None:
    """Check every field by itself."""
    for name, value in shape._asdict().items():
        least = 0 if name.endswith("padding") else 1
        rule = f"a whole number, at least {least}"
        if name in PER_AXIS:
            rule += f", or one for each of {', '.join(AXES)}"
            sizes = _per_axis(value)
            valid = len(sizes) == len(AXES) and all(isinstance(s, int) and s >= least for s in sizes)
        elif name == "bias":
            rule, valid = "true or false", isinstance(value, bool)
        else:
            valid = isinstance(value, int) and value >= least
        if not valid:
            return f"{name}={value}: must be {rule}"
    return None


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def random_shape(rng: random.Random) -> Shape:
    """Draw a hidden shape: any constructor argument, at most nine 64x64 tiles and 64 taps."""

    def per_axis(*choices: int) -> PerAxis:
        size = rng.choice(choices)
        return rng.choice((size, (size, rng.choice(choices))))

    while True:
        in_channels = rng.choice((1, 2, 7, 16, 17, 31, 64, 65))
        shape = Shape(
            batch=rng.randint(1, 3),
            in_channels=in_channels,
            out_channels=in_channels * rng.choice((1, 1, 2, 3)),
            height=rng.randint(1, 9),
            width=rng.randint(1, 11),
            kernel_size=per_axis(1, 2, 3, 4, 5),
            stride=per_axis(1, 2, 3),
            padding=per_axis(0, 0, 1, 2, 3),
            dilation=per_axis(1, 1, 2, 3),
            bias=rng.random() < 0.5,
        )
        if validate(shape) is not None or tiles(shape, 64, 64) > 9:
            continue
        taps = math.prod(axis.kernel_size for axis in axes(shape))
        # a layer that reads nothing but padding has nothing to check
        if taps <= 64 and flops(shape):
            return shape


# Tile (output pixels x output channels) -> edges in waves. Each edge is placed once, and the tiles share
# them: 128x64@0.5w-full is 64x64 at one wave, 64x64@4w-full is 128x64 at two.
_EDGES: dict[tuple[int, int], tuple[float, float]] = {
    (64, 64): (0.25, 4),
    (128, 64): (0.5, 1),
    (128, 128): (2, 8),
}


def waves(sms: int) -> dict[str, Shape]:
    """Place shapes at wave edges of a GPU with `sms` SMs, one program on each.

    Labels read TILE@EDGEw-ROLE:

    - `full`: the most tiles that do not pass the edge (exactly on it for every edge of 128 SMs),
    - `under` and `over`: one tile less and one tile more,
    - `wider`: the most tiles that `sms + 4` SMs run in the same number of waves; it tells an
      RTX 4090 (128 SMs) from an H100 or H200 (132).
    """
    shapes = {}
    for (block_m, block_n), edges in _EDGES.items():
        for edge in edges:
            full = int(edge * sms)
            counts = {"under": full - 1, "full": full, "over": full + 1}
            # below one wave both cards run one
            if edge >= 1:
                counts["wider"] = int(edge * (sms + 4))
            for role, count in counts.items():
                if count > 0:
                    label = f"{block_m}x{block_n}@{edge:g}w-{role}"
                    shapes[label] = _one_tile_images(block_m, block_n, count)
    return shapes


# Tile -> the kernel with which it is 0.4 MFLOP.
_KERNELS = {(64, 64): (7, 7), (128, 64): (5, 5), (128, 128): (3, 4)}


def _one_tile_images(block_m: int, block_n: int, images: int) -> Shape:
    """Return a batch of images of one tile each, so that grids over images and over the whole output agree.

    A tile of 128x64 reads and writes 94 kB in fp32: 12 us of one of 128 SMs' share of 1008 GB/s, long
    enough for a tail to show.
    """
    rows, columns = _KERNELS[block_m, block_n]
    return Shape(images, block_n, block_n, 8 + rows - 1, block_m // 8 + columns - 1, (rows, columns))


# Rows read: batch, in_channels, out_channels, height, width, kernel_size, stride, padding, dilation, bias.

# at most 8 programs and 2 K steps of a kernel with 64x64x32 tiles: seconds in Triton's interpreter
_SMOKE = {
    # the most common layer in miniature: padding keeps the size
    "padded": Shape(1, 7, 7, 5, 6, 3, 1, 1),
    # height and width differ in every argument, so an exchange of the two shows
    "asymmetric": Shape(2, 3, 3, 9, 8, (2, 3), (3, 2), (0, 1), (1, 2)),
    # two output channels for each input channel; the bias is indexed by the output's
    "multiplier": Shape(1, 3, 6, 5, 6, 3, 2, 1, bias=True),
    # one channel: an ordinary convolution with one channel each way
    "one-channel": Shape(1, 1, 1, 9, 7, 5, 2, 2),
    # one channel more than a tile
    "two-tiles": Shape(1, 65, 65, 4, 5, 3, 1, 1),
    # 64 taps, more than the image has pixels
    "large-kernel": Shape(1, 3, 3, 7, 6, 8, 1, 4),
    # padding beyond the kernel: the outermost outputs hold the bias alone
    "bias-only": Shape(2, 3, 3, 3, 2, 2, 2, 3, bias=True),
}

# labels are upstream's problem numbers, arguments are spelled as there
_KERNELBENCH = {
    # the plain 3x3 layer
    "82": Shape(16, 64, 64, 512, 512, 3),
    # three taps along the height only, few channels
    "83": Shape(64, 8, 8, 512, 512, (3, 1)),
    # the most channels and images: 8.5 GB
    "84": KERNELBENCH_84,
    # asymmetric kernel
    "85": Shape(32, 128, 128, 128, 256, (3, 7)),
}

# layers of real networks: 0.1 to 4 waves of 128x64 tiles on 128 SMs, where grid layout decides
_LAYERS = {
    # MobileNet's first: 32 channels on a large image
    "mobilenet-dw1-b1": Shape(1, 32, 32, 112, 112, 3, 1, 1),
    # MobileNetV2's first at stride 2
    "mobilenet-dw2-b1": Shape(1, 96, 96, 112, 112, 3, 2, 1),
    # MobileNetV2 on a side of 14: rows are no multiple of anything
    "mobilenet-dw11-b1": Shape(1, 576, 576, 14, 14, 3, 1, 1),
    # its last, on 7x7: an image is half a tile of pixels
    "mobilenet-dw17-b1": Shape(1, 960, 960, 7, 7, 3, 1, 1),
    # and for a batch
    "mobilenet-dw17-b32": Shape(32, 960, 960, 7, 7, 3, 1, 1),
    # EfficientNet-B0's 5x5
    "efficientnet-5x5-b1": Shape(1, 240, 240, 28, 28, 5, 1, 2),
    # ConvNeXt-T's first block: 7x7 with a bias, 49 reads of each input
    "convnext-stage1-b1": Shape(1, 96, 96, 56, 56, 7, 1, 3, bias=True),
    # and for eight images: three waves
    "convnext-stage1-b8": Shape(8, 96, 96, 56, 56, 7, 1, 3, bias=True),
    # its last stage: the kernel is as large as the image
    "convnext-stage4-b4": Shape(4, 768, 768, 7, 7, 7, 1, 3, bias=True),
    # RepLKNet: 31x31, the one layer here that is bound by arithmetic
    "replknet-31x31-b1": Shape(1, 128, 128, 56, 56, 31, 1, 15),
    # InceptionNeXt's band: eleven taps along the width, 12 channels
    "inceptionnext-band-b1": Shape(1, 12, 12, 56, 56, (1, 11), 1, (0, 5), bias=True),
    # Xception's middle flow: odd sides
    "xception-middle-b1": Shape(1, 728, 728, 19, 19, 3, 1, 1),
    # DeepLabV3+'s atrous pyramid: taps 12 pixels apart on a side of 33
    "deeplab-aspp-b1": Shape(1, 2048, 2048, 33, 33, 3, 1, 12, 12),
    # PVTv2's feed-forward block, with a bias
    "pvt-mlp-b1": Shape(1, 512, 512, 56, 56, 3, 1, 1, bias=True),
    # EEGNet's spatial filter: two outputs per channel, the kernel is the whole height
    "eegnet-spatial-b16": Shape(16, 8, 16, 22, 257, (22, 1)),
}

# sizes that divide nothing: every mask and every index is used
_RAGGED = {
    # odd sides, channels one past a tile
    "odd": Shape(3, 65, 65, 31, 37, 3, 2, 1),
    # every size is prime
    "prime": Shape(7, 61, 61, 53, 59, 5, 3, 2, bias=True),
    # the kernel covers the image: one output pixel for each channel
    "one-pixel": Shape(37, 129, 129, 7, 5, (7, 5)),
    # one channel on a large image
    "one-channel": Shape(4, 1, 1, 509, 511, 5, 2, 2),
    # one pixel and one channel less than whole tiles of 128x64
    "tile-minus-one": Shape(1, 63, 63, 127, 129, 3, 1, 1),
    # and one more
    "tile-plus-one": Shape(1, 65, 65, 145, 113, 3, 1, 1),
    # stride beyond the kernel: most inputs are never read
    "skipping": Shape(4, 72, 72, 141, 151, 2, 5),
    # stride and dilation share a factor: three quarters of the input are never read
    "holes": Shape(5, 48, 48, 45, 51, 3, 2, 2, 2, bias=True),
    # taps as far apart as half the image: half of the products fall outside it
    "far-taps": Shape(3, 56, 56, 41, 43, 3, 1, 20, 20),
    # three outputs per channel: an input channel's outputs straddle channel tiles
    "multiplier": Shape(6, 23, 69, 63, 65, 3, 2, 1, bias=True),
    # 67 outputs of the only channel, more than a tile
    "one-to-many": Shape(2, 1, 67, 93, 95, 3, 1, 1),
    # padding beyond the kernel: the outermost outputs hold the bias alone
    "over-padded": Shape(4, 44, 44, 57, 59, 3, 2, (5, 4), bias=True),
    # one row: of a two-dimensional tile of pixels only a line is used
    "one-row": Shape(2, 80, 80, 1, 4099, (1, 9), (1, 4), (0, 2)),
    # every argument differs between the axes
    "asymmetric": Shape(3, 26, 52, 83, 47, (7, 2), (1, 3), (3, 0), (2, 1), bias=True),
}

SWEEPS = {"smoke": _SMOKE, "kernelbench": _KERNELBENCH, "layers": _LAYERS, "ragged": _RAGGED}
