"""A solution in a process of its own on the GPU that is here, under ncu or with nobody watching."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from runner import cards, gpu_lock, ncu
from runner.decode import Malformed, decode
from runner.load import ROOT, Problem, Solution
from runner.pipeline import HarnessFailure
from runner.schema import Cell, Launch

#: Words that start the process.
CHILD = ("-m", "runner.profiled")
#: What that computes on: the first GPU it sees.
DEVICE = "cuda:0"


@dataclass(frozen=True)
class Device:
    """The GPU as the driver names it, and the Triton that compiles for it."""

    name: str
    sms: int
    triton: str

    @property
    def card(self) -> cards.Card | None:
        """Its data sheet, if it is a known one."""
        return cards.card_for_device(self.name, self.sms)


@dataclass(frozen=True)
class Seen:
    """What became of one cell: launches of a call as Triton made them, or an error."""

    launches: tuple[Launch, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Observation:
    """One run over all cells; `table` is what ncu of `version` saw, None where it did not watch."""

    device: Device
    seen: tuple[Seen, ...]
    table: ncu.Table | None = None
    version: str = ""


@dataclass(frozen=True)
class Settings:
    """What to ask ncu for, and how; `timeout_s` is for one solution in all cells."""

    metrics: tuple[str, ...]
    clock_control: str = "none"
    cache_control: str = "all"
    timeout_s: float = 600.0


@dataclass(frozen=True)
class _Ended:
    """A process that has ended, or was ended after too long (`code` is then None), and what it left."""

    code: int | None
    report: str
    log: str
    said: str


def counted(problem: Problem, solution: Solution, cells: Sequence[Cell], settings: Settings) -> Observation:
    """Run a solution under ncu, which is not asked for what the chip lacks.

    Raises NoCounters, and HarnessFailure if the process does not even begin.
    """
    tool = ncu.find()
    if tool is None:
        raise ncu.NoCounters(f"Nsight Compute is not installed: {ncu.GET_IT}")
    lacking = ncu.lacking(tool, settings.metrics)
    asked = [name for name in settings.metrics if name not in lacking]

    def watched(log: Path, child: list[str]) -> list[str]:
        return ncu.command_line(tool, asked, settings.clock_control, settings.cache_control, log, child)

    ended = _run(problem, solution, cells, watched, settings.timeout_s)
    if ended.code is None:
        raise ncu.NoCounters(f"ncu did not end within {settings.timeout_s:g} s: raise --timeout")
    if complaint := ncu.complaint(ended.log, ended.code):
        raise ncu.NoCounters(complaint)
    device, seen = _decode(ended, len(cells))
    table = ncu.read(ended.log, asked)
    if not table.launches and not all(one.error for one in seen):
        raise ncu.NoCounters("ncu saw no kernel in the profiled call")
    return Observation(device, seen, table, ncu.version(tool))


def plain(problem: Problem, solution: Solution, cells: Sequence[Cell], timeout_s: float) -> Observation:
    """Run a solution with nobody watching; raises HarnessFailure if the process does not even begin."""
    ended = _run(problem, solution, cells, lambda _, child: child, timeout_s)
    return Observation(*_decode(ended, len(cells)))


def _run(
    problem: Problem,
    solution: Solution,
    cells: Sequence[Cell],
    wrap: Callable[[Path, list[str]], list[str]],
    timeout_s: float,
) -> _Ended:
    """Start the child as `wrap` says, see it and all that it started end, and return what they left."""
    request = {
        "problem": problem.name,
        "path": str(problem.path),
        "reference": problem.source,
        "source": solution.source,
        "name": solution.name,
        "digest": solution.digest,
        "cells": [{"shape": cell.shape, "dtype": cell.dtype, "math": cell.math} for cell in cells],
    }
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    with (
        gpu_lock.hold(gpu_lock.uuid_of(DEVICE), DEVICE),
        TemporaryDirectory(prefix="kernelwave-profile-") as folder,
    ):
        question, report, log, said = (Path(folder) / name for name in ("request", "report", "log", "said"))
        question.write_text(json.dumps(request))
        command = wrap(log, [sys.executable, *CHILD, str(question), str(report)])
        with said.open("w") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=ROOT,
                env=environment,
                start_new_session=True,  # so that all of it can be ended
            )
        code = _wait(process, timeout_s)
        return _Ended(code, *(_text(file) for file in (report, log, said)))


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """Return the exit code, None after too long; nothing of the session is left, however this ends."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


def _decode(ended: _Ended, cells: int) -> tuple[Device, tuple[Seen, ...]]:
    """Read the child's report; cells that it did not come to have its last words as their error."""
    last = next((line.strip() for line in reversed(ended.said.splitlines()) if line.strip()), "no word")
    lines = ended.report.splitlines()
    try:
        device: Device = decode(Device, json.loads(lines[0]))
        seen = tuple(decode(Seen, json.loads(line)) for line in lines[1:])
    except (IndexError, ValueError) as error:
        kept = str(error) if isinstance(error, Malformed) else last
        raise HarnessFailure(f"the process to be profiled failed: {kept}") from None
    end = "it took too long" if ended.code is None else f"the process ended with code {ended.code}: {last}"
    return device, seen + (Seen(error=end),) * (cells - len(seen))
