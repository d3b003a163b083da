"""Memory is found where it is held: in pages, in files without a name, in children, and counted once."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from runner.judge import footprint

if TYPE_CHECKING:
    from pathlib import Path

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
