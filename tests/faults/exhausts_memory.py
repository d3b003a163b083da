"""OOM: host memory above."""

import torch
from torch import nn


class ModelNew(nn.ConvTranspose2d):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = [torch.ones(64 << 20, dtype=torch.uint8) for _ in range(32)]
        return steps[0][: x.numel()].to(x.dtype)
