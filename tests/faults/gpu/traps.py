"""CRASH: CUDA error."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def trap_kernel(x):
    value = tl.load(x)
    trapped = tl.inline_asm_elementwise(
        "trap; mov.b32 $0, $1;", "=r,r", [value], dtype=tl.float32, is_pure=False, pack=1
    )
    tl.store(x, trapped)


class ModelNew(nn.ConvTranspose2d):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        trap_kernel[(1,)](y)
        return y
