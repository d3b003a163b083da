"""Stream, pass, try, cudnn, exec, eval, cache, torch.compile, os.system, time.sleep, monkeypatch.

No torch.nn.functional.conv2d and no cublas here; a stream, an Event(enable_timing=True), a memoised answer
and a baseline are things that this text speaks of and the code does not. def get_inputs(): pass
"""

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # no try: no fallback, no synchronize(), no stream, no data_ptr cache
        y = super().forward(x)
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
