"""Convolve in channels-last inside: a layout that only the result must not have."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = x[:, :, None, None].contiguous(memory_format=torch.channels_last)
        y = nn.functional.conv2d(pixels, self.weight[:, :, None, None], self.bias)[:, :, 0, 0].contiguous()
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
