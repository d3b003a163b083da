"""PASS: what a solution prints is read by nobody and stops nothing."""

import os
import sys

import torch
from torch import nn

MEBIBYTE = bytes(2**20)


class ModelNew(nn.ConvTranspose2d):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(25):
            os.write(1, MEBIBYTE)
        sys.stderr.write("x" * 2**20)
        return super().forward(x)
