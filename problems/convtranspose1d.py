"""One-dimensional transposed convolution: KernelBench level 1, problems 64, 74 and 79, as sweeps.

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

#: The axes of the layer, as fields of `Shape`,
AXES = ("length",)
#: and the fields that each of them has.
PER_AXIS = ("kernel_size", "stride", "padding", "output_padding", "dilation")
#: Weights are set once, so a solution may prepare them before it is timed.
PARAMETERS = "fixed"
#: Output i along this dimension depends on input i alone, so the oracle may work in chunks.
BATCH_DIM = 0


class Shape(NamedTuple):
    """Input [batch, in_channels, length] and the layer; the defaults are problem 64."""

    batch: int = 64
    in_channels: int = 128
    out_channels: int = 128
    length: int = 65536
    kernel_size: int = 3
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False


KERNELBENCH_64 = Shape()


class Model(nn.Module):
    """The reference: the whole constructor of `nn.ConvTranspose1d`, arguments in the order of problem 74."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = False,
        output_padding: int = 0,
        groups: int = 1,
    ) -> None:
        super().__init__()
        sizes = (kernel_size, stride, padding, output_padding)
        self.conv1d_transpose = nn.ConvTranspose1d(in_channels, out_channels, *sizes, groups, bias, dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, in_channels, length] to `output_shape`, in the dtype of x."""
        y: torch.Tensor = self.conv1d_transpose(x)
        return y


def get_inputs(shape: Shape = KERNELBENCH_64) -> list[torch.Tensor]:
    """Return the arguments of `forward`: one fp32 tensor, uniform in [0, 1)."""
    return [torch.rand(shape.batch, shape.in_channels, shape.length)]


def get_init_inputs(shape: Shape = KERNELBENCH_64) -> list[int]:
    """Return the positional arguments of `Model`, without the trailing ones that are its defaults.

    A shape therefore asks no more of a constructor than it needs: a candidate for problem 74 or 79 can be
    built for every shape without bias, output padding and groups.
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


def axes(shape: Shape) -> tuple[Axis, ...]:
    """Return the layer along its only axis."""
    return (Axis(shape.length, *(getattr(shape, name) for name in PER_AXIS)),)


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
        if name == "bias":
            rule, valid = "true or false", isinstance(value, bool)
        else:
            rule, valid = f"a whole number, at least {least}", isinstance(value, int) and value >= least
        if not valid:
            return f"{name}={value}: must be {rule}"
    return None


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def random_shape(rng: random.Random) -> Shape:
    """Draw a hidden shape: any constructor argument, at most nine 64x64 tiles and 64 products an output."""
    while True:
        groups = rng.choice((1, 1, 2, 3))
        shape = Shape(
            batch=rng.randint(1, 3),
            in_channels=groups * rng.randint(1, 9),
            out_channels=groups * rng.choice((1, 2, 7, 16, 17, 31, 64, 65)),
            length=rng.randint(1, 60),
            kernel_size=rng.choice((1, 2, 3, 4, 5, 8)),
            stride=rng.choice((1, 2, 3)),
            padding=rng.choice((0, 0, 1, 2, 3)),
            output_padding=rng.choice((0, 0, 1, 2)),
            dilation=rng.choice((1, 1, 2, 3)),
            groups=groups,
            bias=rng.random() < 0.5,
        )
        if validate(shape) is not None or tiles(shape, 64, 64) > 9:
            continue
        products = shape.in_channels // groups * shape.kernel_size
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
_PHASES = 2


