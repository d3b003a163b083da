"""Launch from threads of a pool, each on the caller's stream."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

POOL = ThreadPoolExecutor(2)


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stream = torch.cuda.current_stream()

        @torch.inference_mode()
        def part(rows: torch.Tensor) -> torch.Tensor:
            with torch.cuda.stream(stream):
                return nn.functional.linear(rows, self.weight, self.bias)

        y = torch.cat(list(POOL.map(part, x.chunk(2))))
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
