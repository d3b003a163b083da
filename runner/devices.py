"""What GPUs this machine has, asked without torch and without a context."""

from __future__ import annotations

import ctypes

from runner.load import BadInput


class NoDevice(Exception):
    """No suitable device; one line that says what to do."""


def count() -> int:
    """Count the GPUs as CUDA numbers them, which reads CUDA_VISIBLE_DEVICES itself; none without a driver."""
    found = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(found))
    return 0 if failed else found.value


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
