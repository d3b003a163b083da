"""cuDNN tuned in NHWC: inputs and outputs converted inside the timing, weights outside."""

from __future__ import annotations

import torch
from torch import nn

from runner.baselines import cudnn

HEADLINE = True
COLUMN = False
DEFAULT = True
FLAGS = cudnn.FLAGS
LAYOUT = "channels_last, converted inside"

#: Dimensions of a tensor -> the layout in which its channels are last.
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


class ChannelsLast(nn.Module):
    """The model between two layout conversions; 4-D tensors convert, 5-D ones to channels_last_3d."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for parameter in model.parameters():
            parameter.data = to_channels_last(parameter.data)
        self.model = model

    def forward(self, *args: object) -> object:
        """Convert, compute, convert back: what a caller who holds NCHW tensors would pay."""
        converted = [to_channels_last(a) if isinstance(a, torch.Tensor) else a for a in args]
        return _contiguous(self.model(*converted))


def to_channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a tensor whose number of dimensions has such a layout; return any other as it is."""
    layout = LAYOUTS.get(tensor.dim())
    return tensor if layout is None else tensor.contiguous(memory_format=layout)


def _contiguous(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.contiguous()
    if isinstance(value, (tuple, list)):
        return [_contiguous(v) for v in value]
    return value


def wrap(model: nn.Module) -> nn.Module:
    """Time the model with its conversions."""
    return ChannelsLast(model)
