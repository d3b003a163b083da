"""A solution's Triton launches, compiled for cards that need not be there, at full size without its memory.

The solution runs in the sandbox of `runner.contestant.meta`. What comes back was written beside foreign code
and is taken for hostile: its size is capped, its form decoded strictly, its numbers held to what exists.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.cards import MAX_REGISTERS_PER_THREAD, WARP_THREADS, Card
from runner.contestant.sandbox import allowed_environment
from runner.decode import decode
from runner.load import ROOT, Problem, Solution
from runner.schema import Cell, Launch

#: A line tells of at most 512 launches; each has a kernel's constants.
MAX_LINE_BYTES = 2**21
TIMEOUT_S = 120.0
_MAX_GRID = 2**31
_MAX_WARPS = 64
_MAX_LAUNCHES = 512
_LOG = "log"
_LOG_TAIL_BYTES = 300


class BadAnswer(Exception):
    """A child's line is no answer to what it was asked."""


@dataclass(frozen=True)
class Compiled:
    """One launch as compiled for one card.

    `call` numbers the launches of a forward; an autotuned one has an entry for each `config`, its `choice`
    counted from 1 of `choices`. `constants` are the kernel's constexprs. `spills` are 32-bit
    words per thread; `program_ids` the axes that the kernel asks for; `tile` is `MxNxK` of its largest dot,
    else the shape of its largest store; `dot` the arithmetic of its matrix instructions; `tile_loop` says
    that it strides over its grid as a persistent kernel does. With an `error` it does not compile, and what
    only a binary could tell is None or empty.
    """

    call: int
    kernel: str
    grid: tuple[int, int, int]
    config: str
    choice: int
    choices: int
    constants: dict[str, bool | int | str]
    num_warps: int | None = None
    num_stages: int | None = None
    num_ctas: int | None = None
    registers: int | None = None
    spills: int | None = None
    shared_bytes: int | None = None
    program_ids: str = ""
    tile: str = ""
    dot: str = ""
    tile_loop: bool = False
    error: str = ""

    @property
    def launch(self) -> Launch | None:
        """The launch as the rest of the runner knows it; None where there is no binary."""
        if self.num_warps is None or self.registers is None:
            return None
        return Launch(self.kernel, self.grid, self.num_warps, self.registers, self.spills, self.shared_bytes)


@dataclass(frozen=True)
class Forward:
    """One `forward` on one card.

    `operators` counts the operators of PyTorch that it calls and whose kernels are not seen. `memory_bytes`
    is what inputs, parameters and everything made from them hold, as if nothing were freed;
    `traffic_bytes` what the reference's inputs, parameters and outputs hold, 0 where nobody knows. With an
    `error` the solution could not be run.
    """

    cell: int
    card: int
    triton: str
    launches: tuple[Compiled, ...] = ()
    operators: dict[str, int] = field(default_factory=dict)
    memory_bytes: int = 0
    traffic_bytes: int = 0
    error: str = ""


def retarget(
    problem: Problem,
    solution: Solution,
    cells: Sequence[Cell],
    cards: Sequence[Card],
    timeout_s: float = TIMEOUT_S,
) -> list[Forward]:
    """Return what a solution launches for every cell on every card, cell by cell.

    A solution that ends its process, says nothing for `timeout_s` or answers nonsense has that as the
    `error` of all forwards it still owes.
    """
    request = {
        "problem": problem.source,
        "source": solution.source,
        "name": solution.name,
        "digest": solution.digest,
        "cells": [{"shape": cell.shape, "dtype": cell.dtype, "math": cell.math} for cell in cells],
        "cards": [device_properties(card) for card in cards],
    }
    owed = [(cell, card) for cell in range(len(cells)) for card in range(len(cards))]
    found: list[Forward] = []
    error = ""
    with tempfile.TemporaryDirectory(prefix="kernelwave-") as folder:
        with _child(Path(folder), request) as report:
            try:
                for line, place in zip(_lines(report, timeout_s), owed, strict=False):
                    found.append(read_forward(line, place))
            except (BadAnswer, TimeoutError) as refused:
                error = str(refused)
        error = error or f"ended without an answer{_last_words(Path(folder) / _LOG)}"
    return found + [Forward(*place, triton="", error=error) for place in owed[len(found) :]]


