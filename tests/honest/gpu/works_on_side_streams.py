"""Fork to two streams and join them: a word that searches refuse, and work that is waited for."""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.streams = [torch.cuda.Stream(), torch.cuda.Stream(priority=-1)]

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.empty_like(x)
        current = torch.cuda.current_stream()
        for stream, part, rows in zip(self.streams, y.chunk(2), x.chunk(2), strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                torch.addmm(self.bias, rows, self.weight.T, out=part)
            current.wait_stream(stream)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
