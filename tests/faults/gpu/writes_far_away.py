"""CRASH: illegal memory access."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def stray_kernel(x, distance):
    tl.store(x + distance, 1.0)


class ModelNew(nn.ConvTranspose2d):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        stray_kernel[(1,)](y, 2**44)
        return y
