"""What GPUs this machine has, asked without torch and without touching them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runner.load import BadInput


class NoDevice(Exception):
    """No suitable device; one line that says what to do."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver names it."""

    name: str
    uuid: str


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    import pynvml  # noqa: PLC0415 - `--help` need not pay for it

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def gpus() -> list[Gpu]:
    """List the GPUs that CUDA would number from 0; empty without a driver."""
    try:
        with _nvml() as nvml:
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            found = [Gpu(nvml.nvmlDeviceGetName(h), nvml.nvmlDeviceGetUUID(h)) for h in handles]
    except Exception:  # noqa: BLE001 - no library, no driver, no permission: no GPU
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if visible is None else found[: len([v for v in visible.split(",") if v.strip()])]


def choose(asked: str | None) -> str:
    """Resolve `--device`: `cpu`, `cuda` or `cuda:N`; without a wish, a GPU if there is one.

    Raises BadInput for other words and NoDevice for a GPU that is not there.
    """
    found = gpus()
    if asked is None:
        return "cuda:0" if found else "cpu"
    if asked == "cpu":
        return asked
    kind, _, number = asked.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise BadInput(f"--device '{asked}': cpu, cuda or cuda:N")
    index = int(number or 0)
    if not found:
        raise NoDevice(
            f"--device '{asked}': this machine has no CUDA device; --device cpu checks correctness"
        )
    if index >= len(found):
        raise NoDevice(f"--device '{asked}': the last CUDA device of this machine is cuda:{len(found) - 1}")
    return f"cuda:{index}"
