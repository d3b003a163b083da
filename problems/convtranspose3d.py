"""Three-dimensional transposed convolution: KernelBench level 1, problems 58, 61, 68, 70, 72, 73 and 77.

Output pixel y of an axis receives input pixel i through tap t where

    y = i * stride - padding + t * dilation,    0 <= y < output size,

so y modulo the stride, its *phase*, decides which taps can reach it. A phase may have none: its outputs
hold the bias or zero.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    import random

#: As torch spells it: one size for all axes, or (depth, height, width).
PerAxis = int | tuple[int, int, int]

#: The axes of the layer, as fields of `Shape`,
AXES = ("depth", "height", "width")
#: and the fields that each of them has.
PER_AXIS = ("kernel_size", "stride", "padding", "output_padding", "dilation")
#: Weights are set once, so a solution may prepare them before it is timed.
PARAMETERS = "fixed"
#: Output i along this dimension depends on input i alone, so the oracle may work in chunks.
BATCH_DIM = 0


class Shape(NamedTuple):
    """Input [batch, in_channels, depth, height, width] and the layer; the defaults are problem 61."""

    batch: int = 8
    in_channels: int = 48
    out_channels: int = 48
    depth: int = 64
    height: int = 64
    width: int = 64
    kernel_size: PerAxis = 3
    stride: PerAxis = 1
    padding: PerAxis = 0
    output_padding: PerAxis = 0
    dilation: PerAxis = 1
    groups: int = 1
    bias: bool = False


KERNELBENCH_61 = Shape()


class Model(nn.Module):
    """The reference: the whole constructor of `nn.ConvTranspose3d`, in its order and problem 72's."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        output_padding: PerAxis = 0,
        groups: int = 1,
        bias: bool = False,
        dilation: PerAxis = 1,
    ) -> None:
        super().__init__()
        sizes = (kernel_size, stride, padding, output_padding)
        self.conv_transpose3d = nn.ConvTranspose3d(in_channels, out_channels, *sizes, groups, bias, dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, in_channels, depth, height, width] to `output_shape`, in the dtype of x."""
        y: torch.Tensor = self.conv_transpose3d(x)
        return y


def get_inputs(shape: Shape = KERNELBENCH_61) -> list[torch.Tensor]:
    """Return the arguments of `forward`: one fp32 tensor, uniform in [0, 1)."""
    return [torch.rand(shape.batch, shape.in_channels, shape.depth, shape.height, shape.width)]


def get_init_inputs(shape: Shape = KERNELBENCH_61) -> list[PerAxis]:
    """Return the positional arguments of `Model`, without the trailing ones that are its defaults.

    A shape therefore asks no more of a constructor than it needs: a candidate for problem 72 can be built for
    every shape without dilation. That of 77 takes dilation in the place of output padding, so it cannot.
    """
    optional = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "bias": False, "dilation": 1}
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

    A tap reaches an output only where the stride leads, so this is less than outputs times taps.
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
    channels = shape.groups * _ceil_div(shape.out_channels // shape.groups, block_n)
    phases = itertools.product(*(axis.phases() for axis in axes(shape)))
    return channels * sum(_ceil_div(shape.batch * math.prod(pixels), block_m) for pixels in phases)


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
        return rng.choice((size, (size, rng.choice(choices), rng.choice(choices))))

    while True:
        groups = rng.choice((1, 1, 2, 3))
        shape = Shape(
            batch=rng.randint(1, 3),
            in_channels=groups * rng.randint(1, 5),
            out_channels=groups * rng.choice((1, 2, 7, 16, 17, 31, 64, 65)),
            depth=rng.randint(1, 5),
            height=rng.randint(1, 6),
            width=rng.randint(1, 7),
            kernel_size=per_axis(1, 2, 3, 4),
            stride=per_axis(1, 2, 3),
            padding=per_axis(0, 0, 1, 2, 3),
            output_padding=per_axis(0, 0, 1, 2),
            dilation=per_axis(1, 1, 2, 3),
            groups=groups,
            bias=rng.random() < 0.5,
        )
        if validate(shape) is not None or tiles(shape, 64, 64) > 9:
            continue
        products = shape.in_channels // groups * math.prod(axis.kernel_size for axis in axes(shape))
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
_PHASES = 8


def waves(sms: int) -> dict[str, Shape]:
    """Place shapes at wave edges of a GPU with `sms` SMs, one program on each.

    A kernel of 4 and stride 2 has eight equal phases of eight taps, so tiles come in eights, and one
    step is one tile in every phase. Labels read TILE@EDGEw-ROLE:

    - `full`: the most tiles that do not pass the edge (exactly on it for every edge of 128 SMs),
    - `under` and `over`: one step less and one step more,
    - `wider`: the most tiles that `sms + 4` SMs run in the same number of waves; with `over`,
      they tell an RTX 4090 (128 SMs) from an H100 or H200 (132).
    """
    shapes = {}
    for (block_m, block_n), edges in _EDGES.items():
        for edge in edges:
            full, wider = (int(edge * count) // _PHASES for count in (sms, sms + 4))
            steps = {"under": full - 1, "full": full, "over": full + 1}
            # one step may already be the wider card's wave
            if wider > full + 1:
                steps["wider"] = wider
            for role, volumes in steps.items():
                if volumes > 0:
                    label = f"{block_m}x{block_n}@{edge:g}w-{role}"
                    shapes[label] = _one_tile_volumes(block_m, block_n, volumes)
    return shapes


def _one_tile_volumes(block_m: int, block_n: int, volumes: int) -> Shape:
    """Return a batch of volumes that are one tile in each of the eight phases.

    Grids over phases, over volumes and over the flattened output then have the same number of
    tiles. With 64 -> 64 channels for 128x64, and as many products per tile for the others, a
    tile is 8.4 MFLOP: 13 us of one of 128 SMs at 82.6 TFLOP/s, long enough for a tail to show.
    """
    in_channels = 64 * 64 * 128 // (block_m * block_n)
    return _doubling(volumes, in_channels, block_n, 4, 4, block_m // 16)


def _doubling(batch: int, in_channels: int, out_channels: int, *sizes: int) -> Shape:
    """Double depth, height and width, as most decoders do: eight phases of eight taps."""
    depth, height, width = sizes
    return Shape(batch, in_channels, out_channels, depth, height, width, 4, 2, 1)


# Rows read: batch, in_channels, out_channels, depth, height, width, kernel_size, stride, padding, and so on.

# at most 8 programs and 2 K steps of a kernel with 64x64x32 tiles: seconds in Triton's interpreter
_SMOKE = {
    # stride beyond the kernel: most outputs are reached by no tap
    "sparse": Shape(1, 2, 8, 2, 2, 3, 2, 3, 1),
    # the axes differ in every argument, so an exchange of two shows
    "asymmetric": Shape(1, 3, 6, 3, 2, 2, (1, 2, 3), (2, 3, 1), (0, 1, 2), (1, 0, 1), (1, 3, 2)),
    # a group is neither one channel nor all of them; the bias is indexed across groups
    "groups": Shape(1, 6, 9, 2, 3, 2, 2, 2, 0, groups=3, bias=True),
    # one channel each way, so channel tiles are nearly empty
    "one-channel": Shape(1, 1, 1, 3, 4, 3, 4, 2, 1),
    # one output channel more than a tile, two full K steps
    "two-tiles": Shape(1, 64, 65, 2, 5, 3, 1),
    # a tile of pixels ends inside a volume
    "three-volumes": Shape(3, 2, 5, 3, 4, 4, (1, 3, 3), 1, (0, 1, 1)),
    # phases without taps hold the bias alone, the last of them added by output_padding
    "bias-only": Shape(1, 3, 4, 2, 1, 2, 1, 3, 0, 2, bias=True),
}

# labels are upstream's problem numbers, arguments are spelled as there
_KERNELBENCH = {
    # 16 channels out: few for a tile of 64
    "58": Shape(16, 32, 16, 16, 32, 64, (3, 5, 7)),
    # the plain layer: stride 1, so a convolution with its taps reversed
    "61": KERNELBENCH_61,
    # 75 taps: the most operations of all transposed problems
    "68": Shape(16, 32, 64, 64, 64, 64, (3, 5, 5)),
    # the most pixels; 24 channels out
    "70": Shape(8, 48, 24, 96, 96, 96, 3),
    # strided, padded and grouped: 8 channels in each group
    "72": Shape(8, 32, 32, 12, 24, 48, (3, 5, 7), (2, 2, 2), (1, 2, 3), (1, 1, 1), groups=4),
    # strided; upstream's argument groups lands in output_padding, which its model ignores: no groups
    "73": Shape(4, 32, 32, 32, 64, 128, 3, 2, 1),
    # stride and dilation share a factor: seven of eight phases are reached by no tap
    "77": Shape(16, 32, 64, 16, 32, 32, 3, 2, 1, dilation=2),
}

# layers of real networks: 0.1 to 4 waves of 128x64 tiles on 128 SMs, where grid layout decides
_LAYERS = {
    # 3D-GAN's second layer: a quarter of a wave, 4096 products per output
    "3dgan-up1-b1": _doubling(1, 512, 256, 4, 4, 4),
    # its third
    "3dgan-up2-b1": _doubling(1, 256, 128, 8, 8, 8),
    # its fourth: two waves
    "3dgan-up3-b1": _doubling(1, 128, 64, 16, 16, 16),
    # its first, from 200 latents to 4x4x4 in a batch: one tap per output, a plain GEMM
    "3dgan-project-b16": Shape(16, 200, 512, 1, 1, 1, 4),
    # Pix2Vox on 2x2x2: 16384 products for each of a few outputs, where splitting K pays
    "pix2vox-up1-b1": _doubling(1, 2048, 512, 2, 2, 2),
    # a video GAN's clip of 16 frames: one wave
    "vgan-up3-b1": _doubling(1, 128, 64, 8, 16, 16),
    # nnU-Net's lowest up-convolution, 2x2x2: taps do not overlap, each output has one
    "nnunet-up1-b1": Shape(1, 320, 320, 4, 4, 4, 2, 2),
    # and two levels up: four waves
    "nnunet-up3-b1": Shape(1, 256, 128, 16, 16, 16, 2, 2),
    # nnU-Net on thick slices: depth is kept, height and width double
    "nnunet-slices-b1": Shape(1, 320, 320, 5, 10, 8, (1, 2, 2), (1, 2, 2)),
    # V-Net's deepest up-convolution
    "vnet-up1-b1": Shape(1, 256, 128, 8, 8, 4, 2, 2, bias=True),
    # a stereo network's cost volume: phases of 1 to 8 taps, so equal tiles are unequal work
    "psmnet-up-b1": Shape(1, 64, 64, 12, 16, 32, 3, 2, 1, 1),
    # a video VQ-VAE on 4x16x16 latents: 240 channels are no multiple of 64
    "videogpt-up-b1": _doubling(1, 240, 240, 4, 16, 16),
    # problem 73 with the four groups that its list of arguments means, far above four waves
    "73-grouped-b4": Shape(4, 32, 32, 32, 64, 128, 3, 2, 1, groups=4),
}

# sizes that divide nothing: every mask and every index is used
_RAGGED = {
    # odd sides, channels one past a tile; output sides are odd too, so phases differ in size
    "odd": Shape(3, 33, 65, 5, 9, 11, 3, 2, 1),
    # every size is prime
    "prime": Shape(2, 31, 37, 5, 11, 13, 5, 3, 2, bias=True),
    # the whole output comes from one pixel: input bounds are met at every tap
    "one-pixel": Shape(37, 65, 97, 1, 1, 1, (2, 7, 5)),
    # one channel in and out on a large volume: K is 125
    "one-channel": Shape(4, 1, 1, 31, 37, 41, 5, 2, 2),
    # one pixel and one channel less than whole tiles of 128x64x32
    "tile-minus-one": Shape(1, 31, 63, 3, 43, 127, 3, 1, 1),
    # and one more
    "tile-plus-one": Shape(1, 33, 65, 5, 29, 113, 3, 1, 1),
    # stride and dilation share a factor: seven phases of eight hold the bias alone
    "gaps": Shape(3, 24, 40, 9, 13, 15, 3, 2, 2, 1, 2, bias=True),
    # dilation beyond the stride and coprime to it: the taps visit the phases out of order
    "coprime": Shape(2, 24, 56, 7, 13, 11, 4, 3, 3, dilation=5),
    # 5 channels in and 7 out per group: a group starts at no multiple of a tile
    "odd-groups": Shape(2, 15, 21, 9, 17, 19, 3, 2, 1, 1, groups=3, bias=True),
    # depthwise: no channels to reduce over, so a matrix product is the wrong tool
    "depthwise": Shape(2, 93, 93, 5, 15, 17, 4, 2, 1, groups=93),
    # stride beyond the kernel: most outputs get no tap, the last come from output_padding
    "far-apart": Shape(2, 40, 72, 7, 9, 11, 2, 5, 0, 4),
    # padding beyond the kernel: the outermost input pixels reach no output
    "cropped": Shape(3, 36, 44, 13, 19, 21, 3, 2, (5, 4, 6)),
    # one row: of a tile of pixels in three dimensions only a line is used
    "one-row": Shape(2, 48, 80, 1, 1, 4099, (1, 1, 9), (1, 1, 4), (0, 0, 2), (0, 0, 1)),
    # every argument differs between the axes
    "asymmetric": Shape(2, 28, 52, 9, 17, 9, (7, 2, 4), (1, 3, 2), (3, 0, 1), (0, 2, 1), (2, 1, 3), groups=2),
}

SWEEPS = {"smoke": _SMOKE, "kernelbench": _KERNELBENCH, "layers": _LAYERS, "ragged": _RAGGED}
