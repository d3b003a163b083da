"""Print, warn and log in each call: output that nobody parses."""

import logging
import warnings

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        print("error: FAIL", x.shape, flush=True)
        warnings.warn("slow path", RuntimeWarning, stacklevel=1)
        logging.getLogger("kernel").error("no kernel image")
        y = super().forward(x)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
