# ruff: noqa: PLR0402, UP008 - in the form of KernelBench's files
import torch
import torch.nn as nn


class Model(nn.Module):
    """Gate one projection by half of another, then add its other half and an offset."""

    def __init__(self, in_features, out_features, shape_of_offset):
        super(Model, self).__init__()
        self.value = nn.Linear(in_features, out_features)
        self.gate = nn.Linear(in_features, 2 * out_features, bias=False)
        self.offset = nn.Parameter(torch.randn(shape_of_offset) * 0.5)

    def forward(self, x, scale):
        first, second = self.gate(x).chunk(2, dim=1)
        return self.value(x) * torch.sigmoid(first * scale) + second + self.offset


batch_size = 6
in_features = 24
out_features = 10
shape_of_offset = (1, out_features)


def get_inputs():
    x = torch.rand(batch_size, in_features)
    scale = torch.randn(batch_size, 1)
    return [x, scale]


def get_init_inputs():
    return [in_features, out_features, shape_of_offset]
