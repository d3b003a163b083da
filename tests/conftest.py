"""What the end-to-end tests share: the command line as a process, and sight of what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from runner.contestant import libc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
PR_SET_CHILD_SUBREAPER = 36

# examples take longer where two cores are shared, and a slow one is no failure
settings.register_profile("kernelwave", deadline=None)
settings.load_profile("kernelwave")


def children(pid: int) -> set[int]:
    """Return the processes that any thread of `pid` is the parent of."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found.update(map(int, (task / "children").read_text().split()))
    return found


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = 30.0) -> None:
    """Poll until a condition holds; a test fails that waits longer."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline_s:g} s for {what}")
        time.sleep(0.01)


class CommandLine:
    """`python -m runner` in processes of its own, with its own folders for results and temporary files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results, self.temporary = folder, folder / "results", folder / "tmp"
        self.temporary.mkdir()
        self._runs = 0
        self._others = children(os.getpid())

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a run; what it says goes to files, which hold nobody up."""
        self._runs += 1
        command = [sys.executable, "-m", "runner", *map(str, arguments), "--results", str(self.results)]
        environment = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        with self._said("out").open("w") as out, self._said("err").open("w") as err:
            return subprocess.Popen(
                command, stdout=out, stderr=err, text=True, cwd=ROOT, env=environment, start_new_session=True
            )

    def run(self, *arguments: str | Path, deadline_s: float = 120.0) -> int:
        """Run to the end; returns the exit code."""
        with self.start(*arguments) as process:
            try:
                return process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise

    def said(self, stream: str) -> str:
        """Return what the run started last has said on `out` or `err`."""
        return self._said(stream).read_text()

    def _said(self, stream: str) -> Path:
        return self.folder / f"{self._runs}.{stream}"

    def lines(self) -> list[str]:
        """Return all recorded lines, file by file."""
        files = sorted(self.results.glob("*/*/*.jsonl"))
        return [line for file in files for line in file.read_text().splitlines()]

    def judge_of(self, process: subprocess.Popen[str]) -> int:
        """Return the pid of a run's judge."""
        (judge,) = children(process.pid)
        return judge

    def wait_for_lines(self, count: int) -> None:
        """Wait until that many lines are recorded."""
        wait_until(lambda: len(self.lines()) >= count, f"{count} records")

    def require_nothing_left(self) -> None:
        """Fail if processes or temporary files of finished runs are still there after some seconds."""
        wait_until(lambda: not self._left_behind(), "processes of a finished run to end", 10.0)
        assert list(self.temporary.iterdir()) == []

    def _left_behind(self) -> set[int]:
        """Return the processes that outlived their run, and bury the dead among them.

        Those count once more: what a process that has just died leaves behind is not in this list yet.
        """
        orphans = children(os.getpid()) - self._others
        for pid in orphans:
            os.waitpid(pid, os.WNOHANG)
        return orphans


@pytest.fixture(scope="session")
def new_command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], CommandLine]]:
    """Make command lines whose orphans become children of the test process, where they can be seen."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    yield lambda: CommandLine(tmp_path_factory.mktemp("run"))
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


@pytest.fixture
def command_line(new_command_line: Callable[[], CommandLine]) -> CommandLine:
    """Return a command line that no other test has used."""
    return new_command_line()
