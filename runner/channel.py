"""Frames, the shared page and sealed buffers: the one thing judge and contestant share.

Only fixed-size frames travel, never pickle. The judge treats every byte that comes up as hostile:
a frame of another size, magic or kind is `BadFrame`, and text is shown to people, never parsed.
The page is a shared memory file of int64 words: GO, DONE, and where the outputs of a call lie.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod

_LAYOUT = struct.Struct("<4sHHq8q64s872s")
_MAGIC = b"KWf1"
FRAME_BYTES = _LAYOUT.size


class Kind(IntEnum):
    """What a frame is about; below 32 they go up to the judge, from 32 on down."""

    HELLO = 1  # isolation level in `text`
    BUFFER = 2  # args: index, bytes; payload: CUDA IPC handle, or a memfd beside the frame
    NONCE = 3  # args: index, the word the judge wrote at the start of the buffer
    READY = 4  # args: prepare time in ns, or -1
    DONE = 5  # a blocking doorbell's answer
    # code: an autotuner had no choice; args: grid x y z, warps, registers, spills, shared bytes;
    # payload: classes of arithmetic
    LAUNCH = 6
    ERROR = 7  # code: Fault; text: for people
    # args: launches, ns, grid x y z, threads, registers, shared bytes; payload: whose it is;
    # with a code there is none, and `text` says why
    KERNEL = 8

    BUILD = 32  # a sealed memfd with the job beside the frame
    ECHO = 33  # args: index; asks for NONCE
    LOAD = 34  # parameters are in place: copy them in, prepare
    GO = 35  # a blocking doorbell
    RELEASE = 36  # drop the cell: model, outputs, buffers


class Fault(IntEnum):
    """Why a contestant gave up, in its own words (a claim that can only hurt itself)."""

    BUILD = 1
    CALL = 2
    OUTPUT = 3
    OOM = 4


_KINDS = frozenset(int(k) for k in Kind)


class BadFrame(Exception):
    """The other side sent something that is not a frame."""


@dataclass(frozen=True)
class Frame:
    """One message: eight integers, 64 opaque bytes and a text of at most 872 bytes of UTF-8."""

    kind: Kind
    code: int = 0
    seq: int = 0
    args: tuple[int, ...] = ()
    payload: bytes = b""
    text: str = ""

    def pack(self) -> bytes:
        """Serialise; text is cut at the field's size."""
        args = (*self.args, *([0] * (8 - len(self.args))))
        text = self.text.encode("utf-8", "replace")[:872]
        return _LAYOUT.pack(_MAGIC, self.kind, self.code, self.seq, *args, self.payload, text)


def parse(data: bytes) -> Frame:
    """Validate one received datagram, or raise BadFrame."""
    if len(data) != FRAME_BYTES:
        raise BadFrame(f"a frame of {len(data)} bytes instead of {FRAME_BYTES}")
    magic, kind, code, seq, *rest = _LAYOUT.unpack(data)
    if magic != _MAGIC or kind not in _KINDS:
        raise BadFrame("a frame of unknown kind")
    text = rest[9].rstrip(b"\0").decode("utf-8", "replace")
    shown = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    return Frame(Kind(kind), code, seq, tuple(rest[:8]), rest[8], shown)


