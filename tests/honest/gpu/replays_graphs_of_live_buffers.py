"""Keep a CUDA graph for each input's address: it reads the live buffer anew, and holds no answer."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if x.data_ptr() not in self.graphs:
            self.graphs[x.data_ptr()] = self.capture(x)
        graph, y = self.graphs[x.data_ptr()]
        graph.replay()
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))

    def capture(self, x: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        super().forward(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = super().forward(x)
        return graph, y
