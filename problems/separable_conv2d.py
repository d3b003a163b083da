"""Two-dimensional depthwise-separable convolution: KernelBench level 1, problem 86, as sweeps.

A depthwise layer, every channel by itself, then a pointwise one, with nothing between them. Output pixel y of
an axis reads input pixel i through tap t of the first where

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


class Shape(NamedTuple):
    """Input [batch, in_channels, height, width] and the layer; the defaults are problem 86."""

    batch: int = 16
    in_channels: int = 64
    out_channels: int = 128
    height: int = 512
    width: int = 512
    kernel_size: PerAxis = 3
    stride: PerAxis = 1
    padding: PerAxis = 1
    dilation: PerAxis = 1
    bias: bool = False


KERNELBENCH_86 = Shape()


class Model(nn.Module):
    """The reference: both layers, arguments in the order of problem 86."""

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
        self.depthwise = nn.Conv2d(in_channels, in_channels, *sizes, groups=in_channels, bias=bias)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, in_channels, height, width] to `output_shape`, in the dtype of x."""
        y: torch.Tensor = self.pointwise(self.depthwise(x))
        return y


def get_inputs(shape: Shape = KERNELBENCH_86) -> list[torch.Tensor]:
    """Return the arguments of `forward`: one fp32 tensor, uniform in [0, 1)."""
    return [torch.rand(shape.batch, shape.in_channels, shape.height, shape.width)]


