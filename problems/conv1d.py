"""One-dimensional convolution: KernelBench level 1, problems 67 and 76, as sweeps.

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

#: The axes of the layer, as fields of `Shape`,
AXES = ("length",)
#: and the fields that each of them has.
PER_AXIS = ("kernel_size", "stride", "padding", "dilation")
#: Weights are set once, so a solution may prepare them before it is timed.
PARAMETERS = "fixed"
#: Output i along this dimension depends on input i alone, so the oracle may work in chunks.
BATCH_DIM = 0
#: Labels of rows that a card of 24 GB cannot hold, with the copies that judging needs.
LARGE = frozenset({"76", "past-int32"})


class Shape(NamedTuple):
    """Input [batch, in_channels, length] and the layer; the defaults are problem 67."""

    batch: int = 32
    in_channels: int = 64
    out_channels: int = 128
    length: int = 131072
    kernel_size: int = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False


KERNELBENCH_67 = Shape()


class Model(nn.Module):
    """The reference: the whole constructor of `nn.Conv1d`, arguments in the order of problem 67."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = (kernel_size, stride, padding, dilation)
        self.conv1d = nn.Conv1d(in_channels, out_channels, *sizes, groups, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, in_channels, length] to `output_shape`, in the dtype of x."""
        y: torch.Tensor = self.conv1d(x)
        return y


def get_inputs(shape: Shape = KERNELBENCH_67) -> list[torch.Tensor]:
    """Return the arguments of `forward`: one fp32 tensor, uniform in [0, 1)."""
    return [torch.rand(shape.batch, shape.in_channels, shape.length)]


def get_init_inputs(shape: Shape = KERNELBENCH_67) -> list[int]:
    """Return the positional arguments of `Model`, without the trailing ones that are its defaults.

    A shape therefore asks no more of a constructor than it needs: a candidate for problem 67 can be built
    for every shape. Problem 76's has no padding, so ours cannot be both.
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
    """Return the layer along its only axis."""
    return (Axis(shape.length, *(getattr(shape, name) for name in PER_AXIS)),)


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
            dilation=rng.choice((1, 1, 2, 3)),
            groups=groups,
            bias=rng.random() < 0.5,
        )
        if validate(shape) is not None or tiles(shape, 64, 64) > 9:
            continue
        products = shape.in_channels // groups * shape.kernel_size
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
                    shapes[label] = _one_tile_signals(block_m, block_n, count)
    return shapes


def _one_tile_signals(block_m: int, block_n: int, signals: int) -> Shape:
    """Return a batch of signals of one tile each, so that grids over signals and over the whole output agree.

    With 128 -> 64 channels for 128x64, and as many products per tile for the others, a tile is
    8.4 MFLOP: 13 us of one of 128 SMs at 82.6 TFLOP/s, long enough for a tail to show.
    """
    in_channels = 128 * 64 * 128 // (block_m * block_n)
    return Shape(signals, in_channels, block_n, block_m + 3, 4)


# Rows read: batch, in_channels, out_channels, length, kernel_size, stride, padding, dilation.

# at most 8 programs and 2 K steps of a kernel with 64x64x32 tiles: seconds in Triton's interpreter
_SMOKE = {
    # the most common layer in miniature: padding keeps the length; odd channels leave K ragged
    "padded": Shape(1, 7, 8, 29, 3, 1, 1),
    # stride and dilation together, as in problem 76
    "dilated": Shape(2, 5, 6, 41, 3, 3, 2, 4),
    # a group is neither one channel nor all of them; the bias is indexed across groups
    "groups": Shape(1, 6, 9, 31, 3, 2, 1, groups=3, bias=True),
    # one channel each way, so channel tiles are nearly empty
    "one-channel": Shape(1, 1, 1, 67, 25, 4, 11),
    # one output channel more than a tile, two full K steps
    "two-tiles": Shape(1, 64, 65, 35, 1),
    # a tile of pixels ends inside a signal
    "three-signals": Shape(3, 3, 5, 43, 3, 1, 1),
    # padding beyond the kernel: the outermost outputs hold the bias alone
    "bias-only": Shape(2, 3, 4, 3, 2, 2, 5, bias=True),
}

# labels are upstream's problem numbers, arguments are spelled as there
_KERNELBENCH = {
    # the plain layer on a long signal: bound by memory, 3.2 GB of it
    "67": KERNELBENCH_67,
    # strided and dilated: neighbouring taps read other residues; the input is just below 2**31 values
    "76": Shape(64, 64, 128, 524280, 3, 3, dilation=4),
}

