"""Build and load a C library of its own, at import."""

import ctypes
import subprocess
from pathlib import Path

import torch
from torch import nn

SOURCE = r"""
void linear(const float *x, const float *w, const float *b, float *y, long rows, long n) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < n; j++) {
            float sum = b[j];
            for (long k = 0; k < n; k++) sum += x[i * n + k] * w[j * n + k];
            y[i * n + j] = sum;
        }
}
"""
Path("linear.c").write_text(SOURCE)
subprocess.run(["cc", "-O2", "-shared", "-fPIC", "linear.c", "-o", "linear.so"], check=True)
LIBRARY = ctypes.CDLL("./linear.so")


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.contiguous()
        y = torch.empty_like(x)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, self.weight, self.bias, y)]
        LIBRARY.linear(*pointers, ctypes.c_long(len(x)), ctypes.c_long(x.shape[1]))
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
