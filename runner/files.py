"""Whole files: a text takes the place of a file at once, or the file stays as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from typing import TYPE_CHECKING

from runner.load import BadInput

if TYPE_CHECKING:
    from pathlib import Path

#: What a disk says that takes no more, whoever asks; any other error is one of the place.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class DiskFull(Exception):
    """A file could not be written for want of room; what stood in its place is intact."""


def write(path: Path, text: str) -> None:
    """Put a text in place of a file, or where there was none; whatever fails, the file is as before.

    The folders that it lies in are made too.
    Raises BadInput for a place that cannot be written, or holds something else than a regular file, and
    `DiskFull`.
    """
    require_regular(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve()  # a link goes on leading to its file
        # beside it, for only within a file system one replaces the other; no name of a later or stranger's
        scratch = target.with_name(f".{secrets.token_hex(8)}.new")
        try:
            with scratch.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, scratch)
            scratch.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                scratch.unlink()
            raise
    except OSError as error:
        reason = f"cannot write '{path}': {error.strerror}"
        if error.errno in _FULL:
            raise DiskFull(f"{reason}; make room there, or name another place; it is as before") from error
        raise BadInput(f"{reason}: give permission there, or name another place") from error


def require_output(path: Path) -> None:
    """Raise BadInput for a file that a user cannot mean to replace: a kernel's source, or no regular file."""
    require_regular(path)
    if path.suffix == ".py" and path.exists():
        raise BadInput(f"-o '{path}' is there and Python source, which would be lost: name another file")


def require_regular(path: Path, remedy: str = "name another file") -> None:
    """Raise BadInput for what is there and no regular file: a folder, or a device that keeps nothing."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return  # whether it can be made is seen when it is
    except OSError as error:
        raise BadInput(f"cannot write '{path}': {error.strerror}: {remedy}") from error
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise BadInput(f"'{path}' is {what}: {remedy}")
