"""Runs that are killed, stopped, repeated or doubled: each cell is recorded exactly once."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import children, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import CommandLine

#: Right, slow enough to be caught in the middle of a sweep, and with a child that leaves its session.
SLOW = '''
"""Ask the layer, after a pause."""
import os
import time
from torch import nn

if os.fork() == 0:
    os.setsid()
    time.sleep(1e6)

class ModelNew(nn.Module):
    def __init__(self, ins, outs, kernel, stride=1, padding=0, dilation=1, bias=False, extra=0, groups=1):
        super().__init__()
        self.layer = nn.ConvTranspose2d(ins, outs, kernel, stride, padding, extra, groups, bias, dilation)

    def forward(self, x):
        time.sleep(0.2)
        return self.layer(x)
'''
CELLS = 6


@dataclass(frozen=True)
class Sweep:
    """The sweep `smoke` in one arithmetic, for one slow solution."""

    runner: CommandLine
    solution: Path

    def start(self, *options: str | Path) -> subprocess.Popen[str]:
        what = ("--problem", "convtranspose2d", "--solution", self.solution, "--device", "cpu")
        return self.runner.start(*what, "--shapes", "smoke", "--dtype", "fp32", "--math", "tf32", *options)

    def run(self, *options: str | Path) -> int:
        with self.start(*options) as process:
            return process.wait(60)

    def finished(self) -> int:
        """Return how many cells the last run has finished itself."""
        return len(re.findall(r"(?m)^\[\d+/\d+\] ", self.runner.said("err")))

    def repeats(self) -> set[int]:
        """Return how often cells are recorded."""
        cells = Counter(json.dumps(json.loads(line)["cell"]) for line in self.runner.lines())
        assert len(cells) == CELLS
        return set(cells.values())


@pytest.fixture
def sweep(command_line: CommandLine) -> Sweep:
    solution = command_line.folder / "slow.py"
    solution.write_text(SLOW)
    return Sweep(command_line, solution)


def test_a_killed_run_leaves_no_process_and_goes_on_where_it_was(sweep: Sweep) -> None:
    runner = sweep.runner
    with sweep.start() as process:
        runner.wait_for_lines(1)
        process.send_signal(signal.SIGSTOP)  # a slow machine must not let it finish meanwhile
        code_of_second = sweep.run()
        process.send_signal(signal.SIGCONT)
        runner.wait_for_lines(3)
        process.kill()
    busy = rf"error: {runner.results} is in use by another run \(pid {process.pid}\).*-o FILE\n"
    assert re.fullmatch(busy, runner.said("err"))
    assert code_of_second == 3
    runner.require_nothing_left()
    before = runner.lines()
    assert 3 <= len(before) < CELLS

    assert sweep.run() == 0
    assert runner.lines()[: len(before)] == before
    assert sweep.repeats() == {1}
    assert sweep.finished() == CELLS - len(before)


def test_a_killed_judge_costs_its_cell(sweep: Sweep) -> None:
    runner = sweep.runner
    with sweep.start() as process:
        runner.wait_for_lines(1)
        os.kill(runner.judge_of(process), signal.SIGKILL)
        assert process.wait(60) == 3
    runner.require_nothing_left()
    assert "ERROR: the judge ended with code -9\n" in runner.said("err")
    assert Counter(json.loads(line)["status"] for line in runner.lines()) == {"PASS": CELLS - 1, "ERROR": 1}

    assert sweep.run() == 0
    assert sweep.finished() == 1
    assert len(runner.lines()) == CELLS + 1


def test_a_budget_stops_cleanly_and_a_plan_writes_nothing(sweep: Sweep) -> None:
    runner = sweep.runner
    assert sweep.run("--dry-run") == 0
    assert f"0 recorded by this protocol for these files, {CELLS} to run" in runner.said("out")
    assert not runner.results.exists()

    assert sweep.run("--budget", "0.5") == 0
    some = runner.lines()
    assert 1 <= len(some) < CELLS
    assert f"stopped by the budget with {CELLS - len(some)} cells left" in runner.said("err")
    assert sweep.run("--dry-run") == 0
    assert f"{len(some)} recorded by this protocol for these files" in runner.said("out")
    assert sweep.run("--dry-run", "--rerun") == 0
    assert f"0 recorded by this protocol for these files, {CELLS} to run" in runner.said("out")
    assert runner.lines() == some

    assert sweep.run() == 0
    assert "nothing to run" not in runner.said("err")
    assert sweep.repeats() == {1}


def test_records_of_another_machine_are_sorted_in_once(sweep: Sweep) -> None:
    runner, sent = sweep.runner, sweep.runner.folder / "sent.jsonl"
    assert sweep.run("-o", sent) == 0
    assert runner.lines() == []
    lines = sent.read_text().splitlines()
    for said in (f"{CELLS} records added, 0 were there", f"0 records added, {CELLS} were there"):
        assert runner.run("import", sent) == 0
        assert runner.said("out").startswith(said)
        assert runner.lines() == lines

    assert sweep.run() == 0
    assert sweep.finished() == 0
    nothing = f"{CELLS} cells are recorded already, nothing to run: --rerun runs them again\n"
    assert runner.said("err") == nothing
    assert runner.said("out").count(" PASS ") == CELLS
    assert runner.lines() == lines
    assert sweep.run("--rerun") == 0
    assert runner.lines()[:CELLS] == lines
    assert sweep.repeats() == {2}


def test_a_solution_named_twice_runs_once(sweep: Sweep) -> None:
    again = ("--solution", sweep.solution.parent / "." / sweep.solution.name, "--shapes", "smoke/sparse")
    assert sweep.run("--dry-run", *again) == 0
    assert f"\n{CELLS} cells" in sweep.runner.said("out")


@pytest.fixture
def heard() -> Iterator[None]:
    """Let processes hear what the background, or `nohup`, ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hung_up)


