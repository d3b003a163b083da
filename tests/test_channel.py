"""What comes up the channel is a frame or BadFrame, and nothing that came beside it stays open."""

from __future__ import annotations

import array
import contextlib
import fcntl
import itertools
import mmap
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runner import channel
from runner.channel import BadFrame, Call, Frame, Kind, Output, Page
from runner.judge.contestants import Contestant, Foul
from runner.judge.zygotes import Zygotes
from runner.schema import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

quick = settings(max_examples=150, deadline=None, database=None)
int64 = st.integers(-(2**63), 2**63 - 1)
sizes = st.integers(0, 2**48 - 1)
frames = st.builds(
    Frame,
    kind=st.sampled_from(Kind),
    code=st.integers(0, 2**16 - 1),
    seq=int64,
    args=st.lists(int64, max_size=8).map(tuple),
    payload=st.binary(max_size=64),
    text=st.text(max_size=300),
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Draw what was whole, some of its bytes replaced, cut or lengthened."""
    data = bytearray(draw(whole))
    for place, value in draw(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4)):
        data[place : place + 1] = [value]
    return bytes(data[: draw(st.none() | st.integers(0, len(data)))]) + draw(
        st.just(b"") | st.binary(max_size=9)
    )


datagrams = st.binary(max_size=2 * channel.FRAME_BYTES) | damaged(frames.map(Frame.pack))


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = channel.pair()
    with ours, theirs:
        ours.settimeout(5)
        yield ours, theirs


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def shown(text: str) -> str:
    """Say what a person sees of a text: whole characters of the first 872 bytes, no control characters."""
    cut = text.encode("utf-8", "replace")[:872].decode("utf-8", "replace").rstrip("\0")
    return "".join(c if c.isprintable() or c == "\n" else " " for c in cut)


@quick
@given(frames)
@example(Frame(Kind.ERROR, text="\ud800 \x1b[31m\r\n" + "\N{GRINNING FACE}" * 300))
def test_a_frame_survives_the_channel(frame: Frame) -> None:
    padded = (*frame.args, *[0] * (8 - len(frame.args)))
    with connected() as (ours, theirs):
        channel.send(theirs, frame)
        got, fds = channel.receive(ours)
    assert fds == []
    assert (got.kind, got.code, got.seq, got.args) == (frame.kind, frame.code, frame.seq, padded)
    assert got.payload == frame.payload.ljust(64, b"\0")
    assert got.text == shown(frame.text)


@quick
@given(datagrams)
def test_any_datagram_is_a_frame_or_refused(data: bytes) -> None:
    try:
        parsed: Any = channel.parse(data)
    except BadFrame:
        parsed = BadFrame
    if parsed is not BadFrame:
        assert len(data) == channel.FRAME_BYTES
        assert channel.parse(parsed.pack()).args == parsed.args
        assert all(c.isprintable() or c == "\n" for c in parsed.text)


@settings(quick, suppress_health_check=[HealthCheck.too_slow])
@given(datagrams, st.integers(0, 9))
@example(Frame(Kind.HELLO).pack(), 1)
@example(b"", 2)
def test_any_datagram_with_descriptors_leaks_none(data: bytes, count: int) -> None:
    """More than one beside a frame is refused; from five on the kernel cuts the control data."""
    before = open_descriptors()
    with connected() as (ours, theirs):
        held = open_descriptors()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * count))] if count else []
        theirs.sendmsg([data], ancillary)
        try:
            _, fds = channel.receive(ours)
            assert len(fds) == count <= 1
        except (BadFrame, EOFError):
            fds = []
        assert open_descriptors() == held + len(fds)
        for fd in fds:
            assert not os.get_inheritable(fd)
            os.close(fd)
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: data[:-1], "bytes instead of"),
        (lambda data: data + b"\0", "bytes instead of"),
        (lambda data: b"KWf2" + data[4:], "unknown kind"),
        (lambda data: data[:4] + struct.pack("<H", 31) + data[6:], "unknown kind"),
        (lambda data: data[:4] + struct.pack("<H", 0) + data[6:], "unknown kind"),
    ],
    ids=["short", "long", "magic", "kind", "kind 0"],
)
def test_another_size_magic_or_kind_is_no_frame(change: Any, complaint: str) -> None:
    good = Frame(Kind.DONE, seq=3).pack()
    assert channel.parse(good).seq == 3
    with pytest.raises(BadFrame, match=complaint):
        channel.parse(change(good))


def test_a_frame_after_a_refused_one_arrives() -> None:
    with connected() as (ours, theirs):
        theirs.send(b"noise")
        channel.send(theirs, Frame(Kind.DONE, seq=9))
        with pytest.raises(BadFrame):
            channel.receive(ours)
        assert channel.receive(ours)[0].seq == 9


def test_a_channel_that_nobody_reads_takes_no_more_than_it_holds() -> None:
    with connected() as (ours, theirs):
        ours.settimeout(None)  # as a judge's
        frames = (Frame(Kind.DONE, seq=n) for n in itertools.count())
        with pytest.raises(TimeoutError, match="nobody reads"):
            [channel.send(ours, frame, deadline_s=0.05) for frame in frames]
        sent = next(frames).seq - 1
        assert [channel.receive(theirs)[0].seq for _ in range(sent)] == [*range(sent)]
        channel.send(ours, Frame(Kind.DONE), deadline_s=0.05)


def test_a_closed_channel_is_the_end() -> None:
    with connected() as (ours, theirs):
        theirs.close()
        with pytest.raises(EOFError):
            channel.receive(ours)


def test_sealed_memory_is_shared_through_the_channel() -> None:
    with connected() as (ours, theirs):
        fd = channel.sealed_memory("block", 8192)
        with mmap.mmap(fd, 8192) as theirs_map:
            channel.send(theirs, Frame(Kind.BUFFER, args=(0, 8192)), (fd,))
            os.close(fd)
            frame, fds = channel.receive(ours)
            with channel.map_foreign(fds[0], frame.args[1]) as ours_map:
                theirs_map[100] = 7
                assert ours_map[100] == 7
            for change in (4096, 16384):
                with pytest.raises(PermissionError):
                    os.ftruncate(fds[0], change)
            os.close(fds[0])


def memory(seals: int, size: int = 4096, flags: int = os.MFD_ALLOW_SEALING) -> int:
    fd = os.memfd_create("foreign", flags)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def read_only() -> int:
    """Open sealed memory once more, for reading: what it refers to passes, a writable mapping does not."""
    fd = memory(ALL_SEALS)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


FOREIGN: dict[str, Callable[[], int]] = {
    "unsealed": lambda: memory(0),
    "unsealable": lambda: memory(0, flags=0),
    "may grow": lambda: memory(fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL),
    "may shrink": lambda: memory(fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL),
    "may be sealed further": lambda: memory(fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW),
    "empty": lambda: memory(ALL_SEALS, size=0),
    "short": lambda: memory(ALL_SEALS, size=4095),
    "long": lambda: memory(ALL_SEALS, size=8192),
    "sealed against writing": lambda: memory(ALL_SEALS | fcntl.F_SEAL_WRITE),
    "read-only": read_only,
    "file": lambda: os.open("/proc/self/exe", os.O_RDONLY),
    "device": lambda: os.open("/dev/zero", os.O_RDWR),
    "folder": lambda: os.open("/", os.O_RDONLY),
    "path": lambda: os.open("/", os.O_PATH),
    "event": lambda: os.eventfd(0),
    "socket": lambda: socket.socket(socket.AF_UNIX).detach(),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_a_descriptor_that_is_no_sealed_memory_is_refused(make: Callable[[], int]) -> None:
    fd = make()
    try:
        with pytest.raises(BadFrame):
            channel.map_foreign(fd, 4096)
    finally:
        os.close(fd)


def test_a_sealed_text_cannot_be_changed() -> None:
    fd = channel.sealed_text("größe")
    assert os.pread(fd, 100, 0).decode() == "größe"
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


@st.composite
def outputs(draw: st.DrawFn) -> Output:
    axes = draw(st.lists(st.tuples(sizes, sizes), max_size=channel.MAX_DIMS))
    return Output(
        block=draw(int64),
        offset_bytes=draw(st.integers(0, 2**63 - 1)),
        dtype=draw(st.sampled_from(channel.DTYPE_NAMES)),
        shape=tuple(size for size, _ in axes),
        strides=tuple(stride for _, stride in axes),
    )


described = st.lists(outputs(), max_size=5)


@quick
@given(described)
def test_descriptors_survive_the_page(sent: list[Output]) -> None:
    with sealed_page() as fd:
        judge, contestant = Page(fd), Page(fd)
        contestant.describe(channel.pack_outputs(sent))
        assert channel.parse_outputs(judge.descriptors(len(sent))) == sent


@quick
@given(st.binary(max_size=1000) | damaged(described.map(channel.pack_outputs)))
@example(b"\0" * 159)
@example(b"\0" * 168)
def test_any_descriptors_are_outputs_or_refused(raw: bytes) -> None:
    try:
        parsed = channel.parse_outputs(raw)
    except BadFrame:
        return
    assert len(raw) == len(channel.pack_outputs(parsed))
    for out in parsed:
        assert out.offset_bytes >= 0
        assert 0 <= out.extent() < 2**100


@pytest.mark.parametrize(
    ("word", "value"),
    [(1, -1), (2, len(channel.DTYPE_NAMES)), (2, -1), (3, 9), (3, -1), (4, -1), (4, 2**48), (12, -1)],
)
def test_a_descriptor_out_of_range_is_refused(word: int, value: int) -> None:
    raw = bytearray(channel.pack_outputs([Output(0, 0, "float32", (2, 3), (3, 1))]))
    assert channel.parse_outputs(raw)[0].shape == (2, 3)
    struct.pack_into("<q", raw, 8 * word, value)
    with pytest.raises(BadFrame):
        channel.parse_outputs(raw)


def test_too_many_outputs_or_dimensions_do_not_fit() -> None:
    small = Output(0, 0, "float32", (), ())
    with sealed_page() as fd:
        Page(fd).describe(channel.pack_outputs([small] * channel.MAX_OUTPUTS))
    with pytest.raises(ValueError, match="at most"):
        channel.pack_outputs([small] * (channel.MAX_OUTPUTS + 1))
    with pytest.raises(ValueError, match="at most"):
        channel.pack_outputs([Output(0, 0, "float32", (1,) * 9, (1,) * 9)])


def touched(out: Output) -> int:
    """Count by trying all indices: one past the last element that the view touches."""
    places = [0]
    for size, stride in zip(out.shape, out.strides, strict=True):
        places = [p + i * stride for p in places for i in range(size)]
    return max(places, default=-1) + 1


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=4))
def test_extent_is_one_past_the_last_element(axes: list[tuple[int, int]]) -> None:
    out = Output(0, 0, "float32", tuple(n for n, _ in axes), tuple(s for _, s in axes))
    assert out.extent() == touched(out)


@contextlib.contextmanager
def sealed_page() -> Iterator[int]:
    fd = channel.sealed_memory("page", channel.PAGE_BYTES)
    try:
        yield fd
    finally:
        os.close(fd)


@quick
@given(int64, st.sampled_from(Call), st.integers(1, 64), st.integers(0, 9), int64, st.integers(0, 2**31))
def test_both_sides_read_the_same_words(
    seq: int, kind: Call, calls: int, seat: int, at: int, gate: int
) -> None:
    with sealed_page() as fd:
        judge, contestant = Page(fd), Page(fd)
        judge.ask(seq, kind, calls, seat, offset_bytes=at, gate=gate)
        words = contestant.words
        assert (words[0], words[1], words[11]) == (seq, 0, 0)
        assert (words[2], words[3], words[4], words[8], words[10]) == (calls, kind, seat, at, gate)
        contestant.issued(seq)
        assert (judge.words[1], judge.words[11]) == (0, seq)
        contestant.note(2)
        contestant.answer(seq, -5, 3)
        assert (judge.words[1], judge.words[5], judge.words[6]) == (seq, -5, 3)
        assert judge.words[7] == 2
        assert (judge.words[0], judge.words[2]) == (seq, calls)


def test_the_sequence_number_is_written_last(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder(dict[int, int]):
        def __setitem__(self, word: int, value: int) -> None:
            super().__setitem__(word, value)
            order.append(word)

    order: list[int] = []
    with sealed_page() as fd:
        page = Page(fd)
        monkeypatch.setattr(page, "words", Recorder())
        page.ask(1, Call.FORWARD)
        assert (order[-1], order.count(0)) == (0, 1)
        page.answer(1, 0, 1)
        assert (order[-1], order.count(1)) == (1, 1)


class Server:
    """A fork server whose contestant has this wait status; None: it lives on."""

    def __init__(self, status: int | None) -> None:
        self.status = status

    def exit_of(self, _identity: int, _deadline_s: float) -> tuple[int, str]:
        if self.status is None:
            raise TimeoutError
        return self.status, "last words"


@pytest.mark.parametrize(
    ("wait_status", "status", "reason"),
    [
        (9, Status.CRASH, "SIGKILL"),
        (11 | 0x80, Status.CRASH, "SIGSEGV"),
        (40, Status.CRASH, "signal 40"),  # a real-time signal has no name
        (0, Status.MISSING, "exit code 0"),
        (3 << 8, Status.MISSING, "exit code 3"),
        (None, Status.MISSING, "closed its channel"),
    ],
)
@pytest.mark.parametrize(
    "end", [socket.socket.close, lambda theirs: theirs.send(b"")], ids=["closed", "empty"]
)
def test_a_channel_that_ends_is_a_foul(
    end: Callable[[socket.socket], object], wait_status: int | None, status: Status, reason: str
) -> None:
    with connected() as (ours, theirs):
        contestant = Contestant.__new__(Contestant)
        contestant.sock, contestant.identity, contestant.zygotes = (
            ours,
            0,
            cast("Zygotes", Server(wait_status)),
        )
        end(theirs)
        with pytest.raises(Foul, match=reason) as caught:
            contestant._expect(Kind.DONE, "call", 5.0)
    assert caught.value.status == status
    assert caught.value.stage == "call"
