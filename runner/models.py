"""How a model is made for a cell, alike for a problem's reference and for what is held against it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

#: What a constructor draws and keeps outside of its state, it draws from this seed, as KernelBench seeds both
#: models alike. The state is the judge's, and drawn from the operating system's entropy.
SEED = 0


def construct(entry: Any, init: list[Any]) -> Any:
    """Call a model's constructor, its draws seeded."""
    torch.manual_seed(SEED)
    return entry(*init)


def settle(
    model: nn.Module, device: torch.device | None, dtype: torch.dtype, *, tables: bool = True
) -> nn.Module:
    """Take a model to its device and dtype, with tensors that are no parameters or buffers, and to its mode.

    That is training, which KernelBench leaves on: normalisation is by the batch. Dropout layers are off,
    since nobody knows the answer of a draw. Without `tables` those other tensors keep their dtype: a
    candidate knows what it made them for.
    """
    model = model.to(device=device, dtype=dtype)
    for layer in model.modules():
        for name, value in list(vars(layer).items()):
            if isinstance(value, torch.Tensor):
                cast = tables and value.is_floating_point()
                setattr(layer, name, value.to(device, dtype if cast else value.dtype))
        layer.training = "Dropout" not in type(layer).__name__
    return model
