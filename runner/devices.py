"""What GPUs this machine has, asked without torch and without touching them."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any

from runner.load import BadInput


class NoDevice(Exception):
    """No suitable device; one line that says what to do."""


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    import pynvml  # noqa: PLC0415 - `--help` need not pay for it

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def count() -> int:
    """Count the GPUs that CUDA numbers from 0 here; none without a driver."""
    try:
        with _nvml() as nvml:
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            uuids = [str(nvml.nvmlDeviceGetUUID(h)) for h in handles]
    except Exception:  # noqa: BLE001 - no library, no driver, no permission: no GPU
        return 0
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(uuids) if asked is None else _visible(asked.split(","), uuids)


def _visible(names: list[str], uuids: list[str]) -> int:
    """Count the entries of CUDA_VISIBLE_DEVICES up to the first that names no GPU, as the driver does."""

    def there(name: str) -> bool:
        if name.isdigit():
            return int(name) < len(uuids)
        return name.startswith("MIG-") or (name != "" and any(uuid.startswith(name) for uuid in uuids))

    return len(list(itertools.takewhile(there, map(str.strip, names))))


def choose(asked: str | None) -> str:
    """Resolve `--device`: `cpu`, `cuda` or `cuda:N`; without a wish, a GPU if there is one.

    Raises BadInput for other words and NoDevice for a GPU that is not there.
    """
    there = count()
    if asked is None:
        return "cuda:0" if there else "cpu"
    if asked == "cpu":
        return asked
    kind, _, number = asked.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise BadInput(f"--device '{asked}': cpu, cuda or cuda:N")
    index = int(number or 0)
    if not there:
        raise NoDevice(
            f"--device '{asked}': this machine has no CUDA device; --device cpu checks correctness"
        )
    if index >= there:
        raise NoDevice(f"--device '{asked}': the last CUDA device of this machine is cuda:{there - 1}")
    return f"cuda:{index}"
