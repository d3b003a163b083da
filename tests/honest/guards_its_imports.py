"""Import what may be missing inside `try`, and pass: no fallback of the work."""

import torch
from torch import nn

try:
    import cupy
except ImportError:
    cupy = None
try:  # noqa: SIM105 - the point
    import apex  # noqa: F401 - the point
except (ImportError, AttributeError):
    pass


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = super().forward(x)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
