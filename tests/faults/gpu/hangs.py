"""TIMEOUT: no answer within."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def wait_kernel(flag):
    """Wait for a flag [1] that nobody sets."""
    while tl.atomic_add(flag, 0) == 0:
        pass


class ModelNew(nn.ConvTranspose2d):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wait_kernel[(1,)](torch.zeros(1, dtype=torch.int32, device=x.device))
        return super().forward(x)
