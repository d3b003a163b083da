"""cuDNN tuned in NHWC: inputs and outputs converted inside the timing, weights outside."""

from __future__ import annotations

import torch
from torch import nn

from runner.baselines.cudnn import FLAGS as FLAGS

HEADLINE = True
LAYOUT = "channels_last, converted inside"


class ChannelsLast(nn.Module):
    """The model between two layout conversions; 4-D tensors convert, 5-D ones to channels_last_3d."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for layout in (torch.channels_last, torch.channels_last_3d):
            model = model.to(memory_format=layout)
        self.model = model

    def forward(self, *args: object) -> object:
        """Convert, compute, convert back: what a caller who holds NCHW tensors would pay."""
        return _contiguous(self.model(*map(_channels_last, args)))


def _channels_last(value: object) -> object:
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    if isinstance(value, torch.Tensor) and value.dim() in layouts:
        return value.contiguous(memory_format=layouts[value.dim()])
    return value


def _contiguous(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.contiguous()
    if isinstance(value, (tuple, list)):
        return [_contiguous(v) for v in value]
    return value


def wrap(model: nn.Module) -> nn.Module:
    """Time the model with its conversions."""
    return ChannelsLast(model)
