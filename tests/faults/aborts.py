"""CRASH: ended by SIGABRT."""

import os

import torch
from torch import nn


class ModelNew(nn.ConvTranspose2d):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False, dilation=dilation)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        os.abort()
