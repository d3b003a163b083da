"""Two-dimensional convolution: KernelBench level 1, problems 50, 55, 56, 62, 63, 80 and 87, as sweeps.

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
LARGE = frozenset({"63", "87", "past-int32"})


class Shape(NamedTuple):
    """Input [batch, in_channels, height, width] and the layer; the defaults are problem 55."""

    batch: int = 8
    in_channels: int = 64
    out_channels: int = 128
    height: int = 512
    width: int = 1024
    kernel_size: PerAxis = 3
    stride: PerAxis = 1
    padding: PerAxis = 0
    dilation: PerAxis = 1
    groups: int = 1
    bias: bool = False


KERNELBENCH_55 = Shape()


class Model(nn.Module):
    """The reference: the whole constructor of `nn.Conv2d`; a kernel of 1 as default, for problem 87."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis = 1,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = (kernel_size, stride, padding, dilation)
        self.conv2d = nn.Conv2d(in_channels, out_channels, *sizes, groups, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, in_channels, height, width] to `output_shape`, in the dtype of x."""
        y: torch.Tensor = self.conv2d(x)
        return y


def get_inputs(shape: Shape = KERNELBENCH_55) -> list[torch.Tensor]:
    """Return the arguments of `forward`: one fp32 tensor, uniform in [0, 1)."""
    return [torch.rand(shape.batch, shape.in_channels, shape.height, shape.width)]


def get_init_inputs(shape: Shape = KERNELBENCH_55) -> list[PerAxis]:
    """Return the positional arguments of `Model`, without the trailing ones that are its defaults.

    A shape therefore asks no more of a constructor than it needs: a candidate for problem 55 can be built for
    every shape without bias, one for problem 80 for those without groups, one for 87 for pointwise ones.
    """
    optional = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": False}
    values = [(getattr(shape, name), default) for name, default in optional.items()]
    while values and values[-1][0] == values[-1][1]:
        values.pop()
    return [shape.in_channels, shape.out_channels, *(value for value, _ in values)]


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
    """Count output tiles of block_m pixels by block_n channels, every group tiled by itself."""
    batch, out_channels, *sizes = output_shape(shape)
    channels = shape.groups * _ceil_div(out_channels // shape.groups, block_n)
    return channels * _ceil_div(batch * math.prod(sizes), block_m)


def validate(shape: Shape) -> str | None:
    """Say in one line why the layer cannot exist and what to change, or return None."""
    complaint = _invalid_size(shape)
    if complaint:
        return complaint
    for name in ("in_channels", "out_channels"):
        channels = getattr(shape, name)
        if channels % shape.groups:
            return f"groups={shape.groups} does not divide {name}={channels}: choose a divisor of both"
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
    """Draw a hidden shape: any constructor argument, at most nine 64x64 tiles and 64 products an output."""

    def per_axis(*choices: int) -> PerAxis:
        size = rng.choice(choices)
        return rng.choice((size, (size, rng.choice(choices))))

    while True:
        groups = rng.choice((1, 1, 2, 3))
        shape = Shape(
            batch=rng.randint(1, 3),
            in_channels=groups * rng.randint(1, 9),
            out_channels=groups * rng.choice((1, 2, 7, 16, 17, 31, 64, 65)),
            height=rng.randint(1, 9),
            width=rng.randint(1, 11),
            kernel_size=per_axis(1, 2, 3, 4, 5),
            stride=per_axis(1, 2, 3),
            padding=per_axis(0, 0, 1, 2, 3),
            dilation=per_axis(1, 1, 2, 3),
            groups=groups,
            bias=rng.random() < 0.5,
        )
        if validate(shape) is not None or tiles(shape, 64, 64) > 9:
            continue
        products = shape.in_channels // groups * math.prod(axis.kernel_size for axis in axes(shape))
        # a layer that reads nothing but padding has nothing to check
        if products <= 64 and flops(shape):
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

    With 64 -> 64 channels for 128x64, and as many products per tile for the others, a tile is
    9.4 MFLOP: 15 us of one of 128 SMs at 82.6 TFLOP/s, long enough for a tail to show.
    """
    in_channels = 64 * 64 * 128 // (block_m * block_n)
    return Shape(images, in_channels, block_n, 8 + 2, block_m // 8 + 2, 3)


# Rows read: batch, in_channels, out_channels, height, width, kernel_size, stride, padding, dilation, groups.

# at most 8 programs and 2 K steps of a kernel with 64x64x32 tiles: seconds in Triton's interpreter
_SMOKE = {
    # the most common layer in miniature: padding keeps the size; odd channels leave K ragged
    "padded": Shape(1, 7, 8, 5, 6, 3, 1, 1),
    # height and width differ in every argument, so an exchange of the two shows
    "asymmetric": Shape(2, 5, 6, 9, 8, (2, 3), (3, 2), (0, 1), (1, 2)),
    # a group is neither one channel nor all of them; the bias is indexed across groups
    "groups": Shape(1, 6, 9, 5, 6, 3, 2, 1, groups=3, bias=True),
    # one channel each way, so channel tiles are nearly empty
    "one-channel": Shape(1, 1, 1, 9, 7, 5, 2, 2),
    # one output channel more than a tile, two full K steps
    "two-tiles": Shape(1, 64, 65, 5, 7, 1),
    # a tile of pixels ends inside an image
    "three-images": Shape(3, 3, 5, 6, 7, 3, 1, 1),
    # padding beyond the kernel: the outermost outputs hold the bias alone
    "bias-only": Shape(2, 3, 4, 3, 2, 2, 2, 3, bias=True),
}

# labels are upstream's problem numbers, arguments are spelled as there
_KERNELBENCH = {
    # AlexNet's first layer: 3 channels and 121 taps, so K holds few channels; the only one with a bias
    "50": Shape(256, 3, 96, 224, 224, 11, 4, 2, bias=True),
    # the plain 3x3 layer on a wide image
    "55": KERNELBENCH_55,
    # asymmetric kernel on a tall image: K of 2240
    "56": Shape(8, 64, 128, 512, 256, (5, 7)),
    # half the channels and a wider kernel
    "62": Shape(8, 32, 64, 512, 512, (5, 9)),
    # few channels in, many out, on the largest images: the most operations
    "63": Shape(16, 16, 128, 1024, 1024, 3),
    # padded and dilated differently along each axis
    "80": Shape(8, 32, 64, 512, 512, (5, 9), 1, (2, 4), (2, 3)),
    # pointwise: a plain GEMM, bound by memory, 13 GB of it
    "87": Shape(16, 64, 128, 1024, 1024, 1),
}

# layers of real networks: 0.1 to 4 waves of 128x64 tiles on 128 SMs, where grid layout decides
_LAYERS = {
    # ResNet's stem: 3 channels and 49 taps, three quarters of a wave
    "resnet-stem-b1": Shape(1, 3, 64, 224, 224, 7, 2, 3),
    # ResNet's first 3x3 layer: a fifth of a wave, square channels
    "resnet-3x3-b1": Shape(1, 64, 64, 56, 56, 3, 1, 1),
    # its third stage for sixteen images: sides of 14, so no row is a multiple of anything
    "resnet-stage3-b16": Shape(16, 256, 256, 14, 14, 3, 1, 1),
    # its last stage: a quarter of a wave with 4608 products per output, where splitting K pays
    "resnet-stage4-b8": Shape(8, 512, 512, 7, 7, 3, 1, 1),
    # ResNet-50's expansion, pointwise: one K step of 64 and four times as many channels out
    "resnet50-expand-b1": Shape(1, 64, 256, 56, 56, 1),
    # its shortcut between stages: pointwise at stride 2, three quarters of the input are never read
    "resnet50-shortcut-b1": Shape(1, 256, 512, 56, 56, 1, 2),
    # ResNeXt-50 32x4d: 32 groups of 8 channels, an eighth of a channel tile each
    "resnext50-b1": Shape(1, 256, 256, 28, 28, 3, 1, 1, groups=32),
    # AlexNet's second layer, 5x5 in the two groups that once were two GPUs
    "alexnet-conv2-b1": Shape(1, 96, 256, 27, 27, 5, 1, 2, groups=2, bias=True),
    # ConvNeXt's stem: taps that do not overlap, so every input is read once
    "convnext-stem-b1": Shape(1, 3, 96, 224, 224, 4, 4, bias=True),
    # ConvNeXt's first downsampling, 2x2 at stride 2
    "convnext-down-b1": Shape(1, 96, 192, 56, 56, 2, 2, bias=True),
    # a vision transformer's patches: 16x16 at stride 16, a GEMM after a permutation
    "vit-patches-b16": Shape(16, 3, 768, 224, 224, 16, 16, bias=True),
    # MobileNetV2's expansion: 24 channels in fill no K step of 32
    "mobilenet-expand-b1": Shape(1, 24, 144, 56, 56, 1),
    # the bottom of U-Net, unpadded: exactly one wave
    "unet-bottom-b1": Shape(1, 512, 1024, 32, 32, 3, bias=True),
    # Stable Diffusion's U-Net with guidance, so two latents: two and a half waves
    "sd-unet-b2": Shape(2, 320, 320, 64, 64, 3, 1, 1, bias=True),
    # its innermost resolution: 11520 products for each of a few outputs
    "sd-unet-inner-b2": Shape(2, 1280, 1280, 8, 8, 3, 1, 1, bias=True),
    # Stable Diffusion's VAE: exactly two waves
    "sd-vae-b1": Shape(1, 512, 512, 64, 64, 3, 1, 1, bias=True),
    # DeepLab's atrous pyramid: taps 12 pixels apart on a side of 33
    "deeplab-aspp-b1": Shape(1, 2048, 256, 33, 33, 3, 1, 12, 12),
    # Inception's 1x7: one axis has no taps to share
    "inception-1x7-b8": Shape(8, 192, 192, 17, 17, (1, 7), 1, (0, 3)),
}

# sizes that divide nothing: every mask and every index is used
_RAGGED = {
    # odd sides, channels one past a tile
    "odd": Shape(3, 33, 65, 31, 37, 3, 2, 1),
    # every size is prime
    "prime": Shape(7, 61, 67, 53, 59, 5, 3, 2, bias=True),
    # the kernel covers the image: one output pixel, a fully connected layer
    "one-pixel": Shape(37, 129, 97, 7, 5, (7, 5)),
    # one channel in and out on a large image: K is 25
    "one-channel": Shape(4, 1, 1, 509, 511, 5, 2, 2),
    # one pixel and one channel less than whole tiles of 128x64x32
    "tile-minus-one": Shape(1, 31, 63, 127, 129, 3, 1, 1),
    # and one more
    "tile-plus-one": Shape(1, 33, 65, 145, 113, 3, 1, 1),
    # stride beyond the kernel: most inputs are never read
    "skipping": Shape(4, 40, 72, 141, 151, 2, 5),
    # stride and dilation share a factor: three quarters of the input are never read
    "holes": Shape(5, 48, 40, 45, 51, 3, 2, 2, 2, bias=True),
    # taps as far apart as half the image: half of the products fall outside it
    "far-taps": Shape(3, 24, 56, 41, 43, 3, 1, 20, 20),
    # 5 channels in and 7 out per group: a group starts at no multiple of a tile
    "odd-groups": Shape(6, 15, 21, 63, 65, 3, 2, 1, groups=3, bias=True),
    # depthwise: no channels to reduce over, so a matrix product is the wrong tool
    "depthwise": Shape(4, 93, 93, 61, 67, 3, 1, 1, groups=93),
    # padding beyond the kernel: the outermost outputs hold the bias alone
    "over-padded": Shape(4, 36, 44, 57, 59, 3, 2, (5, 4), bias=True),
    # one row: of a two-dimensional tile of pixels only a line is used
    "one-row": Shape(2, 48, 80, 1, 4099, (1, 9), (1, 4), (0, 2)),
    # every argument differs between the axes
    "asymmetric": Shape(3, 28, 52, 83, 47, (7, 2), (1, 3), (3, 0), (2, 1), 2, bias=True),
    # more than 2**31 outputs, so 32 bits do not hold an offset
    "past-int32": Shape(67, 1, 8, 2005, 2003, 3, bias=True),
}

SWEEPS = {"smoke": _SMOKE, "kernelbench": _KERNELBENCH, "layers": _LAYERS, "ragged": _RAGGED}
