"""What a process and its descendants hold of the host's memory, as far as /proc shows it.

Resident pages are not all: what was written to a file without a name, a memfd or one that was deleted, stays
in memory as long as somebody holds it. A descriptor that is under way in a socket is seen by nobody.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_BLOCK_BYTES = 512  # of st_blocks, whatever the file system
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def held_bytes(pid: int) -> int:
    """Return the bytes that `pid` and its descendants hold; 0 for what has ended or is out of sight.

    Of a page that several share each descendant counts its share: a fork alone costs nothing. A nameless
    file that is mapped and open counts twice, as pages and as a file.
    """
    held, files = 0, {}
    for member in family(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            held += _resident_bytes(member) if member == pid else _proportional_bytes(member)
        files.update(_nameless_files(member))
    return held + sum(files.values())


def family(pid: int) -> Iterator[int]:
    """Yield a process and its descendants; those that have outlived their parent are nobody's."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def _proportional_bytes(pid: int) -> int:
    """Read a figure that takes the kernel milliseconds, since it walks through all pages."""
    _, _, rest = Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")
    return int(rest.split()[0]) * 1024


def _nameless_files(pid: int) -> dict[tuple[int, int], int]:
    """Return device and inode of the nameless files that a process has open -> bytes written to them."""
    found = {}
    with contextlib.suppress(OSError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                facts = descriptor.stat()
                if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 0:
                    found[facts.st_dev, facts.st_ino] = facts.st_blocks * _BLOCK_BYTES
    return found
