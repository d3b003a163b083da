"""A path means the same file from whatever folder the command line is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: A foreign problem, and the solution that it is itself.
PROBLEM = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.linear(x)

def get_inputs():
    return [torch.rand(4, 8)]

def get_init_inputs():
    return [8, 3]
"""
SOLUTION = PROBLEM.partition("def get_inputs")[0].replace("Model", "ModelNew")
NARROW = ("--dtype", "fp32", "--math", "fp32", "--device", "cpu")

# words of a command line, and what it says
COMMANDS = {
    "run": ("run --problem mine/p.py --solution mine/s.py -o sent.jsonl", "PASS"),
    "a bare file": ("check s.py --problem ../mine/p.py", "1 of 1 cells pass"),
    "compare": ("compare mine/s.py mine/t.py --problem mine/p.py", "both are right"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_relative_path_is_read_from_where_one_is(name: str, tmp_path: Path) -> None:
    words, part = COMMANDS[name]
    folder = tmp_path / "mine"
    folder.mkdir()
    for file, text in (("p.py", PROBLEM), ("s.py", SOLUTION), ("t.py", f"{SOLUTION}\n")):
        (folder / file).write_text(text)
    said = subprocess.run(
        [sys.executable, "-m", "runner", *words.split(), *NARROW],
        cwd=folder if name == "a bare file" else tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert part in said.stdout, said.stderr
    assert said.returncode == 0, said.stderr
