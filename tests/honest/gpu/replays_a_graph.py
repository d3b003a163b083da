"""Replay a CUDA graph over buffers of its own, which each call fills first and copies from last."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.graph: torch.cuda.CUDAGraph | None = None

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.graph is None:
            self.capture(x, keep)
        self.x.copy_(x)
        self.keep.copy_(keep)
        self.graph.replay()
        return self.y.relu(), self.scores.clone()

    def capture(self, x: torch.Tensor, keep: torch.Tensor) -> None:
        self.x, self.keep = x.clone(), keep.clone()
        self.work()  # libraries allocate what they need outside the graph
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.work()

    def work(self) -> None:
        self.y = super().forward(self.x)
        self.scores = self.y.masked_fill(self.keep == 0, float("-inf"))
