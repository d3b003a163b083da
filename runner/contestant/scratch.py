"""Remove what a contestant leaves in its folder, whatever that is."""

from __future__ import annotations

import secrets
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def clear(folder: Path) -> None:
    """Remove a folder whose processes are dead, with all that is in it; what resists is left.

    Folders in it may be closed, and nested deeper than a recursion or a path can go: each is moved
    up before it is looked into.
    """
    names = (folder / f"{secrets.token_hex(8)}-{number}" for number in count())
    pending = [folder]
    while pending:
        current = pending.pop()
        for entry in _entries(current):
            with suppress(OSError):
                if entry.is_symlink() or not entry.is_dir():
                    entry.unlink()
                else:
                    entry.chmod(0o700)
                    pending.append(entry.rename(next(names)))
        if current is not folder:
            with suppress(OSError):
                current.rmdir()
    with suppress(OSError):
        folder.rmdir()


def _entries(folder: Path) -> Iterable[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return ()
