"""What the sandbox must refuse, tried from inside by a child that holds no foreign code.

The judge forks one before the first contestant: a level is what a process in the sandbox could not
do, not what its layers are called. Each attempt is harmless where it gets through.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import socket
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runner import channel
from runner.contestant import libc, sandbox, seccomp, view

if TYPE_CHECKING:
    from collections.abc import Callable

#: Refused, or out of sight, or unknown to this kernel. Every other outcome is a hole.
CLOSED: Final = frozenset({
    errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOENT, errno.ESRCH, errno.ENOSYS, errno.EFBIG,
})  # fmt: skip

_PTRACE_SEIZE, _CLONE_NEWUSER, _CLONE_PARENT = 0x4206, 0x10000000, 0x8000
_BPF_MAP_CREATE, _KEYCTL_GET_KEYRING, _SESSION_KEYRING = 0, 0, -3


@dataclass(frozen=True)
class Scene:
    """The probe's own folder, and the process of the judge."""

    scratch: Path
    judge: int


def main(sock: socket.socket, scratch: Path, device_name: str, judge: int) -> None:
    """Enter the sandbox as a contestant does, try everything, send one frame: HELLO with the holes."""
    sandbox.close_descriptors({0, 1, 2, sock.fileno()})
    sandbox.enter(scratch, device=device_name.partition(":")[0])
    found = holes(Scene(scratch, judge))
    channel.send(sock, channel.Frame(channel.Kind.HELLO, args=(len(found),), text=", ".join(found)))


def holes(scene: Scene) -> list[str]:
    """Return the names of the attempts that were not refused."""
    return [name for name, attempt in ATTEMPTS.items() if not _closed(attempt, scene)]


def _closed(attempt: Callable[[Scene], object], scene: Scene) -> bool:
    try:
        attempt(scene)
    except OSError as error:
        return error.errno in CLOSED
    return False


def _open(path: Path | str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags))


def _make(path: Path) -> None:
    _open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    path.unlink()


def _make_folder(path: Path) -> None:
    path.mkdir()
    path.rmdir()


def _grow(scene: Scene) -> None:
    with (scene.scratch / "large").open("wb") as file:
        file.truncate(2 * sandbox.FILE_BYTES)


def _entry_of_judge(name: str, scene: Scene) -> None:
    _open(f"/proc/{scene.judge}/{name}")


def _read_memory(scene: Scene) -> None:
    byte = ctypes.create_string_buffer(1)
    vector = struct.pack("=QQ", ctypes.addressof(byte), 1)
    _call("process_vm_readv", scene.judge, vector, 1, vector, 1, 0)


def _connect(scene: Scene) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(f"\0kernelwave-{scene.judge}")


def _start_beside_itself(_: Scene) -> None:
    if _call("clone", _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


def _leave_its_group(_: Scene) -> None:
    group, child = os.getpgrp(), os.fork()
    if child == 0:
        os.setsid()
        os._exit(os.getpgrp() == group)
    if os.waitpid(child, 0)[1]:
        raise PermissionError(errno.EPERM, "no more than pretended")


def _call(name: str, *arguments: object) -> int:
    _, column = seccomp.MACHINES[os.uname().machine]
    number = seccomp.NUMBERS[name][column]
    assert number is not None  # noqa: S101 - the calls used here have one on every architecture
    return libc.call("syscall", number, *arguments)


ATTEMPTS: Final[dict[str, Callable[[Scene], object]]] = {
    # files
    "write beside its folder": lambda s: _make(s.scratch.with_name(f"{s.scratch.name}-probe")),
    "write shared memory": lambda s: _make(Path("/dev/shm", s.scratch.name)),  # noqa: S108
    "write the checkout": lambda s: _make_folder(view.PRIVATE[0] / s.scratch.name),
    "change the runner": lambda _: _open(__file__, os.O_WRONLY),
    "read the runner": lambda _: _open(__file__),
    "read the accounts": lambda _: _open("/etc/passwd"),
    "list home": lambda _: _open(view.PRIVATE[1]),
    "change the kernel": lambda _: _open("/proc/sys/kernel/core_pattern", os.O_WRONLY),
    "make a device": lambda s: os.mknod(s.scratch / "node", 0o020600, os.makedev(1, 3)),
    "grow a file without end": _grow,
    # the judge
    "read its environment": partial(_entry_of_judge, "environ"),
    "read its maps": partial(_entry_of_judge, "maps"),
    "open its memory": partial(_entry_of_judge, "mem"),
    "list its files": partial(_entry_of_judge, "fd"),
    "signal it": lambda s: os.kill(s.judge, 0),
    "signal its parent": lambda _: os.kill(os.getppid(), 0),
    "hold it": lambda s: os.close(os.pidfd_open(s.judge)),
    "trace it": lambda s: _call("ptrace", _PTRACE_SEIZE, s.judge, 0, 0),
    "read its memory": _read_memory,
    "limit it": lambda s: resource.prlimit(s.judge, resource.RLIMIT_CORE),
    "slow it": lambda s: os.setpriority(os.PRIO_PROCESS, s.judge, os.getpriority(os.PRIO_PROCESS, s.judge)),
    # those who count it
    "disown its orphans": lambda _: libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 0),
    "start a sibling": _start_beside_itself,
    "leave its process group": _leave_its_group,
    # the network
    "open a TCP socket": lambda _: socket.socket(socket.AF_INET).close(),
    "open a UDP socket": lambda _: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "connect to a name": _connect,
    # the kernel
    "load a program": lambda _: _call("bpf", _BPF_MAP_CREATE, None, 0),
    "count events": lambda _: _call("perf_event_open", None, 0, -1, -1, 0),
    "queue calls": lambda _: _call("io_uring_setup", 1, None),
    "handle faults": lambda _: _call("userfaultfd", 0),
    "use keys": lambda _: _call("keyctl", _KEYCTL_GET_KEYRING, _SESSION_KEYRING, 0),
    "leave its namespace": lambda _: libc.call("unshare", _CLONE_NEWUSER),
}
