"""Two-dimensional transposed convolution: KernelBench level 1, problem 81, as sweeps.

Output pixel y of an axis receives input pixel i through tap t where

    y = i * stride - padding + t * dilation,    0 <= y < output size,

so y modulo the stride, its *phase*, decides which taps can reach it. A phase may have none: in
problem 81 no tap reaches 64 % of the outputs, and they hold the bias or zero.
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

#: Weights are set once, so a solution may prepare them before it is timed.
PARAMETERS = "fixed"
#: Output i along this dimension depends on input i alone, so the oracle may work in chunks.
BATCH_DIM = 0


class Shape(NamedTuple):
    """Input [batch, in_channels, height, width] and the layer; the defaults are problem 81."""

    batch: int = 16
    in_channels: int = 32
    out_channels: int = 64
    height: int = 64
    width: int = 128
    kernel_size: PerAxis = 3
    stride: PerAxis = 5
    padding: PerAxis = 1
    output_padding: PerAxis = 0
    dilation: PerAxis = 2
    groups: int = 1
    bias: bool = False


KERNELBENCH_81 = Shape()


class Model(nn.Module):
    """The reference: the whole constructor of `nn.ConvTranspose2d`, arguments in the order of problem 81."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
        bias: bool = False,
        output_padding: PerAxis = 0,
        groups: int = 1,
    ) -> None:
        super().__init__()
        sizes = (kernel_size, stride, padding, output_padding)
        self.conv_transpose2d = nn.ConvTranspose2d(in_channels, out_channels, *sizes, groups, bias, dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, in_channels, height, width] to `output_shape`, in the dtype of x."""
        y: torch.Tensor = self.conv_transpose2d(x)
        return y


def get_inputs(shape: Shape = KERNELBENCH_81) -> list[torch.Tensor]:
    """Return the arguments of `forward`: one fp32 tensor, uniform in [0, 1)."""
    return [torch.rand(shape.batch, shape.in_channels, shape.height, shape.width)]


def get_init_inputs(shape: Shape = KERNELBENCH_81) -> list[int | tuple[int, int]]:
    """Return the positional arguments of `Model`, without the trailing ones that are its defaults.

    A shape therefore asks no more of a constructor than it needs: a candidate that knows the six
    arguments of KernelBench's problem 81 can be built for every shape without bias, output
    padding and groups.
    """
    optional = {"stride": 1, "padding": 0, "dilation": 1, "bias": False, "output_padding": 0, "groups": 1}
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
    output_padding: int
    dilation: int

    def output_size(self) -> int:
        """Return the output's pixels; below 1 means that the layer has no output (formula of torch)."""
        span = self.dilation * (self.kernel_size - 1) + 1
        return (self.size - 1) * self.stride + span - 2 * self.padding + self.output_padding

    def reaches(self) -> list[range]:
        """Return for each tap the input pixels that it carries to an output pixel."""
        last = self.output_size() - 1
        ranges = []
        for tap in range(self.kernel_size):
            offset = tap * self.dilation - self.padding
            start = max(0, -(offset // self.stride))
            ranges.append(range(start, min(self.size, (last - offset) // self.stride + 1)))
        return ranges

    def used(self) -> int:
        """Return how many input pixels reach an output pixel through any tap."""
        total = end = 0
        # from the last tap to the first, both ends of the ranges only move up
        for reach in reversed(self.reaches()):
            total += max(0, reach.stop - max(end, reach.start))
            end = reach.stop
        return total

    def phases(self) -> list[int]:
        """Return the output pixels of each phase that has any."""
        output_size = self.output_size()
        return [_ceil_div(output_size - phase, self.stride) for phase in range(min(self.stride, output_size))]


def axes(shape: Shape) -> tuple[Axis, Axis]:
    """Return the layer along the height and along the width; the one place where `PerAxis` is resolved."""
    layer = (shape.kernel_size, shape.stride, shape.padding, shape.output_padding, shape.dilation)
    vertical, horizontal = zip(*((v, v) if isinstance(v, int) else v for v in layer), strict=True)
    return Axis(shape.height, *vertical), Axis(shape.width, *horizontal)


def output_shape(shape: Shape) -> tuple[int, int, int, int]:
    """Return [batch, out_channels, output height, output width]."""
    height, width = (axis.output_size() for axis in axes(shape))
    return shape.batch, shape.out_channels, height, width


def flops(shape: Shape) -> int:
    """Count two operations for every product that reaches the output; adding the bias is not counted.

    The usual formula, outputs times all taps, gives 25 times as much for problem 81.
    """
    taps = math.prod(sum(map(len, axis.reaches())) for axis in axes(shape))
    return 2 * shape.batch * shape.out_channels * (shape.in_channels // shape.groups) * taps


def min_bytes(shape: Shape, itemsize: int) -> int:
    """Count each output and bias once, and each input and weight that some product uses, at `itemsize` bytes.

    A layer on one pixel uses few of its weights, so counting all of them would be no lower bound.
    """
    layer = axes(shape)
    inputs = shape.batch * shape.in_channels * math.prod(axis.used() for axis in layer)
    taps = math.prod(sum(map(bool, axis.reaches())) for axis in layer)
    weights = shape.in_channels * (shape.out_channels // shape.groups) * taps
    biases = shape.out_channels if shape.bias else 0
    return itemsize * (inputs + weights + biases + math.prod(output_shape(shape)))


def tiles(shape: Shape, block_m: int, block_n: int) -> int:
    """Count output tiles of block_m pixels by block_n channels, every phase and group tiled by itself."""
    height, width = axes(shape)
    pixels = (shape.batch * rows * columns for rows in height.phases() for columns in width.phases())
    channels = shape.groups * _ceil_div(shape.out_channels // shape.groups, block_n)
    return channels * sum(_ceil_div(count, block_m) for count in pixels)


def validate(shape: Shape) -> str | None:
    """Say in one line why the layer cannot exist and what to change, or return None."""
    complaint = _invalid_size(shape)
    if complaint:
        return complaint
    for name in ("in_channels", "out_channels"):
        channels = getattr(shape, name)
        if channels % shape.groups:
            return f"groups={shape.groups} does not divide {name}={channels}: choose a divisor of both"
    for name, axis in zip(("height", "width"), axes(shape), strict=True):
        limit = max(axis.stride, axis.dilation)
        if axis.output_padding >= limit:
            return (
                f"output_padding={axis.output_padding} along the {name}: must be below the larger of "
                f"stride and dilation, which is {limit}"
            )
        if axis.output_size() < 1:
            return (
                f"padding={axis.padding} along the {name} leaves an output of {axis.output_size()} pixels: "
                f"lower padding, or raise {name} or kernel_size"
            )
    return None


def _invalid_size(shape: Shape) -> str | None:
    """Check every field by itself."""
    for name in ("batch", "in_channels", "out_channels", "height", "width", "groups"):
        value = getattr(shape, name)
        if not isinstance(value, int) or value < 1:
            return f"{name}={value}: must be a whole number, at least 1"
    for name in ("kernel_size", "stride", "padding", "output_padding", "dilation"):
        least = 0 if name.endswith("padding") else 1
        value = getattr(shape, name)
        sizes = value if isinstance(value, tuple) else (value, value)
        if len(sizes) != 2 or not all(isinstance(size, int) and size >= least for size in sizes):
            return f"{name}={value}: must be a whole number, at least {least}, or one for each of two axes"
    if not isinstance(shape.bias, bool):
        return f"bias={shape.bias}: must be true or false"
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
            output_padding=per_axis(0, 0, 1, 2),
            dilation=per_axis(1, 1, 2, 3),
            groups=groups,
            bias=rng.random() < 0.5,
        )
        if validate(shape) is not None or tiles(shape, 64, 64) > 9:
            continue
        height, width = axes(shape)
        products = shape.in_channels // groups * height.kernel_size * width.kernel_size
        # a layer whose padding crops every product away has nothing to check
        if products <= 64 and flops(shape):
            return shape


# Tile (output pixels of one phase x output channels) -> edges in waves. Each edge is placed once, and
# the tiles share them: 128x64@0.5w-full is 64x64 at one wave, 64x64@4w-full is 128x64 at two.
_EDGES: dict[tuple[int, int], tuple[float, float]] = {
    (64, 64): (0.25, 4),
    (128, 64): (0.5, 1),
    (128, 128): (2, 8),
}


def waves(sms: int) -> dict[str, Shape]:
    """Place shapes at wave edges of a GPU with `sms` SMs and one tile at a time on each.

    A kernel of 4 and stride 2 has four equal phases of four taps, so tiles come in fours and
    one step is one tile in every phase. Labels read TILE@EDGEw-ROLE:

    - `full`: the most tiles that do not pass the edge (exactly on it for every edge of 128 SMs),
    - `under` and `over`: one step less and one step more,
    - `wider`: the most tiles that `sms + 4` SMs run in the same number of waves; with `over`,
      they tell an RTX 4090 (128 SMs) from an H100 or H200 (132).
    """
    shapes = {}
    for (block_m, block_n), edges in _EDGES.items():
        for edge in edges:
            full = int(edge * sms) // 4
            steps = {"under": full - 1, "full": full, "over": full + 1}
            # at one wave `over` is the wider card's full wave already
            if edge > 1:
                steps["wider"] = int(edge * (sms + 4)) // 4
            place = f"{block_m}x{block_n}@{edge:g}w"
            for role, images in steps.items():
                if images > 0:
                    shapes[f"{place}-{role}"] = _one_tile_images(block_m, block_n, images)
    return shapes


def _one_tile_images(block_m: int, block_n: int, images: int) -> Shape:
    """Return a batch of images that are one tile in each of the four phases.

    Grids over phases, over images and over the flattened output then have the same number of
    tiles. With 128 -> 64 channels for 128x64, and as many products per tile for the others, a
    tile is 8.4 MFLOP: 13 us of one of 128 SMs at 82.6 TFLOP/s, long enough for a tail to show.
    """
    in_channels = 128 * 64 * 128 // (block_m * block_n)
    return _doubling(images, in_channels, block_n, 8, block_m // 8)


def _doubling(batch: int, in_channels: int, out_channels: int, height: int, width: int) -> Shape:
    """Double height and width, as most decoders do: four phases of four taps."""
    return Shape(batch, in_channels, out_channels, height, width, 4, 2, 1, dilation=1)


# Rows read: batch, in_channels, out_channels, height, width, kernel_size, stride, padding.

# at most 8 programs and 2 K steps of a kernel with 64x64x32 tiles: seconds in Triton's interpreter
_SMOKE = {
    # problem 81 in miniature: most outputs are reached by no tap; odd channels leave K ragged
    "sparse": Shape(1, 7, 8, 3, 4),
    # height and width differ in every argument, so an exchange of the two shows
    "asymmetric": Shape(2, 5, 6, 4, 3, (2, 3), (3, 2), (0, 1), (1, 0), (1, 2)),
    # a group is neither one channel nor all of them; the bias is indexed across groups
    "groups": _doubling(1, 6, 9, 5, 6)._replace(groups=3, bias=True),
    # one channel each way, so channel tiles are nearly empty
    "one-channel": Shape(1, 1, 1, 9, 7, 5, 1, 2, dilation=1),
    # one output channel more than a tile, two full K steps
    "two-tiles": Shape(1, 64, 65, 5, 7, 1, 1, 0, dilation=1),
    # phases without taps hold the bias alone, the last of them added by output_padding
    "bias-only": Shape(2, 3, 4, 3, 2, 2, 4, 0, output_padding=3, dilation=1, bias=True),
}

# labels are upstream's problem numbers, arguments are spelled as there
_KERNELBENCH = {
    # square and dense: the most operations and bytes of the seven
    "57": Shape(8, 64, 64, 1024, 1024, 3, 1, 0, dilation=1),
    # asymmetric kernel on a square image
    "65": Shape(8, 64, 64, 512, 512, (3, 7), 1, 0, dilation=1),
    # the largest batch, twice as many channels out as in
    "69": Shape(64, 64, 128, 128, 256, (3, 5), 1, 0, dilation=1),
    # few channels on a large image: of the dense ones the nearest to memory-bound
    "71": Shape(8, 32, 32, 512, 1024, 3, 1, 0, dilation=1),
    # grouped, strided and dilated: half of the outputs are reached by no tap
    "75": Shape(16, 32, 64, 128, 256, (3, 5), (2, 3), (1, 2), dilation=(2, 1), groups=4),
    # padding keeps the size, as in a stride-1 decoder block
    "78": Shape(8, 32, 32, 512, 1024, (3, 7), (1, 1), (1, 3), dilation=1),
    # stride 5 and dilation 2: bound by writing, 64 % of it zeros
    "81": KERNELBENCH_81,
}

# decoders of real networks: 0.1 to 4 waves of 128x64 tiles on 128 SMs, where grid layout decides
_LAYERS = {
    # DCGAN's first layer on 100 latents: from one pixel, one tap per output, a plain GEMM
    "dcgan-project-b64": Shape(64, 100, 512, 1, 1, 4, 1, 0, dilation=1),
    # DCGAN as published, 5x5: the phases have 9, 6, 6 and 4 taps, so equal tiles are unequal work
    "dcgan-5x5-b16": Shape(16, 1024, 512, 4, 4, 5, 2, 2, output_padding=1, dilation=1),
    # DCGAN, third doubling: a batch makes the wave that one image would not
    "dcgan-up3-b16": _doubling(16, 128, 64, 16, 16),
    # DCGAN's image: 3 output channels leave most of any channel tile empty
    "dcgan-rgb-b16": _doubling(16, 64, 3, 32, 32),
    # U-Net's deepest up-convolution, 2x2 at stride 2: taps do not overlap, each output has one
    "unet-up1-b1": Shape(1, 1024, 512, 28, 28, 2, 2, 0, dilation=1, bias=True),
    # one level up: half the channels, sides that are no powers of two
    "unet-up2-b1": Shape(1, 512, 256, 52, 52, 2, 2, 0, dilation=1, bias=True),
    # pix2pix's innermost: a single pixel, 16 MB of fp32 weights of which a quarter is used
    "pix2pix-inner-b1": _doubling(1, 512, 512, 1, 1),
    # pix2pix after a skip connection: a quarter of a wave with a long K, where splitting K pays
    "pix2pix-up5-b1": _doubling(1, 1024, 256, 16, 16),
    # pix2pix's last but one at batch 1: exactly one wave
    "pix2pix-up7-b1": _doubling(1, 256, 64, 64, 64),
    # a VQ-VAE decoder on 32x32 latents: half a wave for one image
    "vqvae-up1-b1": _doubling(1, 256, 128, 32, 32),
    # and four waves for eight
    "vqvae-up1-b8": _doubling(8, 256, 128, 32, 32),
    # the 3x3 layer of Stable Diffusion's VAE decoder, written transposed: dense, stride 1
    "sd-vae-b1": Shape(1, 512, 512, 64, 64, 3, 1, 1, dilation=1, bias=True),
    # FSRCNN's last layer, three times larger: one channel out, nine phases of nine taps
    "fsrcnn-x3-b1": Shape(1, 56, 1, 80, 80, 9, 3, 4, output_padding=2, dilation=1, bias=True),
    # ESPCN's pixel shuffle as this layer: a 3x3 kernel for each of nine phases
    "espcn-x3-b1": Shape(1, 32, 1, 80, 80, 9, 3, 3, dilation=1, bias=True),
    # Mask R-CNN's mask head on twenty detections: many small images
    "mask-rcnn-b20": Shape(20, 256, 256, 14, 14, 2, 2, 0, dilation=1, bias=True),
    # pose estimation on a ResNet: an eighth of a wave, 8192 products per output
    "pose-up1-b1": _doubling(1, 2048, 256, 8, 6),
    # FCN-8s on 21 classes: 64 phases, each a small grid of its own
    "fcn8s-b1": Shape(1, 21, 21, 28, 28, 16, 8, 0, dilation=1),
}

# sizes that divide nothing: every mask and every index is used
_RAGGED = {
    # odd sides, channels one past a tile; output sides are odd too, so phases differ in size
    "odd": Shape(3, 33, 65, 31, 37, 3, 2, 1, dilation=1),
    # every size is prime
    "prime": Shape(7, 61, 67, 53, 59, 5, 3, 2, dilation=1, bias=True),
    # the whole output comes from one pixel: input bounds are met at every tap
    "one-pixel": Shape(37, 129, 97, 1, 1, (7, 5), 1, 0, dilation=1),
    # one channel in and out on a large image: K is 25
    "one-channel": Shape(4, 1, 1, 509, 511, 5, 2, 2, dilation=1),
    # one pixel and one channel less than whole tiles of 128x64x32
    "tile-minus-one": Shape(1, 31, 63, 127, 129, 3, 1, 1, dilation=1),
    # and one more
    "tile-plus-one": Shape(1, 33, 65, 145, 113, 3, 1, 1, dilation=1),
    # stride and dilation share a factor: three phases of four hold the bias alone
    "gaps": Shape(5, 48, 40, 45, 51, 3, 2, 2, output_padding=1, dilation=2, bias=True),
    # dilation beyond the stride and coprime to it: the taps visit the phases out of order
    "coprime": Shape(3, 24, 56, 41, 43, 4, 3, 3, dilation=5),
    # 5 channels in and 7 out per group: a group starts at no multiple of a tile
    "odd-groups": Shape(6, 15, 21, 63, 65, 3, 2, 1, output_padding=1, dilation=1, groups=3, bias=True),
    # depthwise: no channels to reduce over, so a matrix product is the wrong tool
    "depthwise": _doubling(4, 93, 93, 61, 67)._replace(groups=93),
    # stride beyond the kernel: most rows and columns get no tap, the last come from output_padding
    "far-apart": Shape(4, 40, 72, 29, 31, 2, 5, 0, output_padding=4, dilation=1),
    # padding beyond the kernel: the outermost input pixels reach no output
    "cropped": Shape(4, 36, 44, 57, 59, 3, 2, (5, 4), dilation=1),
    # one row: of a two-dimensional tile of pixels only a line is used
    "one-row": Shape(2, 48, 80, 1, 4099, (1, 9), (1, 4), (0, 2), output_padding=(0, 1), dilation=1),
    # every argument differs between the axes
    "asymmetric": Shape(3, 28, 52, 83, 47, (7, 2), (1, 3), (3, 0), (0, 2), (2, 1), groups=2, bias=True),
}

SWEEPS = {"smoke": _SMOKE, "kernelbench": _KERNELBENCH, "layers": _LAYERS, "ragged": _RAGGED}
