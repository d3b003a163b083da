"""WRONG: instead of.

Some number, NaN or infinity stands where the answer should.
"""

import torch
from torch import nn


class ModelNew(nn.ConvTranspose2d):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(len(x), 8, 13, 18)
