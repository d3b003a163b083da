"""The C library's wrappers of Linux calls that Python does not offer."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

PR_CAPBSET_DROP: Final = 24
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_PDEATHSIG: Final = 1
PR_SET_SECCOMP: Final = 22

_LIBC = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """Call a function of the C library; -1 becomes an `OSError` that names it."""
    # prctl and syscall are variadic and take longs, where ctypes would pass 32 bits of an int
    widened = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    ctypes.set_errno(0)
    result: int = getattr(_LIBC, function)(*widened)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
    return result


def prctl(option: int, first: int = 0, second: object = 0) -> int:
    """Call prctl with its unused arguments zero, as several options demand."""
    return call("prctl", option, first, second, 0, 0)


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent goes, so that a killed run leaves nothing behind."""
    parent = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
