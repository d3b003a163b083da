"""An exit code is the command's, whoever reads its streams, or nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.load import ROOT

#: A text that nobody needs to judge: `check` says so on both streams and ends with 1.
TEXT = "class ModelNew: ...\nimport os\nos.abort(\n"


def run(redirection: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line whose streams a shell redirects; what is left of them is returned."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "runner", *words]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=100,
        check=False,
    )


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "broken.py"
    path.write_text(TEXT)
    what = ("--problem", "convtranspose2d", "--shapes", "smoke/sparse", "--dtype", "fp16")
    return ("check", str(path), *what, "--device", "cpu")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_reader_that_goes_away_takes_no_verdict_with_it(
    words: tuple[str, ...], descriptor: int, unbuffered: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    streams = {1: subprocess.PIPE, 2: subprocess.PIPE} | {descriptor: writing}
    process = subprocess.run(
        [sys.executable, "-m", "runner", *words],
        stdout=streams[1],
        stderr=streams[2],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        timeout=100,
        check=False,
    )
    os.close(writing)
    assert process.returncode == 1
    assert b"Traceback" not in (process.stdout or b"") + (process.stderr or b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_none_that_fails(words: tuple[str, ...], closed: str) -> None:
    said = run(closed, *words)
    assert said.returncode == 1
    assert "Traceback" not in said.stdout + said.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(unbuffered: str) -> None:
    said = run(">/dev/full", "list", PYTHONUNBUFFERED=unbuffered)
    assert said.returncode == 3
    assert said.stderr == "error: cannot write to standard output: No space left on device\n"


def test_a_judge_has_a_place_for_its_words_where_standard_error_is_closed(tmp_path: Path) -> None:
    what = ("--problem", "convtranspose2d", "--solution", "gather_gemm", "--results", str(tmp_path))
    said = run("2>&-", "run", *what, "--shapes", "smoke/sparse", "--dtype", "fp16", "--device", "cpu")
    assert " PASS " in said.stdout
    assert said.returncode == 0