def test_a_judge_that_nobody_listens_to_ends_without_a_word() -> None:
    """As when a run is interrupted while its judge starts."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "runner.judge", "cpu"]
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.usefixtures("heard")
def test_a_run_that_is_interrupted_before_its_judge_answers_says_one_line(sweep: Sweep) -> None:
    with sweep.start() as process:
        wait_until(lambda: bool(children(process.pid)), "a judge")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    sweep.runner.require_nothing_left()
    assert sweep.runner.said("err") == "interrupted: what a run has recorded stays; run it again to go on\n"


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_says_one_line(number: signal.Signals, sweep: Sweep) -> None:
    with sweep.start() as process:
        sweep.runner.wait_for_lines(1)
        os.killpg(process.pid, number)  # as a terminal does
        assert process.wait(30) == 128 + number
    sweep.runner.require_nothing_left()
    said = sweep.runner.said("err").splitlines()
    assert said[-1] == "interrupted: what a run has recorded stays; run it again to go on"
    # the last record may have been written and not yet shown
    assert len(sweep.runner.lines()) - (len(said) - 1) in {0, 1}


def test_who_interrupts_a_call_need_not_wait_for_it(sweep: Sweep) -> None:
    sweep.solution.write_text(SLOW.replace("time.sleep(0.2)", "open('called', 'w') and time.sleep(50)"))
    with sweep.start() as process:
        wait_until(lambda: any(sweep.runner.temporary.rglob("called")), "a call")
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM
    sweep.runner.require_nothing_left()


def test_a_check_that_a_scheduler_ends_leaves_no_files(sweep: Sweep) -> None:
    temporary = sweep.runner.temporary
    command = [sys.executable, "-m", "runner", "check", str(sweep.solution), "--problem", "convtranspose2d"]
    with subprocess.Popen(
        [*command, "--device", "cpu", "--shapes", "smoke"],
        env=os.environ | {"TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as process:
        wait_until(lambda: any(temporary.glob("*/cpu/*/*.jsonl")), "a record in the check's own folder")
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    sweep.runner.require_nothing_left()


def test_a_terminal_gets_its_cursor_back(sweep: Sweep) -> None:
    """However a run ends: here by its budget."""
    main, side = pty.openpty()
    words = ["--problem", "convtranspose2d", "--solution", str(sweep.solution), "--device", "cpu"]
    words += ["--shapes", "smoke", "--dtype", "fp16", "--budget", "0.01", "--results"]
    command = [sys.executable, "-m", "runner", *words, str(sweep.runner.results)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=side, close_fds=True) as process:
        os.close(side)
        said = b""
        with contextlib.suppress(OSError):  # the end of a terminal that nobody has open any more
            while part := os.read(main, 4096):
                said += part
        assert process.wait(60) == 0
    os.close(main)
    assert said.count(b"\x1b[?25l") == said.count(b"\x1b[?25h") == 1


def test_an_admission_that_is_ended_is_not_waited_for(sweep: Sweep) -> None:
    command = [sys.executable, "-m", "runner", "admit", "--problem", "conv3d", "--shapes", "layers"]
    with subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_until(lambda: bool(children(process.pid)), "a process that admits")
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM
    sweep.runner.require_nothing_left()
