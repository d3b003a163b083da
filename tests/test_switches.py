"""PyTorch's switches: what foreign code turns is seen, by either API."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.contestant import switches

ROOT = Path(__file__).parents[1]

#: What a solution may write -> a switch that tells it.
WRITES = {
    "torch.backends.cudnn.benchmark = True": "backends.cudnn.benchmark",
    "torch.backends.cudnn.enabled = False": "backends.cudnn.enabled",
    "torch.backends.cudnn.allow_tf32 = False": "backends.cudnn.allow_tf32",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'": "backends.cudnn.conv.fp32_precision",
    "torch.backends.fp32_precision = 'ieee'": "backends.fp32_precision",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "backends.cuda.matmul.fp32_precision",
    "torch.backends.cuda.matmul.allow_fp16_accumulation = True": (
        "backends.cuda.matmul.allow_fp16_accumulation"
    ),
    "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False": (
        "backends.cuda.matmul.allow_bf16_reduced_precision_reduction"
    ),
    "torch.set_float32_matmul_precision('high')": "get_float32_matmul_precision",
    "torch.use_deterministic_algorithms(True)": "are_deterministic_algorithms_enabled",
    "torch.set_default_dtype(torch.float16)": "get_default_dtype",
    "torch.backends.cuda.enable_flash_sdp(False)": "backends.cuda.flash_sdp_enabled",
}


def test_nothing_changes_by_looking() -> None:
    before = switches.snapshot()
    assert switches.changed(before) == []
    assert before == switches.snapshot()


def test_a_legacy_write_is_told_with_both_values() -> None:
    before, was = switches.snapshot(), torch.backends.cudnn.deterministic
    try:
        torch.backends.cudnn.deterministic = not was
        assert switches.changed(before) == [f"backends.cudnn.deterministic: {was} -> {not was}"]
    finally:
        torch.backends.cudnn.deterministic = was
    assert switches.changed(before) == []


@pytest.fixture(scope="module")
def seen() -> dict[str, list[str]]:
    """Return what is seen of each write: each in a fork, since some cannot be undone."""
    code = f"""
import os, torch
from runner.contestant import switches
for write in {list(WRITES)!r}:
    if os.fork() == 0:
        before = switches.snapshot()
        exec(write)
        print(write, *switches.changed(before), sep="|", flush=True)
        os._exit(0)
    os.wait()
"""
    command = [sys.executable, "-W", "error", "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return {line.split("|")[0]: line.split("|")[1:] for line in said.stdout.splitlines()}


@pytest.mark.parametrize("write", WRITES)
def test_every_write_is_seen(write: str, seen: dict[str, list[str]]) -> None:
    assert any(line.startswith(f"{WRITES[write]}: ") for line in seen[write])


def test_a_legacy_getter_that_raises_is_a_difference(seen: dict[str, list[str]]) -> None:
    told = seen["torch.backends.cuda.matmul.fp32_precision = 'tf32'"]
    assert "backends.cuda.matmul.allow_tf32: False -> RuntimeError" in told
