"""Landlock: what this process and its children may open, connect to and signal.

Rights and structures are those of the kernel's user API, `linux/landlock.h`. A right that is
handled is refused everywhere except beneath a granted path.
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress
from enum import IntFlag
from typing import TYPE_CHECKING, Final

from runner.contestant import libc

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Access(IntFlag):
    """Rights on files and folders; those after MAKE_SYM came with later ABIs."""

    NONE = 0
    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


EVERYTHING: Final = Access((1 << 16) - 1)
ON_FILES: Final = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)  # fmt: skip

#: The newest ABI whose rules are known here; a newer kernel is asked for this one.
NEWEST_ABI: Final = 7
#: Before it no rename crosses folders, and compile caches are filled by such renames.
OLDEST_ABI: Final = 2

#: What a kernel with an older ABI leaves open, and the ABI that closes it.
CLOSED_BY_ABI: Final = {"truncate": 3, "tcp": 4, "ioctl": 5, "scope": 6}

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION = 1
_PATH_BENEATH = 1
_TCP_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def abi() -> int:
    """Return the ABI to use; `OSError` where the kernel has none, or only one too old to serve."""
    offered = libc.call("syscall", _CREATE_RULESET, None, 0, _VERSION)
    if offered < OLDEST_ABI:
        raise OSError(0, f"ABI {offered} forbids renames between folders")
    return min(offered, NEWEST_ABI)


def restrict(version: int, grants: Iterable[tuple[Path, Access]]) -> None:
    """Confine the calling thread, for good, to `grants`; paths that do not exist are passed over.

    Requires no_new_privs. With the ABIs that know them, TCP is refused altogether, and so are
    signals and abstract sockets that lead out of the sandbox.
    """
    ruleset = _create(version)
    try:
        for path, access in grants:
            _grant(ruleset, path, access & _handled(version))
        libc.call("syscall", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _handled(version: int) -> Access:
    handled = EVERYTHING
    for right, since in ((Access.REFER, 2), (Access.TRUNCATE, 3), (Access.IOCTL_DEV, 5)):
        if version < since:
            handled &= ~right
    return handled


def _create(version: int) -> int:
    attributes = struct.pack(
        "QQQ", _handled(version), _TCP_BIND_AND_CONNECT, _ABSTRACT_SOCKETS_AND_SIGNALS
    )  # fmt: skip
    # a kernel refuses fields that it does not know unless they are zero or left out
    known_fields = 1 + (version >= CLOSED_BY_ABI["tcp"]) + (version >= CLOSED_BY_ABI["scope"])
    return libc.call("syscall", _CREATE_RULESET, attributes, 8 * known_fields, 0)


def _grant(ruleset: int, path: Path, access: Access) -> None:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(beneath).st_mode):
                access &= ON_FILES  # a right of folders on a file fails the whole call
            rule = struct.pack("=Qi", access, beneath)
            libc.call("syscall", _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        finally:
            os.close(beneath)
