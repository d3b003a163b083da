"""What it takes to write the output once: a floor to read times against, never the headline."""

from __future__ import annotations

import torch
from torch import nn

HEADLINE = False
COLUMN = True
DEFAULT = False
LAYOUT = "outputs alone"
FLAGS: dict[str, object] = {}


class Fill(nn.Module):
    """Allocates what the model gave for inputs of this form, and fills it with ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forms: dict[tuple[torch.Size, ...], list[torch.Tensor]] = {}

    def forward(self, *args: object) -> torch.Tensor | list[torch.Tensor]:
        """Call the model for a form's first inputs only, to learn the form of its outputs."""
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        key = tuple(tensor.shape for tensor in tensors)
        if key not in self.forms:
            given = self.model(*args)
            outputs = [given] if isinstance(given, torch.Tensor) else list(given)
            self.forms[key] = [torch.empty_like(y, device="meta") for y in outputs]
        filled = [torch.empty_like(y, device=tensors[0].device).fill_(1.0) for y in self.forms[key]]
        return filled[0] if len(filled) == 1 else filled


def wrap(model: nn.Module) -> nn.Module:
    """Time the writes without the model."""
    return Fill(model)
