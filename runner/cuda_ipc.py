"""Device memory that one process allocates and another maps, and words in it that streams wait for.

All of it goes through libcuda itself.
PyTorch's own sharing is not used: its tuples name a file that the receiver opens and writes.
A handle is 64 opaque bytes that the driver barely validates, so the judge takes the size from the
driver, never from the sender, and proves by a nonce whose memory it has mapped.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1
_ATTRIBUTE_BUFFER_ID = 7
_WAIT_EQUAL = 1


class CudaError(Exception):
    """A driver call failed; `code` is the CUresult."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} failed with CUDA error {code}")
        self.code = code


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_ubyte * HANDLE_BYTES)]


@cache
def _driver() -> ctypes.CDLL:
    lib = ctypes.CDLL("libcuda.so.1")
    pointer, size = ctypes.c_uint64, ctypes.c_size_t
    lib.cuMemAlloc_v2.argtypes = [ctypes.POINTER(pointer), size]
    lib.cuMemFree_v2.argtypes = [pointer]
    lib.cuIpcGetMemHandle.argtypes = [ctypes.POINTER(_Handle), pointer]
    lib.cuIpcOpenMemHandle_v2.argtypes = [ctypes.POINTER(pointer), _Handle, ctypes.c_uint]
    lib.cuIpcCloseMemHandle.argtypes = [pointer]
    lib.cuMemGetAddressRange_v2.argtypes = [ctypes.POINTER(pointer), ctypes.POINTER(size), pointer]
    for name in ("cuStreamWaitValue32_v2", "cuStreamWriteValue32_v2"):
        getattr(lib, name).argtypes = [ctypes.c_void_p, pointer, ctypes.c_uint32, ctypes.c_uint]
    lib.cuPointerGetAttribute.argtypes = [ctypes.c_void_p, ctypes.c_int, pointer]
    return lib


def _call(name: str, *args: Any) -> None:
    code = getattr(_driver(), name)(*args)
    if code:
        raise CudaError(name, code)


def allocate(size: int) -> int:
    """Allocate `size` bytes of plain device memory in the current context; returns the address."""
    address = ctypes.c_uint64()
    _call("cuMemAlloc_v2", ctypes.byref(address), size)
    return address.value


def free(address: int) -> None:
    """Free what `allocate` gave."""
    _call("cuMemFree_v2", address)


def export(address: int) -> bytes:
    """Return the handle of the allocation that starts at `address`."""
    handle = _Handle()
    _call("cuIpcGetMemHandle", ctypes.byref(handle), address)
    return bytes(handle.reserved)


def map_handle(handle: bytes) -> tuple[int, int]:
    """Map another process's allocation; returns its address here and its size by the driver."""
    foreign = _Handle.from_buffer_copy(handle)
    address = ctypes.c_uint64()
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), foreign, _LAZY_PEER_ACCESS)
    base, size = allocation(address.value)
    if base != address.value:
        _call("cuIpcCloseMemHandle", address.value)
        raise CudaError("cuMemGetAddressRange_v2", 1)
    return address.value, size


def unmap(address: int) -> None:
    """Undo `map_handle`."""
    _call("cuIpcCloseMemHandle", address)


def allocation(address: int) -> tuple[int, int]:
    """Return the base address and the size of the allocation that `address` lies in."""
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
    return base.value, size.value


def buffer_id(address: int) -> int:
    """Return the driver's identity of an allocation, which no later one at the same address has."""
    value = ctypes.c_ulonglong()
    _call("cuPointerGetAttribute", ctypes.byref(value), _ATTRIBUTE_BUFFER_ID, address)
    return value.value


def wait_word(stream: int, address: int, word: int) -> None:
    """Let a stream wait until the 32-bit word at `address` (device, or pinned host memory) equals `word`.

    The stream waits in the GPU's front end: no SM is taken and other contexts run.
    """
    _call("cuStreamWaitValue32_v2", stream, address, word, _WAIT_EQUAL)


def write_word(stream: int, address: int, word: int) -> None:
    """Let a stream write a 32-bit word once all before it is done and visible."""
    _call("cuStreamWriteValue32_v2", stream, address, word, 0)


def reset_persisting_lines() -> None:
    """Make all lines that were told to persist in L2 ordinary ones."""
    _call("cuCtxResetPersistingL2Cache")


class DeviceBytes:
    """Raw device memory as `torch.as_tensor` takes it: a one-dimensional array of bytes."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }
