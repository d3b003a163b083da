"""PyTorch as shipped, in the problem's layout."""

from __future__ import annotations

import torch
from torch import nn

HEADLINE = False


def configure() -> None:
    """Let cuDNN's heuristics choose the plan, as a user gets it without asking."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False


def wrap(model: nn.Module) -> nn.Module:
    """Time the model as it is."""
    return model
