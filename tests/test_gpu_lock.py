"""One job per GPU, with GPUs that are not there."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import stat
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import cli, gpu_lock, judge_process
from runner.commands import exits
from runner.gpu_lock import DeviceBusy, hold

ROOT = Path(__file__).parents[1]
IDENTITY = "5b2b9da1-a2c7-8fa9-e19f-a7e9ea7fbc86"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu_lock, "FOLDER", tmp_path)
    return tmp_path


def is_free(identity: str) -> bool:
    try:
        with hold(identity, "cuda:0"):
            return True
    except DeviceBusy:
        return False


def test_a_second_run_on_a_gpu_is_told_who_has_it_and_what_to_do() -> None:
    with hold(IDENTITY, "cuda:3"):
        with pytest.raises(DeviceBusy) as busy, hold(IDENTITY, "cuda:3"):
            pass
        text = str(busy.value)
        assert "\n" not in text
        assert all(
            word in text for word in ("cuda:3", IDENTITY, f"process {os.getpid()}", "wait", "--device cuda:N")
        )
        assert is_free("another")
    assert is_free(IDENTITY)


def test_what_has_no_uuid_is_not_locked(folder: Path) -> None:
    with hold("", "cpu"), hold("", "cpu"):
        assert list(folder.iterdir()) == []


def test_a_killed_holder_holds_nothing(folder: Path) -> None:
    code = f"""
import pathlib, time
from runner import gpu_lock
gpu_lock.FOLDER = pathlib.Path({str(folder)!r})
with gpu_lock.hold({IDENTITY!r}, "cuda:0"):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not is_free(IDENTITY)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert is_free(IDENTITY)


def test_the_file_serves_all_users_whatever_the_umask(folder: Path) -> None:
    old = os.umask(0o077)
    try:
        assert is_free(IDENTITY)
    finally:
        os.umask(old)
    (file,) = folder.iterdir()
    assert IDENTITY in file.name
    assert stat.S_IMODE(file.stat().st_mode) == 0o666


@pytest.mark.parametrize("told", [b"", b"no number\n", b"\xff" * 50, b"17" * 40])
def test_what_a_stranger_wrote_into_the_file_does_no_harm(told: bytes, folder: Path) -> None:
    with hold(IDENTITY, "cuda:0"):
        (file,) = folder.iterdir()
        file.write_bytes(told)
        assert not is_free(IDENTITY)
    with hold(IDENTITY, "cuda:0"):
        assert file.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("content", [None, b"precious"])
def test_a_link_is_not_followed(content: bytes | None, folder: Path) -> None:
    assert is_free(IDENTITY)
    (file,) = folder.iterdir()
    file.unlink()
    elsewhere = folder / "elsewhere"
    if content is not None:
        elsewhere.write_bytes(content)
    file.symlink_to(elsewhere)
    with pytest.raises(DeviceBusy, match="remove"), hold(IDENTITY, "cuda:0"):
        pass
    assert (elsewhere.read_bytes() if elsewhere.exists() else None) == content


class Driver:
    """A libcuda that numbers GPUs as CUDA_VISIBLE_DEVICES would have it."""

    def __init__(self, uuids: list[uuid.UUID]) -> None:
        self.uuids = uuids

    def cuInit(self, _: int) -> int:  # noqa: N802 - the driver's name
        return 0

    def cuDeviceGet(self, handle: Any, ordinal: int) -> int:  # noqa: N802
        handle._obj.value = 100 + ordinal
        return 0 if ordinal < len(self.uuids) else 101

    def cuDeviceGetUuid_v2(self, told: Any, handle: ctypes.c_int) -> int:  # noqa: N802
        told._obj[:] = self.uuids[handle.value - 100].bytes
        return 0


@given(st.lists(st.uuids(), min_size=1, max_size=4))
def test_a_device_is_known_by_the_drivers_numbering(uuids: list[uuid.UUID]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda _: Driver(uuids))
        assert [gpu_lock.uuid_of(f"cuda:{n}") for n in range(len(uuids))] == list(map(str, uuids))
        assert gpu_lock.uuid_of("cuda") == str(uuids[0])
        assert gpu_lock.uuid_of(f"cuda:{len(uuids)}") == ""
        assert gpu_lock.uuid_of("cpu") == ""


class OldDriver:
    """A libcuda from before devices had UUIDs."""

    def cuInit(self, _: int) -> int:  # noqa: N802 - the driver's name
        return 0

    def cuDeviceGet(self, *_: Any) -> int:  # noqa: N802
        return 0


class BrokenDriver(Driver):
    """A libcuda that does not start."""

    def cuInit(self, _: int) -> int:  # noqa: N802 - the driver's name
        return 999


@pytest.mark.parametrize("found", [OSError(), OldDriver(), BrokenDriver([uuid.UUID(int=1)])])
def test_without_a_driver_no_device_is_known(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: str) -> Any:
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert gpu_lock.uuid_of("cuda:0") == ""


def test_a_judge_answers_that_its_gpu_is_taken_and_touches_nothing(folder: Path) -> None:
    code = f"""
import pathlib, sys
from runner import gpu_lock
gpu_lock.FOLDER, gpu_lock.uuid_of = pathlib.Path({str(folder)!r}), lambda _: {IDENTITY!r}
sys.argv = ["judge", "cuda:0"]
from runner.judge import __main__ as judge
judge.serve = None
judge.main()
"""
    with hold(IDENTITY, "cuda:0"):
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True)
    assert f"process {os.getpid()}" in json.loads(said.stdout)["busy"]


def test_a_run_on_a_taken_gpu_is_one_line_and_no_suitable_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = tmp_path / "judge"
    judge.write_text('#!/bin/sh\necho \'{"busy": "cuda:0 is in use by process 7: wait"}\'\n')
    judge.chmod(0o755)
    monkeypatch.setattr(judge_process.sys, "executable", str(judge))
    monkeypatch.setattr("runner.devices.choose", lambda _: "cuda:0")
    code = cli.main(
        ["--problem", "convtranspose2d", "--shapes", "81", "--results", str(tmp_path / "results")]
    )
    assert code == exits.EXIT_DEVICE
    assert capsys.readouterr().err == "error: cuda:0 is in use by process 7: wait\n"