def pair() -> tuple[socket.socket, socket.socket]:
    """Make a channel; datagrams keep their boundaries, so a frame is whole or absent."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(
    sock: socket.socket, frame: Frame, fds: tuple[int, ...] = (), deadline_s: float | None = None
) -> None:
    """Send one frame, with descriptors beside it; TimeoutError where nobody makes room for it in time."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    if deadline_s is None:
        sock.sendmsg([frame.pack()], ancillary)
        return
    poll, end = select.poll(), time.monotonic() + deadline_s
    poll.register(sock, select.POLLOUT)
    while True:
        try:
            sock.sendmsg([frame.pack()], ancillary, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if not poll.poll(max(0.0, end - time.monotonic()) * 1e3):
                raise TimeoutError("nobody reads the channel") from None
        else:
            return


def receive(sock: socket.socket) -> tuple[Frame, list[int]]:
    """Receive one frame and at most one descriptor, or raise BadFrame; EOFError at the end."""
    room = socket.CMSG_SPACE(4 * 4)
    data, ancillary, flags, _ = sock.recvmsg(FRAME_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    if not data:
        _close(fds)
        raise EOFError
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > 1:
            raise BadFrame("a frame with too much beside it")
        return parse(data), fds
    except BadFrame:
        _close(fds)
        raise


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


#: Room behind the input slots for the word that opens a gate.
GATE_BYTES = 256

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def sealed_memory(name: str, size: int) -> int:
    """Make a memory file whose size can never change again; returns its descriptor."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def sealed_text(text: str) -> int:
    """Make a memory file that holds `text` and can never be written again."""
    fd = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(text.encode())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_WRITE)
    return fd


def map_foreign(fd: int, size: int) -> mmap.mmap:
    """Map a descriptor that a contestant sent; BadFrame unless it is sealed memory of that size."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise BadFrame("a buffer that is not memory") from error
    if seals & _SEALS != _SEALS or os.fstat(fd).st_size != size:
        raise BadFrame("a buffer that is unsealed or of another size")
    try:
        return mmap.mmap(fd, size)
    except OSError as error:  # sealed against writing, or opened for reading
        raise BadFrame("a buffer that cannot be written") from error


#: dtype codes in output descriptors; a name that torch knows.
DTYPE_NAMES = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)

MAX_OUTPUTS = 128
#: Named of one call; the rest of them are one.
MAX_KERNELS = 32
MAX_DIMS = 8
_HEADER_WORDS = 16
_OUTPUT_WORDS = 4 + 2 * MAX_DIMS
_DESCRIPTOR = struct.Struct(f"<{_OUTPUT_WORDS}q")
PAGE_BYTES = mmap.PAGESIZE * -(-8 * (_HEADER_WORDS + MAX_OUTPUTS * _OUTPUT_WORDS) // mmap.PAGESIZE)


class Call(IntEnum):
    """What a GO asks for."""

    FORWARD = 0
    NULL = 1  # an empty launch: the price of the handshake
    WITNESS = 2  # a forward whose launches are reported
    SELECT = 3  # hand the page to the seat in `seat`
    LEAVE = 4  # back to the socket
    ECHO = 5  # the claim is the word at a buffer's byte: `seat` holds the buffer, word 8 the byte
    WARM = 6  # the claim is a batch's time on one slot whose inputs are in L2
    STEADY = 7  # the claim is a batch's time on the host's clock, with what issuing costs
    GRAPH = 8  # the claim is a batch's time as a replayed CUDA graph, or negative
    TRACE = 9  # name the kernels of a forward


@dataclass(frozen=True)
class Output:
    """Where one output lies: a buffer, an offset and strides, as the contestant says."""

    block: int
    offset_bytes: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def extent(self) -> int:
        """Elements from the first to one past the last that the view can touch."""
        if not prod(self.shape):
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


class Page:
    """The shared page. One side writes `seq` into GO last, the other answers into DONE last.

    x86 keeps stores in order, and CPython's word stores are single instructions, so writing the
    arguments before the sequence number is enough.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES)
        self.words = memoryview(self._map).cast("q")

    def ask(
        self, seq: int, kind: Call, calls: int = 1, seat: int = 0, offset_bytes: int = 0, gate: int = 0
    ) -> None:
        """Judge: ring GO for `calls` calls on slots 0 to calls-1.

        With a `gate` the contestant's stream waits until that word lies behind its input slots.
        """
        words = self.words
        words[2], words[3], words[4], words[8], words[10] = calls, kind, seat, offset_bytes, gate
        words[0] = seq

    def issued(self, seq: int) -> None:
        """Contestant: all launches of a call are in the stream."""
        self.words[11] = seq

    def answer(self, seq: int, claim_ns: int, outputs_per_call: int) -> None:
        """Contestant: ring DONE; the descriptors have been written before."""
        self.words[5], self.words[6] = claim_ns, outputs_per_call
        self.words[1] = seq

    def note(self, copied_outputs: int) -> None:
        """Contestant: remark on a call, before the answer, how many outputs were copied."""
        self.words[7] = copied_outputs

    def remark(self, mutated_switches: int) -> None:
        """Contestant: say how many of PyTorch's switches the foreign code has changed."""
        self.words[9] = mutated_switches

    def describe(self, packed: bytes) -> None:
        """Contestant: say where the outputs of the batch lie, call by call (from `pack_outputs`)."""
        start = 8 * _HEADER_WORDS
        self._map[start : start + len(packed)] = packed

    def descriptors(self, count: int) -> bytes:
        """Judge: one copy of the raw descriptors, so that nothing changes between check and use."""
        start = 8 * _HEADER_WORDS
        return bytes(self._map[start : start + 8 * count * _OUTPUT_WORDS])


def pack_outputs(outputs: Sequence[Output]) -> bytes:
    """Serialise descriptors; ValueError for more outputs or dimensions than a page holds."""
    if len(outputs) > MAX_OUTPUTS or any(len(o.shape) > MAX_DIMS for o in outputs):
        raise ValueError(f"at most {MAX_OUTPUTS} outputs of {MAX_DIMS} dimensions")
    rows = []
    for out in outputs:
        padding = (0,) * (MAX_DIMS - len(out.shape))
        dtype = DTYPE_NAMES.index(out.dtype)
        rows.append(
            _DESCRIPTOR.pack(
                out.block,
                out.offset_bytes,
                dtype,
                len(out.shape),
                *out.shape,
                *padding,
                *out.strides,
                *padding,
            )
        )
    return b"".join(rows)


def parse_outputs(raw: bytes) -> list[Output]:
    """Validate descriptors as far as they can be without the buffers, or raise BadFrame."""
    if len(raw) % _DESCRIPTOR.size:
        raise BadFrame("an output descriptor that is cut")
    outputs = []
    for block, offset, dtype, ndim, *sizes in _DESCRIPTOR.iter_unpack(raw):
        if not 0 <= dtype < len(DTYPE_NAMES) or not 0 <= ndim <= MAX_DIMS or offset < 0:
            raise BadFrame("an output descriptor out of range")
        shape, strides = tuple(sizes[:ndim]), tuple(sizes[MAX_DIMS : MAX_DIMS + ndim])
        if any(not 0 <= n < 2**48 for n in (*shape, *strides)):
            raise BadFrame("an output descriptor out of range")
        outputs.append(Output(block, offset, DTYPE_NAMES[dtype], shape, strides))
    return outputs
