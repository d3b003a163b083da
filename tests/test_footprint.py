"""What is held is found where it is: in pages, in files with a name or none, in descendants; counted once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import children, wait_until

from runner import load, measure
from runner.judge import edges, footprint
from runner.judge.bench import Limits
from runner.judge.referee import Referee

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.judge.contestants import Contestant

MEBIBYTE = 1 << 20
HOLDS = f"""
import os, sys, time
MEBIBYTE = {MEBIBYTE}
%s
print("ready", flush=True)
sys.stdin.readline()
"""
#: What a process does -> MiB by which it grows.
WAYS = {
    "pass": 0,
    "held = b'1' * (48 * MEBIBYTE)": 48,
    "held = os.memfd_create('a'); os.write(held, bytes(48 * MEBIBYTE))": 48,
    "held = os.memfd_create('a'); os.ftruncate(held, 48 * MEBIBYTE)": 0,
    "held = os.memfd_create('a'); os.write(held, bytes(48 * MEBIBYTE)); twice = os.dup(held)": 48,
    "held = open('named', 'wb'); held.write(bytes(48 * MEBIBYTE)); held.flush()": 0,
    "held = open('gone', 'wb'); os.unlink('gone'); held.write(bytes(48 * MEBIBYTE)); held.flush()": 48,
    "held = os.memfd_create('a'); os.write(held, bytes(48 * MEBIBYTE))\n"
    "if os.fork() == 0: time.sleep(60)": 48,
    "if os.fork() == 0: held = b'1' * (48 * MEBIBYTE); print('ready', flush=True); time.sleep(60)\n"
    "time.sleep(1)": 48,
}


LINE = """
import os, time
n = 0
while n < 300 and os.fork() == 0: n += 1
if n == 300: print("ready", flush=True)
time.sleep(60)
"""


def held_mebibytes(code: str, folder: Path) -> float:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS % code],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return footprint.held_bytes(footprint.family_of(process.pid)) / MEBIBYTE
    finally:
        os.killpg(process.pid, 9)
        process.communicate()


@pytest.mark.parametrize(("code", "expected"), WAYS.items())
def test_what_is_held_is_counted_once(code: str, expected: int, tmp_path: Path) -> None:
    children = code.count("fork")
    bare = held_mebibytes("if os.fork() == 0: time.sleep(60)" if children else "pass", tmp_path)
    assert held_mebibytes(code, tmp_path) - bare == pytest.approx(expected, abs=8)


def test_a_program_that_nobody_may_look_into_counts_with_all_its_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: int) -> int:
        raise PermissionError

    (code,) = (one for one in WAYS if one.startswith("if os.fork()"))
    monkeypatch.setattr(footprint, "_proportional_bytes", refused)
    assert held_mebibytes(code, tmp_path) > 48


def test_what_has_ended_holds_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert footprint.held_bytes(footprint.family_of(process.pid)) == 0


def test_a_long_line_of_descendants_ends_the_walk_and_not_the_judge() -> None:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", LINE],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(footprint.family_of(process.pid)) == footprint.MOST_PROCESSES + 1
    finally:
        os.killpg(process.pid, 9)
        process.communicate()


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([], 0), ([0], 16 << 10), ([0] * 3, 48 << 10), ([MEBIBYTE, 1], MEBIBYTE + (16 << 10))],
)
def test_an_entry_counts_for_an_inode_at_least(sizes: list[int], expected: int, tmp_path: Path) -> None:
    for number, size in enumerate(sizes):
        (tmp_path / str(number)).write_bytes(b"1" * size)
    assert footprint.written_bytes(tmp_path, 1 << 40) == expected


def test_folders_are_searched_and_links_are_not(tmp_path: Path) -> None:
    held, outside = tmp_path / "held", tmp_path / "outside"
    (held / "inner" / "inmost").mkdir(parents=True)
    outside.mkdir()
    for folder in (outside, held / "inner" / "inmost"):
        (folder / "file").write_bytes(bytes(MEBIBYTE))
    (held / "link").symlink_to(outside)
    assert footprint.written_bytes(held, 1 << 40) == MEBIBYTE + 3 * footprint.ENTRY_BYTES


def test_a_search_ends_above_the_limit_and_where_it_cannot_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert footprint.written_bytes(tmp_path / "missing", 100) == 0
    monkeypatch.chdir(tmp_path)
    for _ in range(700):
        os.mkdir("deeper")  # noqa: PTH102 - a path that long has no name
        os.chdir("deeper")
    os.chdir(tmp_path)
    few = 3 * footprint.ENTRY_BYTES
    assert footprint.written_bytes(tmp_path, few) == few + footprint.ENTRY_BYTES
    assert footprint.written_bytes(tmp_path, 1 << 40) == (1 << 40) + 1


def test_a_folder_is_searched_when_its_file_system_has_filled_by_what_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, searched = [1000], []

    def written(*_: object) -> int:
        searched.append(used[0])
        return {1101: 30, 1172: 60, 1213: 101}[used[0]]

    monkeypatch.setattr(footprint, "_used_bytes", lambda _: used[0])
    monkeypatch.setattr(footprint, "written_bytes", written)
    files = footprint.Files(tmp_path, 100)
    story = {1100: False, 1101: False, 1171: False, 1172: False, 1212: False, 1213: True}
    for amount, over in story.items():
        used[0] = amount
        assert files.overflow() == over
    assert searched == [1101, 1172, 1213]


def test_room_that_others_make_is_not_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = [1000]
    monkeypatch.setattr(footprint, "_used_bytes", lambda _: used[0])
    monkeypatch.setattr(footprint, "written_bytes", lambda *_: 101)
    files = footprint.Files(tmp_path, 100)
    for amount, over in {500: False, 600: False, 601: True}.items():
        used[0] = amount
        assert files.overflow() == over


MODEL = """

