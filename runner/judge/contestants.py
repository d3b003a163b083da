"""The judge's handle on contestants: fork, map, ring, wait with a deadline, kill.

Whatever a contestant does wrong becomes a `Foul`: a status, the stage it happened in and a reason.
After a foul the contestant is killed and never used again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from runner import arithmetic, channel, cuda_ipc
from runner.channel import BadFrame, Call, Fault, Frame, Kind, Output, Page
from runner.contestant.scratch import clear
from runner.judge import footprint
from runner.judge.zygotes import Zygotes
from runner.schema import Failed, Status

_DONE, _ISSUED = 1, 11  # words of the page
#: Looking for frames takes 50 us, in which an answer would not be seen: every 15 ms or so.
_POLLS_BETWEEN_FRAMES = 0x3FFFF
_POLL_S = 0.02
#: After it a call is so long that a whole look at what is held, of at most 3 ms, makes no difference.
_LONG_CALL_S = 1.0
_GRACE_S = 5.0  # from the end of a channel to the death of its process, and for room in one that is full
_MAX_FRAMES = 512  # of one wait; an honest contestant sends tens
#: Of one cell on the host: parameters, input slots and outputs. Each costs the judge a descriptor.
_HOST_BUFFERS = 3
_FAULTS: dict[int, Status] = {
    Fault.BUILD: Status.BUILD,
    Fault.CALL: Status.CRASH,
    Fault.OUTPUT: Status.WRONG,
    Fault.OOM: Status.OOM,
}
#: The end of what a contestant printed or raised that a record keeps.
_DETAIL_CHARS = 2000


class Foul(Exception):
    """A contestant has no answer; carries the status that the cell gets."""

    def __init__(self, status: Status, stage: str, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.status, self.stage, self.reason, self.detail = status, stage, reason, detail

    def ruling(self, printed: str) -> Failed:
        """Make it what a cell fails by; what the contestant printed stands before the detail."""
        told = self.detail if printed.strip() in self.detail else f"{printed.rstrip()}\n{self.detail}"
        return Failed(self.status, self.stage, self.reason, told[-_DETAIL_CHARS:])


class Contestant:
    """One contestant process, seen from the judge."""

    def __init__(self, zygotes: Zygotes, memory_bytes: int) -> None:
        self.zygotes = zygotes
        self.cuda = zygotes.device != "cpu"
        self.scratch = Path(tempfile.mkdtemp(prefix="kernelwave-"))
        ours, theirs = channel.pair()
        page_fd = channel.sealed_memory("page", channel.PAGE_BYTES)
        try:
            self.identity, self.pid = zygotes.fork(self.scratch, (theirs.fileno(), page_fd), 120.0)
        except BaseException:
            ours.close()
            os.close(page_fd)
            clear(self.scratch)
            raise
        finally:
            theirs.close()
        self._generation = zygotes.generation
        self._watch = footprint.Watch(self.pid, self.scratch, memory_bytes)
        self.page = Page(page_fd)
        os.close(page_fd)
        self.sock = ours
        self.blocks: list[torch.Tensor] = []
        self.launches: list[Frame] = []
        self.kernels: list[Frame] = []
        self.gate_address = 0
        self._mapped: list[int] = []
        self._seq = 0
        self._armed = False
        self._paused = False
        try:
            hello = self._expect(Kind.HELLO, "start", 30.0)
        except BaseException:
            self.close()
            raise
        level, layers, missing = json.loads(hello.text)
        missing += [f"probe: {hole}" for hole in zygotes.holes()]
        proved = level == "partial" and not missing
        self.isolation = {"level": "full" if proved else level, "layers": layers, "missing": missing}

    @property
    def is_orphan(self) -> bool:
        """Whether another fork server has taken the place of the one that knows it."""
        return self._generation != self.zygotes.generation

    def build(self, job: dict[str, Any], blocks: int, deadline_s: float) -> None:
        """Send a job; map and prove the `blocks` buffers that it makes the contestant announce."""
        self.unmap()
        fd = channel.sealed_text(json.dumps(job))
        self._send(Frame(Kind.BUILD), (fd,))
        os.close(fd)
        slots_bytes = job["slot_bytes"] * job["slots"]
        sizes = [job["parameter_bytes"], slots_bytes + channel.GATE_BYTES, job.get("arena_bytes", 0)]
        for index in range(blocks):
            while len(self.blocks) <= index:
                self._expect(Kind.BUFFER, "build", deadline_s)
            if len(self.blocks[index]) < sizes[index]:
                raise Foul(Status.VIOLATION, "build", f"buffer {index} is shorter than the job says")
            word = secrets.randbits(62)
            self.blocks[index][:8].view(torch.int64).fill_(word)
            self._synchronize()
            self._send(Frame(Kind.ECHO, args=(index,)))
            if self._expect(Kind.NONCE, "build", deadline_s).args[:2] != (index, word):
                raise Foul(Status.VIOLATION, "build", f"buffer {index} is not the contestant's own memory")
        self.gate_address = self.blocks[1].data_ptr() + slots_bytes

    def load(self, deadline_s: float) -> float | None:
        """Have parameters copied in and `prepare` run; returns its time in us, if there is one."""
        self._send(Frame(Kind.LOAD))
        took_ns = self._expect(Kind.READY, "prepare", deadline_s).args[0]
        self._look("prepare", at_once=True)
        return None if took_ns < 0 else took_ns / 1e3

    def leave(self, deadline_s: float = 60.0) -> None:
        """Have the contestant stop serving calls and drop the cell; forget its buffers."""
        self._look("leave", at_once=True)
        self.ring(Call.LEAVE)
        self.wait("leave", deadline_s)
        self.unmap()
        self._send(Frame(Kind.RELEASE))
        self._expect(Kind.READY, "leave", deadline_s)
        self.pause()

    def pause(self) -> None:
        """Stop the process with its family until it is asked again: it cannot disturb what others do."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGSTOP)
        self._paused = True

    def _resume(self) -> None:
        if self._paused:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGCONT)
            self._paused = False

    def ring(self, kind: Call, calls: int = 1, seat: int = 0, offset_bytes: int = 0, gate: int = 0) -> None:
        """Ring GO."""
        self._seq += 1
        self.arm()
        self.page.ask(self._seq, kind, calls, seat, offset_bytes, gate)
        if not self.cuda:
            self._send(Frame(Kind.GO, seq=self._seq))
        self._armed = False

    def arm(self) -> None:
        """Have a CUDA contestant spin for the next GO; a CPU contestant is woken by GO itself.

        It sleeps between calls, since two that spin beside the judge slow each other's host down.
        """
        self._resume()
        if not self._armed:
            self._look("call")
        if self.cuda and not self._armed:
            self._send(Frame(Kind.GO))
            self._armed = True

    def wait(self, stage: str, deadline_s: float) -> int:
        """Wait for DONE; returns the claimed ns. Raises Foul at death, faults and the deadline."""
        if not self.cuda:
            self._expect(Kind.DONE, stage, deadline_s)
        elif not self._spin(_DONE, stage, deadline_s):
            raise self.late(stage, deadline_s)
        if self.page.words[_DONE] != self._seq:
            raise Foul(Status.MISSING, stage, "an answer to a call that was not asked")
        return int(self.page.words[5])

    def late(self, stage: str, deadline_s: float) -> Foul:
        """Return what to raise when a deadline has passed."""
        return self._foul(
            Status.TIMEOUT, stage, f"no answer within {deadline_s:g} s: --timeout S grants more"
        )

    def wait_issued(self, stage: str, deadline_s: float, *, watch: bool) -> bool:
        """Wait until a CUDA contestant has launched what was asked for; False at the deadline.

        While the judge's own stream is gated it must not `watch` for frames: mapping a buffer may wait for
        that stream.
        """
        return self._spin(_ISSUED, stage, deadline_s, watch=watch)

    def _spin(self, word: int, stage: str, deadline_s: float, *, watch: bool = True) -> bool:
        words, seq = self.page.words, self._seq
        begun = time.monotonic()
        polls = 0
        while words[word] != seq:
            polls += 1
            if polls & _POLLS_BETWEEN_FRAMES == 0:
                lasted_s = time.monotonic() - begun
                if watch:
                    self._take_frames(stage)
                    if lasted_s > _LONG_CALL_S:
                        self._look(stage)
                if lasted_s > deadline_s:
                    return False
        return True

    def raw_outputs(self, calls: int) -> bytes:
        """One copy of the last call's output descriptors, as bytes."""
        per_call = self.page.words[6]
        if not 0 < per_call * calls <= channel.MAX_OUTPUTS:
            raise Foul(Status.WRONG, "call", "no output, or too many: return what the reference returns")
        return self.page.descriptors(per_call * calls)

    @staticmethod
    def outputs(raw: bytes) -> list[Output]:
        """Descriptors, validated as far as numbers go."""
        try:
            return channel.parse_outputs(raw)
        except BadFrame as error:
            raise Foul(Status.MISSING, "call", str(error)) from error

    @property
    def copied_outputs(self) -> int:
        """How many outputs the contestant says it had to copy to make them readable."""
        return int(self.page.words[7])

    @property
    def mutated_switches(self) -> int:
        """How many of PyTorch's switches the contestant says its solution has changed."""
        return int(self.page.words[9])

    def prove(self, out: Output, deadline_s: float) -> None:
        """Have the word at an output's place read back: the mapping is the contestant's own memory."""
        at = -(-out.offset_bytes // 8) * 8
        block = self.blocks[out.block]
        if at + 8 > len(block):
            return
        word = secrets.randbits(62)
        block[at : at + 8].view(torch.int64).fill_(word)
        self._synchronize()
        self.ring(Call.ECHO, seat=out.block, offset_bytes=at)
        if self.wait("echo", deadline_s) != word:
            raise Foul(Status.VIOLATION, "echo", "an output that is not in the contestant's own memory")

    def view(self, out: Output) -> torch.Tensor:
        """View an output in its mapped buffer, or raise Foul if it does not lie there."""
        if out.block >= len(self.blocks):
            self._take_frames("call")
        dtype = getattr(torch, out.dtype)
        size = out.extent() * dtype.itemsize
        if not 0 <= out.block < len(self.blocks):
            raise Foul(Status.WRONG, "call", "an output that is not on the cell's device")
        block = self.blocks[out.block]
        if out.offset_bytes % dtype.itemsize or out.offset_bytes + size > len(block):
            raise Foul(Status.VIOLATION, "call", "an output that reaches beyond its buffer")
        flat = block[out.offset_bytes : out.offset_bytes + size].view(dtype)
        return flat.as_strided(out.shape, out.strides)

    def trace(self, deadline_s: float) -> list[Frame]:
        """Have a call traced; returns a frame for each kernel, or one that says why there is none."""
        self.kernels.clear()
        self.ring(Call.TRACE)
        self.wait("trace", deadline_s)
        self._take_frames("trace")
        return self.kernels[:]

    def _expect(self, kind: Kind, stage: str, deadline_s: float) -> Frame:
        end = time.monotonic() + deadline_s
        for frame in self._frames(stage, end):
            if frame.kind == kind:
                return frame
        raise self.late(stage, deadline_s)

    def _take_frames(self, stage: str) -> None:
        """Handle what has arrived, without waiting."""
        for frame in self._frames(stage, 0.0):
            if frame.kind not in (Kind.BUFFER, Kind.LAUNCH, Kind.KERNEL):
                raise self._foul(Status.MISSING, stage, f"an unexpected {frame.kind.name} frame")

    def _frames(self, stage: str, end: float) -> Iterator[Frame]:
        seen = 0
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        while True:
            left = end - time.monotonic()
            if not poll.poll(max(0.0, min(left, _POLL_S)) * 1e3):
                self._look(stage, hurried=left <= 0)
                if left <= 0:
                    return
                continue
            seen += 1
            if seen > _MAX_FRAMES:
                raise self._foul(Status.MISSING, stage, "a flood of frames")
            yield self._receive(stage)

    def _receive(self, stage: str) -> Frame:
        try:
            frame, fds = channel.receive(self.sock)
        except (EOFError, ConnectionResetError):  # reset: it died with frames of ours unread
            raise self._death(stage) from None
        except (BadFrame, OSError) as error:
            raise self._foul(Status.MISSING, stage, f"malformed frame: {error}") from error
        try:
            if frame.kind == Kind.BUFFER:
                self._map(frame, fds)
            elif frame.kind == Kind.LAUNCH:
                _require_possible(frame)
                self.launches.append(frame)
            elif frame.kind == Kind.KERNEL:
                _require_plausible(frame)
                self.kernels.append(frame)
                if len(self.kernels) > channel.MAX_KERNELS:
                    raise BadFrame("more kernels than were asked for")
            elif frame.kind == Kind.ERROR:
                raise self._foul(_FAULTS.get(frame.code, Status.MISSING), stage, frame.text)
        except (BadFrame, cuda_ipc.CudaError) as error:
            raise self._foul(Status.VIOLATION, stage, str(error)) from error
        finally:
            for fd in fds:
                os.close(fd)
        return frame

    def _map(self, frame: Frame, fds: list[int]) -> None:
        index, size = frame.args[:2]
        if index != len(self.blocks) or not 0 < size < 2**40:
            raise BadFrame("a buffer out of order")
        if self.cuda:
            address, real = cuda_ipc.map_handle(frame.payload)
            self._mapped.append(address)
            self.blocks.append(
                torch.as_tensor(cuda_ipc.DeviceBytes(address, real), device=self.zygotes.device)
            )
            return
        if not fds:
            raise BadFrame("a buffer without memory")
        if index >= _HOST_BUFFERS:
            raise BadFrame("more buffers than a cell has")
        self.blocks.append(torch.frombuffer(channel.map_foreign(fds[0], size), dtype=torch.uint8))

    def unmap(self) -> None:
        """Drop all mappings of the contestant's memory."""
        self.blocks.clear()
        self.launches.clear()
        for address in self._mapped:
            with contextlib.suppress(cuda_ipc.CudaError):
                cuda_ipc.unmap(address)
        self._mapped.clear()

    def _send(self, frame: Frame, fds: tuple[int, ...] = ()) -> None:
        self._resume()
        try:
            channel.send(self.sock, frame, fds, _GRACE_S)
        except TimeoutError:
            raise self._foul(Status.TIMEOUT, "send", "does not read what it is sent") from None
        except OSError:
            raise self._death("send") from None

    def _synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _look(self, stage: str, *, hurried: bool = False, at_once: bool = False) -> None:
        """Raise Foul where the contestant holds too much."""
        if excess := self._watch.excess(hurried=hurried, at_once=at_once):
            raise self._foul(Status.OOM, stage, excess)

    def _death(self, stage: str) -> Foul:
        """Name the death of a contestant: an exit code never means anything good."""
        try:
            status, log = self.zygotes.exit_of(self.identity, _GRACE_S)
        except TimeoutError:  # an empty datagram looks like the end, too
            return self._foul(Status.MISSING, stage, "closed its channel without an answer")
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            name = next((s.name for s in signal.Signals if s == number), f"signal {number}")
            return self._foul(Status.CRASH, stage, f"ended by {name}", log)
        code = os.waitstatus_to_exitcode(status)
        return self._foul(Status.MISSING, stage, f"ended without an answer (exit code {code})", log)

    def _foul(self, status: Status, stage: str, reason: str, detail: str = "") -> Foul:
        """Tell a foul in one line; the lines of a longer reason are its detail."""
        detail = detail or (reason if "\n" in reason else "")
        return Foul(status, stage, " ".join(reason.split()) or "no reason given", detail[-_DETAIL_CHARS:])

    def close(self) -> str:
        """Kill the process and all it started, remove its scratch folder; return the end of its prints."""
        buried, printed = False, ""
        if not self.is_orphan:
            self.zygotes.kill(self.identity)
            with contextlib.suppress(RuntimeError, TimeoutError):
                _, printed = self.zygotes.exit_of(self.identity)
                buried = True
        if not buried:  # it has died with its fork server, and what it had started has not
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.unmap()
        self.sock.close()
        clear(self.scratch)
        return printed


def _require_possible(launch: Frame) -> None:
    """Raise BadFrame for a launch that no device could make: occupancy is computed from its figures."""
    *grid, warps, registers, spills, shared_bytes = launch.args[:7]
    unknown = -1
    if min(grid) < 0 or warps < 1 or registers == 0 or min(registers, spills, shared_bytes) < unknown:
        raise BadFrame("a launch that no device could make")
    try:
        arithmetic.read(launch.payload)
    except ValueError as error:
        raise BadFrame(f"a launch in {error}") from error


def _require_plausible(kernel: Frame) -> None:
    """Raise BadFrame for a kernel that no trace could name: shares are computed from its time."""
    launches, *facts = kernel.args
    named = launches > 0 and re.fullmatch(rb"[a-z]*", kernel.payload.rstrip(b"\0"))
    if not kernel.code and (not named or min(facts) < 0):
        raise BadFrame("a kernel that no trace could name")
