"""The contestant's main loop: build what the job says, then answer calls.

Everything here runs beside foreign code and may be changed by it; the judge believes none of it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner import channel, cuda_ipc, models
from runner.channel import Call, Fault, Frame, Kind, Page
from runner.contestant import sandbox, switches, trace, witness
from runner.contestant.asides import ASIDES, Timer, measure
from runner.contestant.build import (
    TORCH_DTYPES,
    Refused,
    construct,
    decode,
    execute,
    fault_in_call,
    load_parameters,
    preparation,
    read_job,
    set_arithmetic,
    story,
    view,
)
from runner.contestant.memory import DeviceMemory, HostMemory


@dataclass
class Seat:
    """One callable with a host thread of its own: cuDNN keeps its plans per thread."""

    forward: Callable[..., Any]
    configure: Callable[[], None]
    wake: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    held: list[torch.Tensor] = field(default_factory=list)


@dataclass
class _Missing:
    """In the place of a baseline that could not be made."""

    error: Exception

    def __call__(self, *_: object) -> None:
        raise self.error


class Contestant:
    """One cell at a time: build, load, then serve calls until LEAVE."""

    def __init__(self, sock: socket.socket, page: Page, scratch: Path, device: torch.device) -> None:
        self.sock, self.page, self.scratch, self.device = sock, page, scratch, device
        self.memory: HostMemory | DeviceMemory
        self.memory = DeviceMemory(sock, device) if device.type == "cuda" else HostMemory(sock)
        self.modules: dict[str, types.ModuleType] = {}
        self.blocks: list[torch.Tensor] = []
        self.slots: list[list[Any]] = []
        self.gate_address = 0
        self.seats: list[Seat] = []
        self.model: nn.Module | None = None
        self.green: Any = None
        self.sms = 0
        self.switches = switches.snapshot()
        self.returning = threading.Event()
        self.failure: BaseException | None = None

    def loop(self) -> None:
        """Serve frames until the judge closes the channel (EOFError)."""
        job: dict[str, Any] = {}
        while True:
            frame, fds = channel.receive(self.sock)
            if frame.kind == Kind.BUILD:
                self.release()
                job = read_job(fds[0])
                set_arithmetic(job["dtype"], job["math"])
                self.switches |= {k: v for k, v in switches.snapshot().items() if k.endswith(_ARITHMETIC)}
                self.model = construct(job, self.modules, self.scratch, self.device)
                self.allocate(job)
                self.restrict(job["sms"])
            elif frame.kind == Kind.ECHO:
                word = self.memory.peek(frame.args[0], 0)
                channel.send(self.sock, Frame(Kind.NONCE, args=(frame.args[0], word)))
            elif frame.kind == Kind.RELEASE:
                self.release()
                channel.send(self.sock, Frame(Kind.READY, args=(-1,)))
            elif frame.kind == Kind.LOAD:
                prepare_ns = self.load(job)
                channel.send(self.sock, Frame(Kind.READY, args=(prepare_ns,)))
                self.take_seats()
            else:
                raise RuntimeError(f"{frame.kind.name} comes out of turn")

    def release(self) -> None:
        """Drop the last cell: model, outputs, buffers."""
        self.model = None
        self.seats.clear()
        self.slots.clear()
        self.blocks.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.memory.free()

    def allocate(self, job: dict[str, Any]) -> None:
        """Allocate parameters (block 0), input slots (block 1) and, on the host, the output arena."""
        slots_bytes = job["slot_bytes"] * job["slots"]
        self.blocks = [
            self.memory.block(job["parameter_bytes"]),
            self.memory.block(slots_bytes + channel.GATE_BYTES),
        ]
        self.gate_address = self.blocks[1].data_ptr() + slots_bytes
        if isinstance(self.memory, HostMemory):
            self.memory.arena(job["arena_bytes"])
        for slot in range(job["slots"]):
            start = slot * job["slot_bytes"]
            self.slots.append([self._argument(start, item) for item in job["inputs"]])

    def _argument(self, start: int, item: dict[str, Any]) -> Any:
        """View an input that is a tensor in the slot at this byte; another is in the job itself."""
        if "value" in item:
            return decode(item["value"])
        return view(self.blocks[1], start + item["offset"], item)

    def restrict(self, sms: int) -> None:
        """Have all calls run in a stream of a green context, which has that many SMs; 0 for the whole GPU."""
        if self.green is not None and sms != self.sms:
            raise RuntimeError(f"this process has {self.sms} SMs for its life, not {sms}")
        if sms and self.green is None:
            self.sms = sms
            from torch.cuda.green_contexts import GreenContext  # noqa: PLC0415 - where it is asked for

            self.green = GreenContext.create(num_sms=sms, device_id=self.device.index or 0)

    def lane(self) -> contextlib.AbstractContextManager[Any]:
        """The stream that a seat's calls are launched in."""
        return contextlib.nullcontext() if self.green is None else torch.cuda.stream(self.green.Stream())

    def load(self, job: dict[str, Any]) -> int:
        """Copy the judge's parameters into the model and let it prepare; returns ns, or -1."""
        model = self.model
        assert model is not None  # noqa: S101 - LOAD follows BUILD
        given = {p["name"]: view(self.blocks[0], p["offset"], p) for p in job["parameters"]}
        load_parameters(model, given)
        took_ns = -1
        prepare = preparation(model) if job["prepare"] else None
        if prepare is not None:
            start = time.perf_counter_ns()
            try:
                with torch.inference_mode():
                    prepare()
                self.synchronize()
            except BaseException as error:
                raise Refused(Fault.BUILD, story(error)) from error
            took_ns = time.perf_counter_ns() - start
        self.seats = [self.seat(name, model, job) for name in job["policies"]] or [Seat(model, lambda: None)]
        return took_ns

    def seat(self, policy: str, given: nn.Module, job: dict[str, Any]) -> Seat:
        """Make a baseline's seat: its own copy of the model under its own policy."""
        module = import_module(f"runner.baselines.{policy}")
        model = execute(job["source"], f"reference_{policy}", self.scratch)
        instance = models.construct(getattr(model, job["entry"]), decode(job["init"]))
        instance = models.settle(instance, self.device, TORCH_DTYPES[job["dtype"]])
        instance.load_state_dict(given.state_dict())

        def configure() -> None:
            for name, value in module.FLAGS.items():
                setattr(torch.backends.cudnn, name, value)
            set_arithmetic(job["dtype"], job["math"])

        try:
            forward = module.wrap(instance)
        except Exception as error:  # noqa: BLE001 - a baseline that this problem cannot have fails when it is called
            forward = _Missing(error)
        return Seat(forward, configure)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def take_seats(self) -> None:
        """Serve calls, the first seat on this thread and each other one on its own, until LEAVE."""
        gc.collect()
        gc.disable()
        self.returning.clear()
        threads = [
            threading.Thread(target=self._seated, args=(index,), daemon=True)
            for index in range(1, len(self.seats))
        ]
        for thread in threads:
            thread.start()
        self.seats[0].wake.release()
        self._seated(0)
        for thread in threads:
            thread.join()
        gc.enable()
        if self.failure is not None:
            raise self.failure

    def _seated(self, index: int) -> None:
        seat = self.seats[index]
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        with torch.inference_mode(), self.lane():
            while True:
                seat.wake.acquire()
                if self.returning.is_set():
                    return
                try:
                    following = self.serve(seat)
                except BaseException as error:  # noqa: BLE001 - carried to the main thread
                    self.failure, following = error, None
                if following is None:
                    self.returning.set()
                    for other in self.seats:
                        other.wake.release()
                    return
                self.seats[following].wake.release()

    def serve(self, seat: Seat) -> int | None:
        """Answer calls on the page; returns the seat to go on with, or None at LEAVE."""
        seat.configure()
        page, words = self.page, self.page.words
        answer = page.answer if self.device.type == "cuda" else self._answer
        last = words[1]
        while True:
            seq = self.await_go(words, last)
            kind, calls = words[3], words[2]
            last = seq
            if kind == Call.FORWARD:
                claim_ns = self.forward(seat, calls)
                answer(seq, claim_ns, len(seat.held) // calls)
            elif kind == Call.NULL:
                answer(seq, self.null(seat), 0)
            elif kind in ASIDES:
                answer(seq, measure(kind, seat.forward, self.slots[:calls], seat.held), 0)
            elif kind in (Call.WITNESS, Call.TRACE):
                claim_ns = self.report(seat, kind, calls)
                page.remark(len(switches.changed(self.switches)))
                answer(seq, claim_ns, len(seat.held) // calls)
            elif kind == Call.ECHO:
                answer(seq, self.memory.peek(words[4], words[8]), 0)
            elif kind == Call.SELECT:
                following = words[4]
                seat.held.clear()
                answer(seq, 0, 0)
                return int(following)
            else:
                seat.held.clear()
                answer(seq, 0, 0)
                return None

    def forward(self, seat: Seat, calls: int) -> int:
        """Run `calls` calls on their slots, say where the outputs are; returns the claimed ns."""
        held = seat.held
        held.clear()
        self.queue_at_gate()
        timer = Timer(self.device)
        try:
            for slot in self.slots[:calls]:
                _collect(seat.forward(*slot), held)
            timer.end()
            self.page.issued(self.page.words[0])
            claim_ns = timer.stop()
        except BaseException as error:
            raise fault_in_call(error) from error
        self.publish(held)
        return claim_ns

    def report(self, seat: Seat, kind: int, calls: int) -> int:
        """Tell the judge what a call launches, or which kernels one ran; returns the claimed ns."""
        claim_ns = 0
        if kind == Call.TRACE:
            seat.held.clear()
            frames = trace.frames(seat.forward, self.slots[0], self.scratch)
        else:
            with witness.launches() as frames:
                claim_ns = self.forward(seat, calls)
        for frame in frames:
            channel.send(self.sock, frame)
        return claim_ns

    def queue_at_gate(self) -> None:
        """Have what is launched from here on wait for the judge's word, if this call has one."""
        word = self.page.words[10]
        if word:
            cuda_ipc.wait_word(torch.cuda.current_stream().cuda_stream, self.gate_address, word)

    def publish(self, held: list[torch.Tensor]) -> None:
        """Say on the page where outputs lie."""
        try:
            packed, copied = self.memory.locate(held)
        except ValueError as error:
            raise Refused(Fault.OUTPUT, str(error)) from error
        self.page.describe(packed)
        self.page.note(copied)

    def null(self, seat: Seat) -> int:
        """Launch nothing worth naming: what a call costs before it does anything."""
        self.queue_at_gate()
        timer = Timer(self.device)
        if self.device.type == "cuda":
            torch.cuda._sleep(1)  # type: ignore[no-untyped-call] # noqa: SLF001 - the smallest launch there is
        timer.end()
        self.page.issued(self.page.words[0])
        claim_ns = timer.stop()
        if seat.held:
            self.publish(seat.held)
        return claim_ns

    def await_go(self, words: memoryview, last: int) -> int:
        """Sleep until the judge arms this process, then spin: on a CPU GO is there already."""
        channel.receive(self.sock)
        while words[0] == last:
            pass
        return words[0]

    def _answer(self, seq: int, claim_ns: int, outputs_per_call: int) -> None:
        self.page.answer(seq, claim_ns, outputs_per_call)
        channel.send(self.sock, Frame(Kind.DONE, seq=seq))


#: Switches that the cell itself sets.
_ARITHMETIC = ("allow_tf32", "precision")


def _collect(result: object, held: list[torch.Tensor]) -> None:
    if isinstance(result, torch.Tensor):
        held.append(result)
    elif isinstance(result, (tuple, list)) and all(isinstance(r, torch.Tensor) for r in result):
        held.extend(result)
    else:
        raise Refused(
            Fault.OUTPUT, f"forward returned {type(result).__name__}: return a tensor, or a tuple of tensors"
        )


def main(
    sock: socket.socket, page_fd: int, scratch: Path, device_name: str, *, confined: bool = True
) -> None:
    """Enter the sandbox, say which level was reached, then serve."""
    sandbox.close_descriptors({0, 1, 2, sock.fileno(), page_fd})
    page = Page(page_fd)
    os.close(page_fd)
    kind = device_name.partition(":")[0]
    isolation = sandbox.enter(scratch, device=kind) if confined else sandbox.unconfined(scratch)
    torch.set_num_threads(1)
    told = [isolation.level, isolation.layers, [text[:40] for text in isolation.missing]]
    channel.send(sock, Frame(Kind.HELLO, text=json.dumps(told)))
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.empty(1, device=device)  # makes the context that raw driver calls need
    contestant = Contestant(sock, page, scratch, device)
    try:
        contestant.loop()
    except EOFError:
        return
    except Refused as refused:
        channel.send(sock, Frame(Kind.ERROR, code=refused.fault, text=str(refused)))