class ModelNew(nn.Module):
    def forward(self, x):
        return x + 1.0
"""

ORPHANED = """
import os, time
from torch import nn

if (child := os.fork()) == 0:
    os.setsid()
    if os.fork() == 0:
        held = b"1" * (48 << 20)
        while True:
            time.sleep(0.001)
    os._exit(0)
os.waitpid(child, 0)
"""

# The dead are buried by nobody's leave, so that only the one that lives is ever there.
HANDED_ON = """
import os, signal, time
from torch import nn

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        os.setsid()
        if os.fork():
            os._exit(0)
    os._exit(0)
"""


@contextlib.contextmanager
def contestant(family: str) -> Iterator[Contestant]:
    """Yield a contestant whose module starts a family before it defines its model."""
    solution = load.Solution("family", Path("family.py"), family + MODEL)
    referee = Referee("cpu", Limits())
    try:
        with edges.steps_problem() as steps:
            assert referee.prepare_case(steps, edges.steps_cell(1), os.urandom(16)) is None
            inspector, _ = referee.enter(solution)
            yield inspector.bench.seats[measure.SOLUTION][0]
    finally:
        referee.close()


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_an_orphan_is_counted_stopped_and_killed_with_its_contestant() -> None:
    with contestant(ORPHANED) as model:
        family = footprint.family_of(model.pid)
        _, orphan = family
        wait_until(lambda: footprint.held_bytes([orphan]) > 48 * MEBIBYTE, "the orphan to hold memory")
        model.pause()
        wait_until(lambda: [state(pid) for pid in family] == ["T", "T"], "both to stop")
        model.arm()
        wait_until(lambda: "T" not in map(state, family), "both to go on")
        model.close()
        assert [state(pid) for pid in family] == ["", ""]


def group_of(leader: int) -> dict[int, str]:
    """Return the processes of a group -> their states."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == leader:
                found[pid] = state(pid)
    return found


def test_who_outruns_the_count_is_stopped_and_killed() -> None:
    with contestant(HANDED_ON) as model:
        before = group_of(model.pid)
        wait_until(lambda: group_of(model.pid).keys() - before.keys() != set(), "the line to move on")
        model.pause()
        wait_until(lambda: set(group_of(model.pid).values()) == {"T"}, "the line to stop")
        stopped = group_of(model.pid)
        time.sleep(0.05)
        assert group_of(model.pid) == stopped
        model.close()
        assert group_of(model.pid) == {}


def test_nothing_outlives_a_fork_server_that_died() -> None:
    with contestant(ORPHANED) as model:
        _, orphan = footprint.family_of(model.pid)
        (server,) = (pid for pid in children(os.getpid()) if model.pid in children(pid))
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: state(model.pid) in {"", "Z"}, "the contestant to die with its server")
        assert state(orphan) not in {"", "Z"}
        model.close()
        wait_until(lambda: state(orphan) in {"", "Z"}, "the orphan to die")
