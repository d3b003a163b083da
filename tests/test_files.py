"""A whole file is replaced at once or stays as it was; what a text must not replace is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runner import files, load
from runner.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no file reach the disk."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


def test_a_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    path, link = tmp_path / "kept.md", tmp_path / "link.md"
    path.write_text("before")
    path.chmod(0o640)
    link.symlink_to(path)
    files.write(link, "ä\n")
    assert (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777) == ("ä\n", 0o640)
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [path, link]


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_a_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "kept.md"
    path.write_text("before")
    with pytest.raises(files.DiskFull, match=r"^cannot write '.*kept\.md': No space left[^\n]*$"):
        files.write(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, what in ((pipe, "no regular file"), (tmp_path, "a directory")):
        with pytest.raises(load.BadInput, match=f"is {what}: name another file"):
            files.write(path, "after")
    assert pipe.is_fifo()


# what writes a whole file, and its name beside the results
WRITERS = {
    "leaderboard": (["leaderboard", "--write"], "results/README.md"),
    "page": (["leaderboard", "--format", "html", "-o", "{}/page"], "page/index.html"),
    "export": (["export", "--format", "trace", "-o", "{}/out.jsonl"], "out.jsonl"),
    "staircase": (
        ["staircase", "--problem", "convtranspose2d", "--format", "csv", "-o", "{}/out.csv"],
        "out.csv",
    ),
}


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("name", WRITERS)
def test_a_command_on_a_full_disk_leaves_its_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, file = WRITERS[name]
    folder = tmp_path / "results" / "h200"
    folder.mkdir(parents=True)
    (folder / "convtranspose2d").symlink_to(ROOT / "results/h200/convtranspose2d")
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    before = (ROOT / "results" / "README.md").read_text()
    path.write_text(before)
    words = [word.format(tmp_path) for word in words]
    assert main([*words, "--results", str(tmp_path / "results")]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith(f"error: cannot write '{path}': No space left on device; ")
    assert path.read_text() == before
    assert list(path.parent.glob(".*")) == []


@pytest.mark.parametrize("name", ["export", "staircase"])
def test_a_folder_that_is_not_there_is_made(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    assert main([*WRITERS[name][0][:-1], str(path)]) == 0
    assert path.stat().st_size


@pytest.mark.parametrize("name", ["export", "staircase"])
def test_a_kernels_source_is_not_replaced(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = tmp_path / "kernel.py"
    kernel.write_text("precious")
    words = WRITERS[name][0][:-1]
    assert main([*words, str(kernel)]) == 2
    assert capsys.readouterr().err.startswith(f"error: -o '{kernel}' is there and Python source")
    assert kernel.read_text() == "precious"
    assert main([*words, os.devnull]) == 2
    assert capsys.readouterr().err == "error: '/dev/null' is no regular file: name another file\n"


def test_a_run_keeps_no_records_in_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--problem", "convtranspose2d", "--device", "cpu", "--shapes", "smoke/sparse", "--dry-run"]
    assert main([*run, "-o", os.devnull]) == 2
    assert capsys.readouterr().err.startswith("error: '/dev/null' is no regular file: name a .jsonl file")
    assert not Path("/dev/.null.lock").exists()
