# ruff: noqa: PLR0402 - in the form of candidates for KernelBench
import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def gated_kernel(value_ptr, gate_ptr, scale_ptr, offset_ptr, out_ptr, n_columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < n_columns
    value = tl.load(value_ptr + row * n_columns + columns, mask=mask)
    first = tl.load(gate_ptr + row * 2 * n_columns + columns, mask=mask)
    second = tl.load(gate_ptr + row * 2 * n_columns + n_columns + columns, mask=mask)
    offset = tl.load(offset_ptr + columns, mask=mask)
    scale = tl.load(scale_ptr + row)
    out = value * tl.sigmoid(first * scale) + second + offset
    tl.store(out_ptr + row * n_columns + columns, out, mask=mask)


class ModelNew(nn.Module):
    def __init__(self, in_features, out_features, shape_of_offset):
        super().__init__()
        self.value = nn.Linear(in_features, out_features)
        self.gate = nn.Linear(in_features, 2 * out_features, bias=False)
        self.offset = nn.Parameter(torch.randn(shape_of_offset) * 0.5)

    def forward(self, x, scale):
        value, gate = self.value(x), self.gate(x)
        out = torch.empty_like(value)
        gated_kernel[(x.shape[0],)](value, gate, scale, self.offset, out, value.shape[1], BLOCK=16)
        return out


def get_inputs():
    return [torch.rand(6, 24), torch.randn(6, 1)]


def get_init_inputs():
    return [24, 10, (1, 10)]


if __name__ == "__main__":
    print(ModelNew(*get_init_inputs())(*get_inputs()))
