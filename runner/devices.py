"""What GPUs this machine has, asked without torch and without a context."""

from __future__ import annotations

import ctypes

from runner import gpu_lock
from runner.load import BadInput


class NoDevice(Exception):
    """No suitable device; one line that says what to do."""


def count() -> int:
    """Count the GPUs as CUDA numbers them; none without a driver."""
    found, driver = ctypes.c_int(), gpu_lock.driver()
    return 0 if driver is None or driver.cuDeviceGetCount(ctypes.byref(found)) else found.value


def choose(asked: str | None) -> str:
    """Resolve `--device`: `cpu`, `cuda` or `cuda:N`; without a wish, a GPU if there is one.

    Raises BadInput for other words and NoDevice for a GPU that is not there.
    """
    if asked == "cpu":
        return asked
    kind, _, number = (asked or "cuda").partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise BadInput(f"--device '{asked}': cpu, cuda or cuda:N")
    index, there = int(number or 0), count()
    if asked is None:
        return "cuda:0" if there else "cpu"
    if not there:
        raise NoDevice(
            f"--device '{asked}': this machine has no CUDA device; --device cpu checks correctness"
        )
    if index >= there:
        raise NoDevice(f"--device '{asked}': the last CUDA device of this machine is cuda:{there - 1}")
    return f"cuda:{index}"
