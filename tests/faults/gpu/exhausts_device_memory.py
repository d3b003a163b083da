"""OOM: CUDA out of memory."""

import torch
from torch import nn


class ModelNew(nn.ConvTranspose2d):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = [super().forward(x)]
        while True:
            held.append(torch.empty(2**32, dtype=torch.uint8, device=x.device))
