"""torch.compile with every kernel tuned: Inductor chooses among cuDNN's and its own, layouts included.

cuDNN's kernels obey the TF32 switches that the runner sets. Inductor's templates for 2-D convolutions ask
another one (torch 2.13) and stay in IEEE fp32, so the arithmetic is the cell's or a more precise one.
The first call compiles and tunes, which may take minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from runner.baselines import cudnn

HEADLINE = False
COLUMN = True
DEFAULT = False
LAYOUT = "as Inductor chooses"
FLAGS = cudnn.FLAGS


def wrap(model: nn.Module) -> Callable[..., Any]:
    """Time the compiled model, for one shape and without a CUDA graph of its own."""
    return torch.compile(model, mode="max-autotune-no-cudagraphs", dynamic=False)
