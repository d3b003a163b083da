"""Set global switches for itself: threads, precision, denormals, determinism."""

import torch
from torch import nn

torch.set_num_threads(1)
torch.set_float32_matmul_precision("high")
torch.use_deterministic_algorithms(True)
torch.manual_seed(0)


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = super().forward(x)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
