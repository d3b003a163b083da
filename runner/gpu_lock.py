"""One job per GPU: a lock that all users of a machine share, on a file named by the GPU's own UUID."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Not the folder that TMPDIR names: that may be a user's own, and a lock that others do not see is none.
FOLDER = Path("/tmp")  # noqa: S108 - shared by all users on purpose; no link is followed


class DeviceBusy(Exception):
    """The GPU is not to be had now; one line that says who has it and what to do."""


def driver() -> Any:
    """Return CUDA's driver, which respects CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER; None without one."""
    try:
        found = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if found.cuInit(0) else found


def uuid_of(device: str) -> str:
    """Return the UUID of `cuda:N` by CUDA's own numbering, or '' for `cpu` and without a driver.

    Asking makes no context. It is written as torch writes it, without the prefix `GPU-`.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return ""
    handle, told = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    cuda = driver()
    if cuda is None:
        return ""
    try:
        failed = cuda.cuDeviceGet(ctypes.byref(handle), int(number or 0)) or cuda.cuDeviceGetUuid_v2(
            ctypes.byref(told), handle
        )
    except AttributeError:  # a driver older than CUDA 11.4
        return ""
    return "" if failed else str(uuid.UUID(bytes=bytes(told)))


@contextlib.contextmanager
def hold(identity: str, device: str) -> Iterator[None]:
    """Hold the GPU of that UUID for a block; the kernel lets go of it however the process ends.

    A device without a UUID is not locked. Raises DeviceBusy at once where another process holds it.
    """
    if not identity:
        yield
        return
    path = FOLDER / f"kernelwave-{identity}.lock"
    try:
        descriptor = _open(path)
    except OSError as error:
        raise DeviceBusy(
            f"the lock of {device} cannot be opened ({error.strerror}): remove {path} or have its owner do it"
        ) from error
    with os.fdopen(descriptor, "rb+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeviceBusy(
                f"{device} (GPU-{identity}) is in use by {_holder(file.read(20))}: "
                "wait until that has ended, or name another GPU with --device cuda:N"
            ) from None
        file.truncate()
        file.write(f"{os.getpid()}\n".encode())
        yield


def _open(path: Path) -> int:
    """Open the file for whoever comes, without O_CREAT if it is there.

    With it, a kernel that protects sticky folders (`fs.protected_regular`) refuses the file of another user.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL)
    except FileExistsError:  # somebody was faster
        return os.open(path, flags)
    os.fchmod(descriptor, 0o666)  # whatever the umask of whoever comes first
    return descriptor


def _holder(told: bytes) -> str:
    pid = told.strip()
    return f"process {int(pid)}" if pid.isdigit() else "another process"
