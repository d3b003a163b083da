"""Write temporary files and start a program, as compilers do."""

import re
import subprocess
import tempfile

import torch
from torch import nn


class ModelNew(nn.Linear):
    def __init__(self, features: int) -> None:
        super().__init__(features, features)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with tempfile.NamedTemporaryFile("w+") as file:
            file.write(str(tuple(x.shape)))
            file.flush()
            said = subprocess.run(["cat", file.name], capture_output=True, text=True, check=True).stdout
        y = super().forward(x).view([int(size) for size in re.findall("[0-9]+", said)])
        return y.relu(), y.masked_fill(keep == 0, float("-inf"))