def device_properties(card: Card) -> dict[str, Any]:
    """Describe a card by the names that `torch.cuda.get_device_properties` uses."""
    major, minor = card.compute_capability
    return {
        "name": next(iter(card.driver_names), card.title),
        "major": major,
        "minor": minor,
        "multi_processor_count": card.sms,
        "total_memory": card.memory_bytes,
        "L2_cache_size": card.l2_bytes,
        "regs_per_multiprocessor": card.registers_per_sm,
        "max_threads_per_multi_processor": card.max_threads_per_sm,
        "shared_memory_per_multiprocessor": card.shared_bytes_per_sm,
        "shared_memory_per_block_optin": card.shared_bytes_per_program,
        "warp_size": WARP_THREADS,
    }


def read_forward(line: bytes, expected: tuple[int, int]) -> Forward:
    """Decode one line about the expected (cell, card), or raise BadAnswer."""
    try:
        forward: Forward = decode(Forward, json.loads(line))
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"an answer that is none: {str(error)[:100]}") from None
    if (forward.cell, forward.card) != expected or len(forward.launches) > _MAX_LAUNCHES:
        raise BadAnswer("an answer to another question")
    sizes = (forward.memory_bytes, forward.traffic_bytes)
    if not all(0 <= size < 2**63 for size in sizes) or not all(map(_plausible, forward.launches)):
        raise BadAnswer("an answer with impossible numbers")
    return forward


def _plausible(made: Compiled) -> bool:
    sizes = all(0 <= size < _MAX_GRID for size in (*made.grid, made.call, made.choice, made.choices))
    launch = made.launch
    return sizes and (
        launch is None
        or (
            0 < launch.num_warps <= _MAX_WARPS
            and 0 < (launch.registers or 0) <= MAX_REGISTERS_PER_THREAD
            and 0 <= (launch.spills or 0) < _MAX_GRID
            and 0 <= (-1 if launch.shared_bytes is None else launch.shared_bytes) < _MAX_GRID
        )
    )


@contextlib.contextmanager
def _child(folder: Path, request: dict[str, Any]) -> Iterator[int]:
    """Start the process on a request, give the end of the pipe that it answers on, and see it end."""
    scratch, question = folder / "scratch", folder / "request"
    scratch.mkdir()
    question.write_text(json.dumps(request))
    environment = allowed_environment(os.environ) | {"OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)  # it decides at import what a kernel is
    report, theirs = os.pipe()
    try:
        with question.open() as asked, (folder / _LOG).open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "runner.contestant.meta", str(theirs), str(scratch)],
                stdin=asked,
                stdout=said,
                stderr=said,
                pass_fds=[theirs],
                env=environment,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C is for the command line, which then ends it
            )
        os.close(theirs)
        try:
            yield report
        finally:
            process.terminate()
            process.wait()
    finally:
        os.close(report)


def _lines(report: int, timeout_s: float) -> Iterator[bytes]:
    """Yield lines until the other end closes; TimeoutError after silence, BadAnswer for an endless line."""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    rest, end = b"", time.monotonic() + timeout_s
    while poll.poll(max(0.0, end - time.monotonic()) * 1e3):
        data = os.read(report, 65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if len(rest) > MAX_LINE_BYTES:
            raise BadAnswer("an answer that is too long")
        if lines:
            end = time.monotonic() + timeout_s
    raise TimeoutError(f"no answer within {timeout_s:g} s")


def _last_words(log: Path) -> str:
    """Return the last line that a process wrote before it ended."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    words = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {words}" if words else ""
