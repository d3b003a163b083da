"""What a contestant's family holds of the host's memory and disk, as far as /proc and its folder show it.

A contestant adopts the orphans among its descendants, so all of them hang on it as long as it lives. Resident
pages are not all: what was written to a file without a name, a memfd or one that was deleted, stays in memory
as long as somebody holds it. What escapes includes a descriptor that is under way in a socket, a file that is
mapped, never touched and closed, and a detached SysV segment.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path

#: Compilers run a few; whoever has more hides behind their number, and to look at each takes milliseconds.
MOST_PROCESSES = 256
#: A whole look takes 0.2 to 3 ms, by the threads there are; a hurried one reads pages alone.
LOOK_S = 0.1
#: What an entry of a folder counts for at least: many file systems have an inode for each 16 KiB.
ENTRY_BYTES = 16 << 10
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


class Watch:
    """Looks at a contestant now and then: its memory, its processes, and the files in its folder."""

    def __init__(self, pid: int, scratch: Path, most_bytes: int) -> None:
        self.pid, self.most_bytes = pid, most_bytes
        self._files = Files(scratch, most_bytes)
        self._looked_at = {True: 0.0, False: 0.0}  # in a hurry or not

    def excess(self, *, hurried: bool = False, at_once: bool = False) -> str:
        """Say what is above its limit, or nothing.

        `hurried` looks shortly, since an answer must not wait; `at_once` looks even if the last look was
        less than `LOOK_S` ago.
        """
        now = time.monotonic()
        if now < self._looked_at[hurried] + LOOK_S and not at_once:
            return ""
        self._looked_at[hurried] = now
        family = [] if hurried else family_of(self.pid)
        if len(family) > MOST_PROCESSES:
            return f"more than {MOST_PROCESSES} processes"
        held = held_bytes(family) if family else resident_bytes(self.pid)
        if held > self.most_bytes:
            return f"host memory above {self.most_bytes >> 20} MiB"
        if not hurried and self._files.overflow():
            return f"files above {self.most_bytes >> 20} MiB, each at {ENTRY_BYTES >> 10} KiB or more"
        return ""


class Files:
    """A folder that may grow to a limit.

    It is searched only once its whole file system holds so much more that the limit could be reached.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._room = most_bytes
        self._mark = _used_bytes(folder)

    def overflow(self) -> bool:
        """Whether more than the limit was written."""
        used = _used_bytes(self.folder)
        self._mark = min(self._mark, used)  # others make room, too
        if used <= self._mark + self._room:
            return False
        written = written_bytes(self.folder, self.most_bytes)
        self._mark, self._room = used, self.most_bytes - written
        return written > self.most_bytes


def _used_bytes(folder: Path) -> int:
    facts = os.statvfs(folder)
    entries = facts.f_files - facts.f_ffree
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize + entries * ENTRY_BYTES


def written_bytes(folder: Path, most_bytes: int) -> int:
    """Return the bytes that are written to a folder's files; one that cannot be searched holds too many.

    Each entry counts for `ENTRY_BYTES` at least. The search ends above `most_bytes`.
    """
    written, folders = 0, [str(folder)]
    while folders and written <= most_bytes:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        facts = entry.stat(follow_symlinks=False)
                        written += max(facts.st_blocks * _BLOCK_BYTES, ENTRY_BYTES)
                        folders += [entry.path] if stat.S_ISDIR(facts.st_mode) else []
        except (FileNotFoundError, NotADirectoryError):
            continue  # gone meanwhile
        except OSError:  # closed, or deeper than a path can say
            return most_bytes + 1
    return written


def held_bytes(family: list[int]) -> int:
    """Return the bytes that a process, the first, and others hold; 0 for what has ended or is out of sight.

    Of a page that several share each of the others counts its share: a fork alone costs nothing. A nameless
    file that is mapped and open counts twice, as pages and as a file.
    """
    first, *others = family
    held, files = resident_bytes(first), _nameless_files(first)
    for member in others:
        try:
            held += _proportional_bytes(member)
        except (OSError, ValueError, IndexError):  # ended, or a program that nobody may look into
            held += resident_bytes(member)
        files |= _nameless_files(member)
    return held + sum(files.values())


def family_of(pid: int) -> list[int]:
    """Return a process and its descendants, at most one more than `MOST_PROCESSES`.

    The dead that nobody has buried are among them: they have numbers, of which the machine has so many.
    """
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
    """Return device and inode of the nameless files that a process has open -> bytes written to them.

    All its threads have the same table, but a leader that has left (seccomp refuses threads with their own).
    """
    found = {}
    for place in (Path(f"/proc/{pid}"), *_tasks(pid)):
        with contextlib.suppress(OSError):
            descriptors = list(os.scandir(place / "fd"))
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    facts = descriptor.stat()
                    if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 0:
                        found[facts.st_dev, facts.st_ino] = facts.st_blocks * _BLOCK_BYTES
            if descriptors:
                break
    return found
