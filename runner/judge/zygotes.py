"""The fork server of a device, seen from the judge: it forks contestants, reaps them, and is probed once."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runner import channel, load
from runner.channel import BadFrame
from runner.contestant.sandbox import allowed_environment
from runner.contestant.scratch import clear
from runner.contestant.zygote import MESSAGE_BYTES, UNCONFINED

_PROBE_S = 30.0
_CLOSE_S = 30.0


class NoFork(RuntimeError):
    """The fork server lives, and the system lets it fork or watch no more."""


class Zygotes:
    """The fork server of one device, started on first use and again if it dies.

    Contestants are `confined` always but where the selftest asks what that costs.
    """

    def __init__(self, device: str, *, confined: bool = True) -> None:
        self.device = device
        self._confined = confined
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._exits: dict[int, tuple[int, str]] = {}
        self._forks: dict[int, int] = {}
        self._next = 0
        self.generation = 0  # how often a server was started: identities are those of one
        self._holes: tuple[str, ...] | None = None

    def _start(self) -> socket.socket:
        if self._process is not None and self._process.poll() is None and self._control is not None:
            return self._control
        ours, theirs = channel.pair()
        # unbuffered: what a contestant printed is there when it is killed
        command = [sys.executable, "-u", "-m", "runner.contestant.zygote", str(theirs.fileno()), self.device]
        command += [] if self._confined else [UNCONFINED]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=allowed_environment(os.environ),
            cwd=load.ROOT,
        )
        theirs.close()
        if self._control is not None:  # of one that has died
            self._control.close()
        self._control, self._holes = ours, None
        self.generation += 1
        return ours

    def fork(
        self, scratch: Path, fds: tuple[int, ...], deadline_s: float, probe: int | None = None
    ) -> tuple[int, int]:
        """Fork a contestant, or a probe of the process `probe`; returns its identity and its pid.

        Raises NoFork where the system has too little left for one.
        """
        identity = self._next
        self._next += 1
        message = json.dumps({"fork": identity, "scratch": str(scratch), "probe": probe}).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            self._start().sendmsg([message], rights)
        except (BrokenPipeError, ConnectionResetError):  # it is dying, and its process may not have ended yet
            self.close()
            self._start().sendmsg([message], rights)
        end = time.monotonic() + deadline_s
        while identity not in self._forks:
            self._listen(end)
        return identity, self._forks.pop(identity)

    def holes(self) -> tuple[str, ...]:
        """Return what a child in the sandbox was not refused; tried once for each fork server."""
        if self._holes is None:
            self._holes = self._probe() if self._confined else ("not confined",)
        return self._holes

    def _probe(self) -> tuple[str, ...]:
        scratch = Path(tempfile.mkdtemp(prefix="kernelwave-"))
        ours, theirs = channel.pair()
        ours.settimeout(_PROBE_S)
        try:
            with theirs:
                identity, _ = self.fork(scratch, (theirs.fileno(),), _PROBE_S, os.getpid())
            said, _ = channel.receive(ours)
            self.exit_of(identity)
        except (OSError, EOFError, BadFrame) as error:
            return (f"no answer ({type(error).__name__})",)
        finally:
            ours.close()
            clear(scratch)
        return tuple(said.text.split(", ")[: said.args[0]])

    def kill(self, identity: int) -> None:
        """Kill a contestant with its process group."""
        if self._control is not None and identity not in self._exits:
            with contextlib.suppress(OSError):
                self._control.send(json.dumps({"kill": identity}).encode())

    def exit_of(self, identity: int, deadline_s: float = 10.0) -> tuple[int, str]:
        """Return a dead contestant's wait status and the end of its output; TimeoutError if it lives."""
        end = time.monotonic() + deadline_s
        while identity not in self._exits:
            self._listen(end)
        return self._exits[identity]

    def _listen(self, end: float) -> None:
        assert self._control is not None  # noqa: S101 - only called after _start
        left = end - time.monotonic()
        if left <= 0 or not select.select([self._control], [], [], left)[0]:
            raise TimeoutError("the fork server does not answer")
        data = self._control.recv(MESSAGE_BYTES)
        if not data:
            raise RuntimeError("the fork server has died")
        message = json.loads(data)
        if "forked" in message:
            self._forks[message["forked"]] = message["pid"]
        elif "failed" in message:
            raise NoFork(message["failed"])
        else:
            self._exits[message["exited"]] = (message["status"], message["log"])

    def close(self) -> None:
        """Let the server and all its children go."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_CLOSE_S)  # it may be burying, and nobody else does
            self._process.kill()
            self._process.wait()
