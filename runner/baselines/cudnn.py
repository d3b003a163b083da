"""cuDNN tuned over every plan it offers, in the problem's layout."""

from __future__ import annotations

import torch
from torch import nn

HEADLINE = True


def configure() -> None:
    """Time all plans at a shape's first call; the default would try ten."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 0
    torch.backends.cudnn.deterministic = False


def wrap(model: nn.Module) -> nn.Module:
    """Time the model as it is."""
    return model
