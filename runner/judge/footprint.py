"""What a process and its descendants hold of the host's memory, as far as /proc shows it.

Resident pages are not all: what was written to a file without a name, a memfd or one that was deleted, stays
in memory as long as somebody holds it. What escapes includes a descriptor that is under way in a socket, a
file that is mapped, never touched and closed, a detached SysV segment, and children without a parent.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

#: Compilers run a few; whoever has more hides behind their number, and to look at each takes milliseconds.
MOST_PROCESSES = 256
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def held_bytes(family: list[int]) -> int:
    """Return the bytes that a process, the first, and others hold; 0 for what has ended or is out of sight.

    Of a page that several share each of the others counts its share: a fork alone costs nothing. A nameless
    file that is mapped and open counts twice, as pages and as a file.
    """
    first, *others = family
    held, files = resident_bytes(first), _nameless_files(first)
    for member in others:
        with contextlib.suppress(OSError, ValueError, IndexError):
            held += _proportional_bytes(member)
        files |= _nameless_files(member)
    return held + sum(files.values())


def family_of(pid: int) -> list[int]:
    """Return a process and its descendants, at most one more than `MOST_PROCESSES`."""
    found = [pid]
    for member in found:
        if len(found) > MOST_PROCESSES:
            break
        for task in _tasks(member):
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found[: MOST_PROCESSES + 1]


def resident_bytes(pid: int) -> int:
    """Return the bytes of a process's pages; all its threads have the same, but a leader that has left."""
    for place in (Path(f"/proc/{pid}"), *_tasks(pid)):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if pages := int((place / "statm").read_text().split()[1]):
                return pages * _PAGE_BYTES
    return 0


def _tasks(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []


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