def waves(sms: int) -> dict[str, Shape]:
    """Place shapes at wave edges of a GPU with `sms` SMs, one program on each.

    A kernel of 4 and stride 2 has two equal phases of two taps, so tiles come in twos, and one
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
            for role, signals in steps.items():
                if signals > 0:
                    label = f"{block_m}x{block_n}@{edge:g}w-{role}"
                    shapes[label] = _one_tile_signals(block_m, block_n, signals)
    return shapes


def _one_tile_signals(block_m: int, block_n: int, signals: int) -> Shape:
    """Return a batch of signals that are one tile in each of the two phases.

    Grids over phases, over signals and over the flattened output then have the same number of
    tiles. With 256 -> 64 channels for 128x64, and as many products per tile for the others, a
    tile is 8.4 MFLOP: 13 us of one of 128 SMs at 82.6 TFLOP/s, long enough for a tail to show.
    """
    in_channels = 256 * 64 * 128 // (block_m * block_n)
    return Shape(signals, in_channels, block_n, block_m, 4, 2, 1)


# Rows read: batch, in_channels, out_channels, length, kernel_size, stride, padding, output_padding, dilation.

# at most 8 programs and 2 K steps of a kernel with 64x64x32 tiles: seconds in Triton's interpreter
_SMOKE = {
    # stride beyond the kernel: most outputs are reached by no tap; odd channels leave K ragged
    "sparse": Shape(1, 7, 8, 11, 3, 5, 1, 0, 2),
    # every argument at once
    "padded": Shape(2, 5, 6, 13, 4, 3, 2, 1, 2),
    # a group is neither one channel nor all of them; the bias is indexed across groups
    "groups": Shape(1, 6, 9, 15, 4, 2, 1, groups=3, bias=True),
    # one channel each way, so channel tiles are nearly empty
    "one-channel": Shape(1, 1, 1, 31, 25, 4, 11, 1),
    # one output channel more than a tile, two full K steps
    "two-tiles": Shape(1, 64, 65, 35, 1),
    # a tile of pixels ends inside a signal
    "three-signals": Shape(3, 3, 5, 21, 4, 2, 1),
    # phases without taps hold the bias alone, the last of them added by output_padding
    "bias-only": Shape(2, 3, 4, 3, 2, 4, 0, 3, bias=True),
}

# labels are upstream's problem numbers, arguments are spelled as there
_KERNELBENCH = {
    # the plain layer: stride 1, so a convolution with its taps reversed
    "64": KERNELBENCH_64,
    # dilated: five taps, three apart
    "74": Shape(32, 32, 64, 131072, 5, 1, 0, dilation=3),
    # stride and dilation share a factor: every other output is reached by no tap
    "79": Shape(16, 32, 64, 131072, 3, 2, 1, dilation=2),
}

# layers of real networks: 0.1 to 4 waves of 128x64 tiles on 128 SMs, where grid layout decides
_LAYERS = {
    # HiFi-GAN's first upsampling, eightfold with two taps per output: a quarter of a wave
    "hifigan-up1-b1": Shape(1, 512, 256, 100, 16, 8, 4, bias=True),
    # and in training: one wave
    "hifigan-up1-b16": Shape(16, 512, 256, 32, 16, 8, 4, bias=True),
    # its second, again eightfold
    "hifigan-up2-b1": Shape(1, 256, 128, 800, 16, 8, 4, bias=True),
    # its third, twofold on a longer signal
    "hifigan-up3-b1": Shape(1, 128, 64, 6400, 4, 2, 1, bias=True),
    # its last: 32 channels out, half of a channel tile
    "hifigan-up4-b1": Shape(1, 64, 32, 12800, 4, 2, 1, bias=True),
    # EnCodec's second upsampling: five phases, cropped afterwards, so nothing is padded here
    "encodec-up2-b1": Shape(1, 256, 128, 600, 10, 5, bias=True),
    # a codec for 44.1 kHz: 1536 channels in, phases of 86 values
    "dac-up1-b1": Shape(1, 1536, 768, 86, 16, 8, 4, bias=True),
    # WaveGAN: 25 taps at stride 4, so phases have 7, 6, 6 and 6, and equal tiles are unequal work
    "wavegan-up1-b1": Shape(1, 1024, 512, 16, 25, 4, 11, 1, bias=True),
    # two waves of it in training
    "wavegan-up1-b64": Shape(64, 1024, 512, 16, 25, 4, 11, 1, bias=True),
    # Demucs's last layer: two channels out, the rest of any channel tile empty
    "demucs-out-b1": Shape(1, 64, 2, 11024, 8, 4, bias=True),
    # Conv-TasNet's decoder: one channel out, eight phases of two taps
    "tasnet-decoder-b1": Shape(1, 512, 1, 1999, 16, 8),
    # WaveGlow's upsampling of spectrograms: 256 phases of four taps, each a small grid of its own
    "waveglow-upsample-b1": Shape(1, 80, 80, 63, 1024, 256, bias=True),
    # Jukebox's decoder: exactly one wave
    "jukebox-up-b1": Shape(1, 64, 64, 8192, 4, 2, 1, bias=True),
}

# sizes that divide nothing: every mask and every index is used
_RAGGED = {
    # odd length, channels one past a tile; the output's length is odd too, so phases differ in size
    "odd": Shape(3, 33, 65, 1031, 3, 2, 1),
    # every size is prime
    "prime": Shape(7, 61, 67, 1571, 5, 3, 2, bias=True),
    # the whole output comes from one value: input bounds are met at every tap
    "one-pixel": Shape(37, 129, 97, 1, 35),
    # one channel in and out on a long signal: K is 25
    "one-channel": Shape(4, 1, 1, 32771, 25, 2, 12),
    # one value and one channel less than whole tiles of 128x64x32
    "tile-minus-one": Shape(1, 31, 63, 16383, 3, 1, 1),
    # and one more
    "tile-plus-one": Shape(1, 33, 65, 16385, 3, 1, 1),
    # stride and dilation share a factor: half of the outputs hold the bias alone
    "gaps": Shape(5, 48, 40, 2049, 3, 2, 2, 1, 2, bias=True),
    # dilation beyond the stride and coprime to it: the taps visit the phases out of order
    "coprime": Shape(3, 24, 56, 1777, 4, 3, 3, dilation=5),
    # 5 channels in and 7 out per group: a group starts at no multiple of a tile
    "odd-groups": Shape(6, 15, 21, 2047, 3, 2, 1, 1, groups=3, bias=True),
    # depthwise: no channels to reduce over, so a matrix product is the wrong tool
    "depthwise": Shape(4, 93, 93, 4099, 4, 2, 1, groups=93),
    # stride beyond the kernel: most outputs get no tap, the last come from output_padding
    "far-apart": Shape(4, 40, 72, 997, 2, 5, 0, 4),
    # padding beyond the kernel: the outermost inputs reach no output
    "cropped": Shape(4, 36, 44, 1259, 3, 2, 25),
    # more taps than a tile has values
    "long-kernel": Shape(2, 24, 40, 509, 255, 4, 127),
    # many short signals: a tile of pixels spans 25 of them in each phase
    "short": Shape(509, 48, 80, 5, 4, 2, 1),
}

SWEEPS = {"smoke": _SMOKE, "kernelbench": _KERNELBENCH, "layers": _LAYERS, "ragged": _RAGGED}
