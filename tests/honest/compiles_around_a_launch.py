"""Wrap the launch of a kernel in torch.compile, which on a CPU would trace the interpreter."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def relu(x, y, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < size)
    tl.store(y + at, tl.maximum(values, 0.0), mask=at < size)


@torch.compile
def rectify(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    relu[(triton.cdiv(x.numel(), 256),)](x, y, x.numel(), BLOCK=256)
    return y


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x @ self.weight.T + self.bias
        return rectify(y), y.masked_fill(keep == 0, float("-inf"))
