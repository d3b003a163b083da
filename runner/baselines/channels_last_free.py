"""cuDNN tuned in NHWC for a caller who lives there: no conversions, the same bytes read in another order.

Values are drawn at random, so any order of them is as good; only the layout counts. Since a problem is
given in NCHW this is no rival of a solution, but it shows what the conversions of `channels_last` cost.
"""

from __future__ import annotations

import torch
from torch import nn

from runner.baselines import cudnn
from runner.baselines.channels_last import LAYOUTS, to_channels_last

HEADLINE = False
COLUMN = True
DEFAULT = False
FLAGS = cudnn.FLAGS
LAYOUT = "channels_last, nothing converted"


class ChannelsLastFree(nn.Module):
    """The model on channels_last tensors that share the bytes of contiguous ones of the same shape.

    ValueError for a model whose weights are of one spatial axis, where there is no such layout.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        weights = {parameter.dim() for parameter in model.parameters()}
        if 3 in weights and not weights & LAYOUTS.keys():
            raise ValueError("channels_last_free: tensors of 3 dimensions have no channels_last layout")
        for parameter in model.parameters():
            parameter.data = to_channels_last(parameter.data)
        self.model = model

    def forward(self, *args: object) -> object:
        """Compute on `[N, C, ...]` inputs read as `[N, ..., C]`; the output's bytes pass as contiguous."""
        return _relabelled(self.model(*(_reread(a) if isinstance(a, torch.Tensor) else a for a in args)))


def _reread(tensor: torch.Tensor) -> torch.Tensor:
    """View contiguous bytes as a channels_last tensor of the same shape."""
    if tensor.dim() not in LAYOUTS:
        return tensor
    batch, channels, *sizes = tensor.shape
    return tensor.view(batch, *sizes, channels).movedim(-1, 1)


def _relabelled(value: object) -> object:
    """View the bytes of a channels_last output as contiguous; one in another layout is converted first."""
    if isinstance(value, torch.Tensor):
        return to_channels_last(value).movedim(1, -1).view(value.shape) if value.dim() in LAYOUTS else value
    if isinstance(value, (tuple, list)):
        return [_relabelled(v) for v in value]
    return value


def wrap(model: nn.Module) -> nn.Module:
    """Time the model between two changes of view."""
    return ChannelsLastFree(model)