def get_init_inputs(shape: Shape = KERNELBENCH_86) -> list[PerAxis]:
    """Return the positional arguments of `Model`, without the trailing ones that are its defaults.

    A shape therefore asks no more of a constructor than it needs: a candidate for problem 86 can be built
    for every shape.
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


def reached(axis: Axis) -> int:
    """Return how many output pixels any tap reaches; the others do not depend on the input."""
    total = end = 0
    # from the last tap to the first, both ends of what they reach only move up
    for tap, reach in reversed(list(enumerate(axis.reaches()))):
        if reach:
            first = (reach.start + axis.padding - tap * axis.dilation) // axis.stride
            total += max(0, first + len(reach) - max(end, first))
            end = first + len(reach)
    return total


def flops(shape: Shape) -> int:
    """Count two operations for every product of both layers that depends on the input; biases are not.

    Padding need not be multiplied, and pixels that hold the bias alone need no pointwise products.
    """
    layer = axes(shape)
    taps = math.prod(sum(map(len, axis.reaches())) for axis in layer)
    pixels = math.prod(map(reached, layer))
    return 2 * shape.batch * shape.in_channels * (taps + shape.out_channels * pixels)


def min_bytes(shape: Shape, itemsize: int) -> int:
    """Count outputs, biases, used inputs and used weights once, at `itemsize` bytes.

    What is between the two layers need not leave the chip, so it is not counted.
    """
    layer = axes(shape)
    inputs = shape.batch * shape.in_channels * math.prod(axis.used() for axis in layer)
    weights = shape.in_channels * math.prod(sum(map(bool, axis.reaches())) for axis in layer)
    if weights or shape.bias:
        weights += shape.in_channels * shape.out_channels
    biases = shape.in_channels + shape.out_channels if shape.bias else 0
    return itemsize * (inputs + weights + biases + math.prod(output_shape(shape)))


def tiles(shape: Shape, block_m: int, block_n: int) -> int:
    """Count output tiles of block_m pixels by block_n channels."""
    batch, out_channels, *sizes = output_shape(shape)
    return _ceil_div(out_channels, block_n) * _ceil_div(batch * math.prod(sizes), block_m)


def validate(shape: Shape) -> str | None:
    """Say in one line why the layer cannot exist and what to change, or return None."""
    complaint = _invalid_size(shape)
    if complaint:
        return complaint
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
        shape = Shape(
            batch=rng.randint(1, 3),
            in_channels=rng.choice((1, 2, 7, 16, 17, 31, 64)),
            out_channels=rng.choice((1, 2, 7, 16, 17, 31, 64, 65)),
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
        everywhere = all(reached(axis) == axis.output_size() for axis in axes(shape))
        # a layer that reads nothing but padding has nothing to check; and what no tap reaches has to be
        # right to one rounding, which the first bias times weights need not be
        if taps <= 64 and flops(shape) and (everywhere or not shape.bias):
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


def _one_tile_images(block_m: int, block_n: int, images: int) -> Shape:
    """Return a batch of images of one tile each, so that grids over images and over the whole output agree.

    With 512 -> 64 channels for 128x64, and as many pointwise products per tile for the others, a tile is
    9.0 to 9.6 MFLOP: 14 us of one of 128 SMs at 82.6 TFLOP/s, long enough for a tail to show.
    """
    in_channels = 512 * 64 * 128 // (block_m * block_n)
    return Shape(images, in_channels, block_n, 8 + 2, block_m // 8 + 2, 3, padding=0)


# Rows read: batch, in_channels, out_channels, height, width, kernel_size, stride, padding, dilation, bias.

# at most 8 programs and 2 K steps of a kernel with 64x64x32 tiles: seconds in Triton's interpreter
_SMOKE = {
    # the most common layer in miniature: padding keeps the size; odd channels leave K ragged
    "padded": Shape(1, 7, 8, 5, 6),
    # height and width differ in every argument, so an exchange of the two shows
    "asymmetric": Shape(2, 5, 6, 9, 8, (2, 3), (3, 2), (0, 1), (1, 2)),
    # the first bias passes through the pointwise weights
    "biases": Shape(1, 6, 9, 5, 6, 3, 2, 1, bias=True),
    # one channel each way, so channel tiles are nearly empty
    "one-channel": Shape(1, 1, 1, 25, 23, 5, 2, 2),
    # one output channel more than a tile, two full K steps
    "two-tiles": Shape(1, 64, 65, 5, 7),
    # a tile of pixels ends inside an image
    "three-images": Shape(3, 3, 5, 6, 7),
    # padding beyond the kernel: the outermost outputs are zero
    "zero-border": Shape(2, 3, 4, 3, 2, 2, 2, 3),
}

# labels are upstream's problem numbers, arguments are spelled as there
_KERNELBENCH = {
    # bound by memory as long as the first layer's output stays on the chip
    "86": KERNELBENCH_86,
}

# layers of real networks, without the norms and activations that some have in between: 0.1 to 4 waves of
# 128x64 tiles on 128 SMs, where grid layout decides
_LAYERS = {
    # MobileNet's first pair: 32 channels, so the pointwise layer is one K step
    "mobilenet-1-b1": Shape(1, 32, 64, 112, 112),
    # its first at stride 2
    "mobilenet-2-b1": Shape(1, 64, 128, 112, 112, 3, 2),
    # its five equal pairs on a side of 14: an eighth of a wave
    "mobilenet-7-b1": Shape(1, 512, 512, 14, 14),
    # its last, on 7x7: an image is half a tile of pixels
    "mobilenet-13-b1": Shape(1, 1024, 1024, 7, 7),
    # one and a half waves of a batch
    "mobilenet-5-b8": Shape(8, 256, 256, 28, 28),
    # Xception's entry on an odd side: nearly three waves
    "xception-entry-b1": Shape(1, 64, 128, 147, 147),
    # Xception's middle flow: 728 channels are no multiple of 64
    "xception-middle-b1": Shape(1, 728, 728, 19, 19),
    # EfficientDet's feature pyramid: a quarter of a wave
    "efficientdet-fpn-b1": Shape(1, 64, 64, 64, 64, bias=True),
    # and two waves
    "efficientdet-fpn-b8": Shape(8, 64, 64, 64, 64, bias=True),
    # NASNet's 7x7 on 168 channels
    "nasnet-7x7-b1": Shape(1, 168, 168, 42, 42, 7, 1, 3),
    # DeepLabV3+'s atrous pyramid: 2048 channels, taps 12 pixels apart on a side of 33
    "deeplab-aspp-b1": Shape(1, 2048, 256, 33, 33, 3, 1, 12, 12),
    # keyword spotting: a spectrogram's odd sides, in batches as in training
    "ds-cnn-b32": Shape(32, 64, 64, 25, 5),
}

# sizes that divide nothing: every mask and every index is used
_RAGGED = {
    # odd sides, channels one past a tile
    "odd": Shape(3, 33, 65, 31, 37, 3, 2),
    # every size is prime
    "prime": Shape(7, 61, 67, 53, 59, 5, 3, 2, bias=True),
    # the kernel covers the image: one output pixel
    "one-pixel": Shape(37, 129, 97, 7, 5, (7, 5), padding=0),
    # one channel in and out on a large image
    "one-channel": Shape(4, 1, 1, 509, 511, 5, 2, 2),
    # one pixel and one channel less than whole tiles of 128x64x32
    "tile-minus-one": Shape(1, 31, 63, 127, 129),
    # and one more
    "tile-plus-one": Shape(1, 33, 65, 145, 113),
    # stride beyond the kernel: most inputs are never read
    "skipping": Shape(4, 40, 72, 141, 151, 2, 5, 0),
    # stride and dilation share a factor: three quarters of the input are never read
    "holes": Shape(5, 48, 40, 45, 51, 3, 2, 2, 2, bias=True),
    # taps as far apart as half the image: half of the products fall outside it
    "far-taps": Shape(3, 24, 56, 41, 43, 3, 1, 20, 20),
    # many channels become one: all the work is in reading
    "many-to-one": Shape(2, 233, 1, 63, 65, bias=True),
    # and one becomes many: all the work is in writing
    "one-to-many": Shape(2, 1, 233, 63, 65),
    # padding beyond the kernel: the outermost outputs are zero
    "over-padded": Shape(4, 36, 44, 57, 59, 3, 2, (5, 4)),
    # one row: of a two-dimensional tile of pixels only a line is used
    "one-row": Shape(2, 48, 80, 1, 4099, (1, 9), (1, 4), (0, 2)),
    # every argument differs between the axes
    "asymmetric": Shape(3, 28, 52, 83, 47, (7, 2), (1, 3), (3, 0), (2, 1), bias=True),
}

SWEEPS = {"smoke": _SMOKE, "kernelbench": _KERNELBENCH, "layers": _LAYERS, "ragged": _RAGGED}
