"""Three-dimensional convolution: KernelBench level 1, problems 54, 59, 60 and 66, as sweeps.

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

#: As torch spells it: one size for all axes, or (depth, height, width).
PerAxis = int | tuple[int, int, int]

#: The axes of the layer, as fields of `Shape`,
AXES = ("depth", "height", "width")
#: and the fields that each of them has.
PER_AXIS = ("kernel_size", "stride", "padding", "dilation")
#: Weights are set once, so a solution may prepare them before it is timed.
PARAMETERS = "fixed"
#: Output i along this dimension depends on input i alone, so the oracle may work in chunks.
BATCH_DIM = 0


class Shape(NamedTuple):
    """Input [batch, in_channels, depth, height, width] and the layer; the defaults are problem 54."""

    batch: int = 16
    in_channels: int = 3
    out_channels: int = 64
    depth: int = 64
    height: int = 64
    width: int = 64
    kernel_size: PerAxis = 3
    stride: PerAxis = 1
    padding: PerAxis = 0
    dilation: PerAxis = 1
    groups: int = 1
    bias: bool = False


KERNELBENCH_54 = Shape()


class Model(nn.Module):
    """The reference: the whole constructor of `nn.Conv3d`, arguments in the order of problem 54."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = (kernel_size, stride, padding, dilation)
        self.conv3d = nn.Conv3d(in_channels, out_channels, *sizes, groups, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, in_channels, depth, height, width] to `output_shape`, in the dtype of x."""
        y: torch.Tensor = self.conv3d(x)
        return y


def get_inputs(shape: Shape = KERNELBENCH_54) -> list[torch.Tensor]:
    """Return the arguments of `forward`: one fp32 tensor, uniform in [0, 1)."""
    return [torch.rand(shape.batch, shape.in_channels, shape.depth, shape.height, shape.width)]


def get_init_inputs(shape: Shape = KERNELBENCH_54) -> list[PerAxis]:
    """Return the positional arguments of `Model`, without the trailing ones that are its defaults.

    A shape therefore asks no more of a constructor than it needs: a candidate for problem 60 or 66 can be
    built for every shape. Problem 59's makes its kernel from one size, so ours cannot be both.
    """
    optional = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": False}
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
                    shapes[label] = _one_tile_volumes(block_m, block_n, count)
    return shapes


def _one_tile_volumes(block_m: int, block_n: int, volumes: int) -> Shape:
    """Return a batch of volumes of one tile each, so that grids over volumes and over the whole output agree.

    With 16 -> 64 channels for 128x64, and as many products per tile for the others, a tile is
    7.1 MFLOP: 11 us of one of 128 SMs at 82.6 TFLOP/s, long enough for a tail to show.
    """
    in_channels = 16 * 64 * 128 // (block_m * block_n)
    return Shape(volumes, in_channels, block_n, 4 + 2, 4 + 2, block_m // 16 + 2, 3)


# Rows read: batch, in_channels, out_channels, depth, height, width, kernel_size, stride, padding, dilation.

# at most 8 programs and 2 K steps of a kernel with 64x64x32 tiles: seconds in Triton's interpreter
_SMOKE = {
    # the most common layer in miniature: padding keeps the size; 54 products per output
    "padded": Shape(1, 2, 5, 3, 4, 5, 3, 1, 1),
    # the axes differ in every argument, so an exchange of two shows
    "asymmetric": Shape(2, 3, 6, 6, 9, 8, (1, 2, 3), (2, 3, 1), (0, 1, 2), (1, 3, 2)),
    # a group is neither one channel nor all of them; the bias is indexed across groups
    "groups": Shape(1, 6, 9, 4, 5, 3, 2, 2, 1, groups=3, bias=True),
    # one channel each way, so channel tiles are nearly empty
    "one-channel": Shape(1, 1, 1, 5, 7, 6, 3, 2, 1),
    # one output channel more than a tile, two full K steps
    "two-tiles": Shape(1, 64, 65, 2, 5, 3, 1),
    # a tile of pixels ends inside a volume
    "three-volumes": Shape(3, 2, 5, 3, 4, 4, (1, 3, 3), 1, (0, 1, 1)),
    # padding beyond the kernel: the outermost outputs hold the bias alone
    "bias-only": Shape(1, 3, 4, 2, 3, 2, 2, 2, 3, bias=True),
}

# labels are upstream's problem numbers, arguments are spelled as there
_KERNELBENCH = {
    # 3 channels and 27 taps: K of 81, more to write than to read
    "54": KERNELBENCH_54,
    # upstream lays the volume out as height, width and depth, and its kernel has one tap in depth
    "59": Shape(16, 3, 64, 256, 256, 10, (3, 3, 1)),
    # 105 taps: the most operations of the four
    "60": Shape(16, 3, 64, 64, 64, 64, (3, 5, 7)),
    # the same kernel on a flat volume
    "66": Shape(8, 3, 64, 16, 128, 128, (3, 5, 7)),
}

# layers of real networks: 0.1 to 4 waves of 128x64 tiles on 128 SMs, where grid layout decides
_LAYERS = {
    # R3D's stem: 343 taps of 3 channels, three waves
    "r3d-stem-b1": Shape(1, 3, 64, 16, 112, 112, (3, 7, 7), (1, 2, 2), (1, 3, 3)),
    # C3D, third block: one and a half waves, 3456 products per output
    "c3d-conv3a-b1": Shape(1, 128, 256, 8, 28, 28, 3, 1, 1, bias=True),
    # its last block for four clips: a quarter of a wave with a long K, where splitting K pays
    "c3d-conv5a-b4": Shape(4, 512, 512, 2, 7, 7, 3, 1, 1, bias=True),
    # R(2+1)D, the spatial half of a layer: one tap in depth, 230 channels out
    "r2plus1d-spatial-b1": Shape(1, 64, 230, 16, 56, 56, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    # and the temporal half: taps along depth only
    "r2plus1d-temporal-b1": Shape(1, 230, 128, 16, 28, 28, (3, 1, 1), (2, 1, 1), (1, 0, 0)),
    # SlowFast's lateral connection: every eighth frame of five, 8 channels in
    "slowfast-lateral-b1": Shape(1, 8, 16, 32, 56, 56, (5, 1, 1), (8, 1, 1), (2, 0, 0)),
    # I3D's first pointwise branch: a plain GEMM, a third of a wave
    "i3d-pointwise-b1": Shape(1, 192, 64, 8, 28, 28, 1),
    # ViViT's tubelets: taps that do not overlap, K of 1536
    "vivit-tubelets-b1": Shape(1, 3, 768, 32, 224, 224, (2, 16, 16), (2, 16, 16), bias=True),
    # a causal layer of a video VAE on one latent frame after two earlier ones: no padding in time
    "video-vae-b1": Shape(1, 512, 512, 3, 60, 90, 3, 1, (0, 1, 1), bias=True),
    # V-Net's fourth resolution, 5x5x5: 16000 products per output in a quarter of a wave
    "vnet-5x5x5-b1": Shape(1, 128, 128, 16, 16, 8, 5, 1, 2, bias=True),
    # nnU-Net's descent by stride 2
    "nnunet-down-b2": Shape(2, 128, 256, 32, 32, 32, 3, 2, 1, bias=True),
    # a stereo network's cost volume: 32 channels, half of a channel tile
    "psmnet-cost-b1": Shape(1, 32, 32, 24, 32, 64, 3, 1, 1),
    # grouped as in ResNeXt: 32 groups of 8 channels
    "resnext3d-b1": Shape(1, 256, 256, 4, 14, 14, 3, 1, 1, groups=32),
}

# sizes that divide nothing: every mask and every index is used
_RAGGED = {
    # odd sides, channels one past a tile
    "odd": Shape(3, 33, 65, 9, 15, 21, 3, 2, 1),
    # every size is prime
    "prime": Shape(2, 31, 37, 11, 29, 31, 5, 3, 2, bias=True),
    # the kernel covers the volume: one output pixel, a fully connected layer
    "one-pixel": Shape(37, 65, 97, 2, 7, 5, (2, 7, 5)),
    # one channel in and out on a large volume: K is 125
    "one-channel": Shape(4, 1, 1, 31, 61, 67, 5, 2, 2),
    # one pixel and one channel less than whole tiles of 128x64x32
    "tile-minus-one": Shape(1, 31, 63, 3, 43, 127, 3, 1, 1),
    # and one more
    "tile-plus-one": Shape(1, 33, 65, 5, 29, 113, 3, 1, 1),
    # stride beyond the kernel: most inputs are never read
    "skipping": Shape(2, 40, 72, 41, 43, 47, 2, 5),
    # stride and dilation share a factor: seven eighths of the input are never read
    "holes": Shape(3, 24, 40, 13, 25, 27, 3, 2, 2, 2, bias=True),
    # 5 channels in and 7 out per group: a group starts at no multiple of a tile
    "odd-groups": Shape(2, 15, 21, 15, 33, 35, 3, 2, 1, groups=3, bias=True),
    # depthwise: no channels to reduce over, so a matrix product is the wrong tool
    "depthwise": Shape(2, 93, 93, 7, 31, 33, 3, 1, 1, groups=93),
    # one image deep: two of three taps in depth meet padding only, their weights are never used
    "flat": Shape(2, 40, 56, 1, 63, 65, 3, 1, 1),
    # padding beyond the kernel: the outermost outputs hold the bias alone
    "over-padded": Shape(3, 36, 44, 9, 19, 21, 3, 2, (5, 4, 6), bias=True),
    # one row: of a tile of pixels in three dimensions only a line is used
    "one-row": Shape(2, 48, 80, 1, 1, 4099, (1, 1, 9), (1, 1, 4), (0, 0, 2)),
    # every argument differs between the axes
    "asymmetric": Shape(2, 28, 52, 19, 33, 37, (3, 2, 5), (1, 3, 2), (1, 0, 3), (2, 1, 3), 2, bias=True),
}

SWEEPS = {"smoke": _SMOKE, "kernelbench": _KERNELBENCH, "layers": _LAYERS, "ragged": _RAGGED}
