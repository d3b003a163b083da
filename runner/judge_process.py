"""The command line's handle on the judge: start it, ask it, start it again if it dies."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from runner.gpu_lock import DeviceBusy
from runner.load import ROOT


class JudgeDied(Exception):
    """The judge's process ended; the cell in hand has no verdict."""


class Judge:
    """One judge process. Raises DeviceBusy where another one has the GPU, JudgeDied where none starts."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._asked = False
        command = [sys.executable, "-m", "runner.judge", device]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the command line, which then lets the judge go
        )
        try:
            first = self._read()
            if "busy" in first:
                raise DeviceBusy(first["busy"])
            if "unusable" in first:
                raise JudgeDied(first["unusable"])
        except BaseException:  # Ctrl-C, too
            self._process.kill()  # it has no contestants yet
            self.close()
            raise
        self.environment: dict[str, Any] = first["environment"]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Have one cell ruled on."""
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._asked = True
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise JudgeDied(self._ending()) from error
        answer = self._read()
        self._asked = False
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        line = self._process.stdout.readline()
        if not line.endswith("\n"):  # it may have died in the middle of one
            raise JudgeDied(self._ending())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ending(self) -> str:
        return f"the judge ended with code {self._process.wait()}"

    def close(self) -> None:
        """End the judge, and its contestants with it; one that is asked something still, by a signal."""
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        assert self._process.stdout is not None  # noqa: S101
        if self._asked:  # it hears nothing until a solution has answered, which may take a minute
            self._process.kill()
        try:
            self._process.stdin.close()
            self._process.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
