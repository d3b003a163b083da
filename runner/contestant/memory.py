"""The buffers that a contestant owns and the judge maps, on the host and on a CUDA device.

Blocks have numbers, which start again when the blocks of a cell are freed.
"""

from __future__ import annotations

import mmap
import os
import socket
from dataclasses import dataclass, field
from typing import Any

import torch

from runner import channel, cuda_ipc
from runner.channel import Frame, Kind, Output

_CUDA_GRANULE = 2 * 2**20  # smaller exports share a page with strangers


def describe(block: int, offset_bytes: int, tensor: torch.Tensor) -> Output:
    """Describe a tensor at a place of a block; ValueError for one that has no strides."""
    if tensor.layout != torch.strided:
        raise ValueError(f"an output of layout {tensor.layout}")
    return Output(
        block, offset_bytes, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.stride()
    )


class HostMemory:
    """Sealed memory files; outputs are copied into an arena, since times on a CPU never rank."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._next = 0
        self._maps: list[mmap.mmap] = []
        self._arena: torch.Tensor | None = None
        self._arena_index = -1

    def block(self, size: int) -> torch.Tensor:
        """Allocate and announce a block of host memory."""
        fd = channel.sealed_memory("block", size)
        mapped = mmap.mmap(fd, size)
        channel.send(self._sock, Frame(Kind.BUFFER, args=(self._next, size)), (fd,))
        os.close(fd)
        self._maps.append(mapped)
        self._next += 1
        return torch.frombuffer(mapped, dtype=torch.uint8)

    def arena(self, size: int) -> None:
        """Allocate the block that outputs are copied into."""
        self._arena_index = self._next
        self._arena = self.block(size)

    def locate(self, outputs: list[torch.Tensor]) -> tuple[bytes, int]:
        """Copy outputs into the arena, as far as it reaches, and describe them."""
        assert self._arena is not None  # noqa: S101 - the job always has an arena on the host
        described, at = [], 0
        for tensor in outputs:
            needed = describe(0, 0, tensor).extent() * tensor.element_size()
            broadcast = any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            if tensor.device.type != "cpu" or broadcast or at + needed > len(self._arena):
                described.append(describe(-1, 0, tensor))
                continue
            place = self._arena[at : at + needed].view(tensor.dtype)
            place.as_strided(tensor.shape, tensor.stride()).copy_(tensor)
            described.append(describe(self._arena_index, at, tensor))
            at += -(-needed // 256) * 256
        return channel.pack_outputs(described), 0

    def peek(self, block: int, offset_bytes: int) -> int:
        """Read the int64 at a byte of a block."""
        return int.from_bytes(self._maps[block][offset_bytes : offset_bytes + 8], "little", signed=True)

    def free(self) -> None:
        """Forget the blocks; their memory goes with the last tensor that views it."""
        self._arena = None
        self._maps.clear()
        self._next = 0


@dataclass
class DeviceMemory:
    """Plain device allocations; outputs are read where PyTorch's allocator has put them.

    A segment of the allocator is exported when the first output is seen in it, and known by the
    driver's identity of the allocation, so that a segment freed and made anew is exported anew.
    """

    sock: socket.socket
    device: torch.device
    _own: list[int] = field(default_factory=list)
    _bases: list[int] = field(default_factory=list)
    _segments: dict[int, tuple[int, int]] = field(default_factory=dict)
    _spare: tuple[torch.Tensor, int] | None = None
    _located: dict[tuple[Any, ...], tuple[tuple[int, int], bytes]] = field(default_factory=dict)

    def block(self, size: int) -> torch.Tensor:
        """Allocate and announce a block of device memory."""
        return self._block(size)[0]

    def _block(self, size: int) -> tuple[torch.Tensor, int]:
        size = -(-size // _CUDA_GRANULE) * _CUDA_GRANULE
        address = cuda_ipc.allocate(size)
        self._own.append(address)
        index = self._announce(address, size)
        return torch.as_tensor(cuda_ipc.DeviceBytes(address, size), device=self.device), index

    def _announce(self, address: int, size: int) -> int:
        index = len(self._bases)
        frame = Frame(Kind.BUFFER, args=(index, size), payload=cuda_ipc.export(address))
        self._bases.append(address)
        channel.send(self.sock, frame)
        return index

    def locate(self, outputs: list[torch.Tensor]) -> tuple[bytes, int]:
        """Find the segments that outputs lie in; copy what lies in memory that cannot be exported.

        This runs inside the judge's window, so outputs that lie where they lay are looked up.
        """
        try:
            key = tuple((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in outputs)
        except RuntimeError as error:
            raise ValueError(f"an output without memory of its own: {error}") from error
        known = self._located.get(key)
        if known is not None and known[0] == self._identities(outputs):
            return known[1], 0
        described, copied, at = [], 0, 0
        for tensor in outputs:
            here = tensor.device == self.device and tensor.numel() > 0
            place = self._segment(tensor.data_ptr()) if here else (-1, 0)
            if place is None:
                tensor, place = self._copy(tensor, at)  # noqa: PLW2901 - the copy stands for it from here on
                at = place[1] + -(-tensor.numel() * tensor.element_size() // 256) * 256
                copied += 1
            described.append(describe(*place, tensor))
        packed = channel.pack_outputs(described)
        if not copied and all(o.block >= 0 for o in described):
            self._located[key] = self._identities(outputs), packed
        return packed, copied

    def _identities(self, outputs: list[torch.Tensor]) -> tuple[int, int]:
        """The allocations of the first and the last output: a cache that was emptied has others."""
        return cuda_ipc.buffer_id(outputs[0].data_ptr()), cuda_ipc.buffer_id(outputs[-1].data_ptr())

    def _segment(self, address: int) -> tuple[int, int] | None:
        try:
            identity = cuda_ipc.buffer_id(address)
            known = self._segments.get(identity)
            if known is None:
                base, size = cuda_ipc.allocation(address)
                known = self._segments[identity] = (self._announce(base, size), base)
        except cuda_ipc.CudaError:
            return None
        return known[0], address - known[1]

    def _copy(self, tensor: torch.Tensor, at: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """Copy an output behind those that end at `at`; where there is no room, a new block begins."""
        needed = tensor.numel() * tensor.element_size()
        if self._spare is None or len(self._spare[0]) < at + needed:
            self._spare, at = self._block(needed), 0
        spare, index = self._spare
        place = spare[at : at + needed].view(tensor.dtype).view(tensor.shape)
        place.copy_(tensor)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return place, (index, at)

    def peek(self, block: int, offset_bytes: int) -> int:
        """Read the int64 at a byte of a block."""
        word = torch.as_tensor(cuda_ipc.DeviceBytes(self._bases[block] + offset_bytes, 8), device=self.device)
        return int(word.view(torch.int64).item())

    def free(self) -> None:
        """Free the own blocks; PyTorch's segments are PyTorch's."""
        self._spare = None
        self._located.clear()
        self._bases.clear()
        self._segments.clear()
        for address in self._own:
            cuda_ipc.free(address)
        self._own.clear()
