"""Build CUDA C++ by load_inline at import, and launch it on the current stream."""

import ctypes

import torch
from torch import nn
from torch.utils import cpp_extension

SOURCE = r"""
__global__ void linear(const float *x, const float *w, const float *b, float *y, int n) {
    int row = blockIdx.x, column = threadIdx.x;
    float sum = b[column];
    for (int k = 0; k < n; k++) sum += x[row * n + k] * w[column * n + k];
    y[row * n + column] = sum;
}
extern "C" int launch(const float *x, const float *w, const float *b, float *y,
                      int rows, int n, void *stream) {
    linear<<<rows, n, 0, (cudaStream_t)stream>>>(x, w, b, y, n);
    return cudaGetLastError();
}
"""
PATH = cpp_extension.load_inline(
    "linear", cpp_sources=[], cuda_sources=SOURCE, no_implicit_headers=True, is_python_module=False
)
LIBRARY = ctypes.CDLL(PATH)


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.empty_like(x)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, self.weight, self.bias, y)]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if LIBRARY.launch(*pointers, *x.shape, stream):
            raise RuntimeError("the launch failed")
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
