"""Where outputs are said to lie on a device, with a driver that is made up: addresses are host addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch

from runner import channel, cuda_ipc
from runner.channel import Kind
from runner.contestant.memory import DeviceMemory

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator


class Driver:
    """Every tensor is an allocation of its own; those in `private` cannot be exported."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []
        self.private: set[int] = set()
        self.generation = 0

    def allocate(self, size: int) -> int:
        self.kept.append(torch.empty(size, dtype=torch.uint8))
        return self.kept[-1].data_ptr()

    def export(self, address: int) -> bytes:
        if address in self.private:
            raise cuda_ipc.CudaError("cuIpcGetMemHandle", 1)
        return address.to_bytes(64, "little")

    def buffer_id(self, address: int) -> int:
        return address + self.generation


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(cuda_ipc, "allocate", made.allocate)
    monkeypatch.setattr(cuda_ipc, "free", lambda _: None)
    monkeypatch.setattr(cuda_ipc, "export", made.export)
    monkeypatch.setattr(cuda_ipc, "buffer_id", made.buffer_id)
    monkeypatch.setattr(cuda_ipc, "allocation", lambda address: (address, 4096))
    monkeypatch.setattr(torch, "as_tensor", lambda *_, **__: made.kept[-1])
    return made


class Ends(NamedTuple):
    """A device's memory and the end at which the judge would listen."""

    memory: DeviceMemory
    judge: socket.socket


@pytest.fixture
def ends(driver: Driver) -> Iterator[Ends]:
    del driver
    judge, contestant = channel.pair()
    judge.setblocking(False)
    with judge, contestant:
        yield Ends(DeviceMemory(contestant, torch.device("cpu")), judge)


def announced(judge: socket.socket) -> list[tuple[int, int]]:
    """(index, address) of each buffer that has been announced since the last look."""
    found = []
    while True:
        try:
            frame, _ = channel.receive(judge)
        except BlockingIOError:
            return found
        assert frame.kind == Kind.BUFFER
        found.append((frame.args[0], int.from_bytes(frame.payload, "little")))


def test_a_segment_is_announced_once_and_again_when_it_is_another(driver: Driver, ends: Ends) -> None:
    device, judge = ends
    outputs = [torch.rand(8), torch.rand(4, 2)]
    packed, copied = device.locate(outputs)
    assert copied == 0
    assert announced(judge) == [(0, outputs[0].data_ptr()), (1, outputs[1].data_ptr())]
    assert device.locate(outputs) == (packed, 0)
    assert announced(judge) == []
    driver.generation = 1  # freed and made anew at the same address
    again, _ = device.locate(outputs)
    assert [index for index, _ in announced(judge)] == [2, 3]
    assert [out.block for out in channel.parse_outputs(again)] == [2, 3]


def test_outputs_that_cannot_be_exported_are_copied_side_by_side(driver: Driver, ends: Ends) -> None:
    device, judge = ends
    outputs = [torch.rand(100), torch.rand(3, 5), torch.rand(7)]
    driver.private = {outputs[0].data_ptr(), outputs[2].data_ptr()}
    packed, copied = device.locate(outputs)
    assert copied == 2
    buffers = dict(announced(judge))
    assert sorted(buffers) == list(range(len(buffers)))  # no number is skipped by a failed export
    for out, tensor in zip(channel.parse_outputs(packed), outputs, strict=True):
        whole = next((k for k in (*driver.kept, *outputs) if k.data_ptr() == buffers[out.block]), None)
        assert whole is not None
        size = tensor.numel() * tensor.element_size()
        seen = whole.view(torch.uint8).flatten()[out.offset_bytes : out.offset_bytes + size]
        assert torch.equal(seen, tensor.view(torch.uint8).flatten())


def test_an_output_without_memory_is_a_value_error(ends: Ends) -> None:
    with pytest.raises(ValueError, match="without memory"):
        ends.memory.locate([torch.eye(3).to_sparse()])


def test_an_output_elsewhere_has_no_block(ends: Ends) -> None:
    packed, copied = ends.memory.locate([torch.empty(3, device="meta")])
    assert copied == 0
    assert channel.parse_outputs(packed)[0].block == -1
