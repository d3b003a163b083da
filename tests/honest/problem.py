"""A linear layer with two ends: activations, many of them zero, and scores, masked with minus infinity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

PARAMETERS = "fixed"
BATCH_DIM = 0


class Shape(NamedTuple):
    """Input, mask and both outputs [batch, features]."""

    batch: int = 16
    features: int = 32


DEFAULT = Shape()


class Model(nn.Module):
    """The reference."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, features) / features**0.5)
        self.bias = nn.Parameter(torch.randn(features))

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map x, in its dtype, and keep, int64 of 0 and 1, to activations and scores."""
        y = x @ self.weight.T + self.bias
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))


def get_inputs(shape: Shape = DEFAULT) -> list[torch.Tensor]:
    """Return the arguments of `forward`: fp32, normal, and a mask."""
    size = (shape.batch, shape.features)
    return [torch.randn(size), torch.randint(2, size)]


def get_init_inputs(shape: Shape = DEFAULT) -> list[int]:
    """Return the argument of `Model`."""
    return [shape.features]


SWEEPS = {"smoke": {"square": DEFAULT, "odd": Shape(batch=3, features=19)}}