# layers of real networks: 0.1 to 4 waves of 128x64 tiles on 128 SMs, where grid layout decides
_LAYERS = {
    # Whisper's first layer (small): 80 mel channels are no multiple of a K step
    "whisper-conv1-b1": Shape(1, 80, 768, 3000, 3, 1, 1, bias=True),
    # its second, which halves the length
    "whisper-conv2-b1": Shape(1, 768, 768, 3000, 3, 2, 1, bias=True),
    # wav2vec 2.0's first layer on a second of audio: one channel in, K of 10
    "wav2vec2-conv0-b1": Shape(1, 1, 512, 16000, 10, 5),
    # its second: three quarters of a wave, 1536 products per output
    "wav2vec2-conv1-b1": Shape(1, 512, 512, 3199, 3, 2),
    # its positional layer: 128 taps in 16 groups of 48 channels on two seconds
    "wav2vec2-position-b1": Shape(1, 768, 768, 99, 128, 1, 64, groups=16, bias=True),
    # and for eight clips
    "wav2vec2-position-b8": Shape(8, 768, 768, 99, 128, 1, 64, groups=16, bias=True),
    # HiFi-GAN's widest residual layer: 11 taps, 5 apart
    "hifigan-wide-b1": Shape(1, 256, 256, 800, 11, 1, 25, 5, bias=True),
    # its narrowest in training: 32 channels, half of a channel tile, on long signals
    "hifigan-narrow-b4": Shape(4, 32, 32, 8192, 7, 1, 9, 3, bias=True),
    # its last layer: one channel out, the rest of any channel tile empty
    "hifigan-out-b1": Shape(1, 32, 1, 8192, 7, 1, 3, bias=True),
    # EnCodec's last downsampling: kernel of 16 at stride 8 on a few hundred values
    "encodec-down4-b4": Shape(4, 256, 512, 600, 16, 8, 4, bias=True),
    # Demucs's first layer on a second of stereo at 44.1 kHz: K of 16
    "demucs-encoder-b1": Shape(1, 2, 64, 44100, 8, 4, bias=True),
    # Conv-TasNet's bottleneck: pointwise, a plain GEMM
    "tasnet-bottleneck-b1": Shape(1, 512, 128, 3199, 1, bias=True),
    # WaveNet's gate: two taps 512 apart
    "wavenet-gate-b1": Shape(1, 64, 128, 16384, 2, dilation=512, bias=True),
    # text as characters: 70 of them, seven taps, in batches as in training
    "char-cnn-b8": Shape(8, 70, 256, 1014, 7, bias=True),
}

# sizes that divide nothing: every mask and every index is used
_RAGGED = {
    # odd length, channels one past a tile
    "odd": Shape(3, 33, 65, 1031, 3, 2, 1),
    # every size is prime
    "prime": Shape(7, 61, 67, 3121, 5, 3, 2, bias=True),
    # the kernel covers the signal: one output value, a fully connected layer
    "one-pixel": Shape(37, 129, 97, 35, 35),
    # one channel in and out on a long signal: K is 25
    "one-channel": Shape(4, 1, 1, 65537, 25, 4, 11),
    # one value and one channel less than whole tiles of 128x64x32
    "tile-minus-one": Shape(1, 31, 63, 16383, 3, 1, 1),
    # and one more
    "tile-plus-one": Shape(1, 33, 65, 16385, 3, 1, 1),
    # stride beyond the kernel: most inputs are never read
    "skipping": Shape(4, 40, 72, 9973, 2, 5),
    # stride and dilation share a factor: half of the input is never read
    "holes": Shape(5, 48, 40, 4097, 3, 2, 2, 2, bias=True),
    # taps as far apart as half the signal: a third of the products fall outside it
    "far-taps": Shape(3, 24, 56, 1999, 3, 1, 999, 999),
    # more taps than a tile has values
    "long-kernel": Shape(2, 24, 40, 2053, 255, 1, 127),
    # 5 channels in and 7 out per group: a group starts at no multiple of a tile
    "odd-groups": Shape(6, 15, 21, 4095, 3, 2, 1, groups=3, bias=True),
    # depthwise, as in Mamba: no channels to reduce over, so a matrix product is the wrong tool
    "depthwise": Shape(4, 93, 93, 4099, 4, 1, 3, groups=93, bias=True),
    # padding beyond the kernel: the outermost outputs hold the bias alone
    "over-padded": Shape(4, 36, 44, 1259, 3, 2, 70, bias=True),
    # many short signals: a tile of pixels spans 25 of them
    "short": Shape(509, 48, 80, 5, 3, 1, 1),
    # more than 2**31 outputs, so 32 bits do not hold an offset
    "past-int32": Shape(67, 1, 8, 4006567, 3, bias=True),
}

SWEEPS = {"smoke": _SMOKE, "kernelbench": _KERNELBENCH, "layers": _LAYERS, "ragged": _RAGGED}
