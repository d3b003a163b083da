"""A seccomp filter for what Landlock does not cover, assembled here as classic BPF.

Everything is allowed but the calls below: CUDA, compilers, threads and shared memory need most of
the rest. Numbers and structures are those of `asm/unistd.h`, `linux/seccomp.h`, `linux/filter.h`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
from typing import Final, NamedTuple

from runner.contestant import libc


class Instruction(NamedTuple):
    """One `struct sock_filter`: jumps count the instructions that are skipped."""

    code: int
    jump_true: int
    jump_false: int
    operand: int


#: Name of each call -> its number on x86_64 and on aarch64, None where there is none.
NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "ioctl": (16, 29),
    "fcntl": (72, 25),
    "prctl": (157, 167),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # its process group, in which it is stopped and killed with all its descendants
    "setsid": (112, 157),
    "setpgid": (109, 154),
    # new namespaces and mounts
    "clone": (56, 220),
    "clone3": (435, 435),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # the network
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    # parts of the kernel with a long record of faults, or that only an administrator needs
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # wake who was stopped, and use up what a user has few of
    "timer_create": (222, 107),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    # attributes of files, which Landlock leaves alone
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}

#: `AUDIT_ARCH_*` and the column of `NUMBERS`.
MACHINES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

ALLOW: Final = 0x7FFF0000
REFUSE: Final = 0x00050000 | errno.EPERM
#: Done as far as the caller can see: to copy a file, pin a thread or start a compiler must not fail for it.
PRETEND: Final = 0x00050000
#: The C library then starts its threads by clone, whose flags a filter can read.
UNKNOWN: Final = 0x00050000 | errno.ENOSYS

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_X32_BIT = 0x40000000

_CLONE_NEW = 0x7E020000  # mount, cgroup, uts, ipc, user, pid, net
_CLONE_PARENT = 0x8000
_PRIO_PROCESS, _IOPRIO_PROCESS = 0, 1
_CLONE_FILES, _CLONE_THREAD = 0x400, 0x10000
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETLEASE, _F_NOTIFY = 8, 10, 15, 1024, 1026
_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP = 0x5412, 0x541C, 0x8901, 0x8902
_WHOLE = 0xFFFFFFFF
_SOCKET_TYPE = 0xF  # the rest of the argument is SOCK_CLOEXEC and SOCK_NONBLOCK


def _answer(result: int) -> list[Instruction]:
    return [Instruction(_RETURN, 0, 0, result)]


def _argument(index: int, mask: int) -> list[Instruction]:
    # the low half of a 64-bit word: these arguments are ints to the kernel, or their high bits unused; of the
    # pointers among them only 0 is asked for, and others that end like it are treated as it
    load = Instruction(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)
    return [load, Instruction(_AND, 0, 0, mask)]


def _only(*conditions: tuple[int, int, tuple[int, ...]], otherwise: int = REFUSE) -> list[Instruction]:
    """Allow a call whose every argument, under its mask, is one of the values beside it."""
    body: list[Instruction] = []
    for index, mask, values in conditions:
        body += _argument(index, mask)
        body += [Instruction(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
        body += _answer(otherwise)
    return body + _answer(ALLOW)


def _except(index: int, values: tuple[int, ...]) -> list[Instruction]:
    """Refuse a call whose argument is one of the values."""
    body = _argument(index, _WHOLE)
    body += [Instruction(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return body + _answer(ALLOW) + _answer(REFUSE)


def _dated(path: int, times: int) -> list[Instruction]:
    """Refuse "now" for a path, after which `Path.touch` makes the file; pretend any other date."""
    body = [*_argument(times, _WHOLE), Instruction(_EQUAL, 1, 0, 0), *_answer(PRETEND)]
    body += [*_argument(path, _WHOLE), Instruction(_EQUAL, 0, 1, 0), *_answer(PRETEND)]
    return body + _answer(REFUSE)


def _signal(index: int, own_pid: int | None) -> list[Instruction]:
    """Refuse to wake who was stopped, and with `own_pid` others any signal; `index` is the signal's."""
    body = [*_argument(index, _WHOLE), Instruction(_EQUAL, 0, 1, signal.SIGCONT), *_answer(REFUSE)]
    return body + (_answer(ALLOW) if own_pid is None else _only((0, _WHOLE, (own_pid,))))


def _bodies(own_pid: int | None) -> dict[str, list[Instruction]]:
    """Return what becomes of each call; with `own_pid`, signals reach that process alone."""
    itself = _only((0, _WHOLE, (0,)))
    # datagram sockets would send to a path without connect
    connected = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
    unix = _only((0, _WHOLE, (socket.AF_UNIX,)), (1, _SOCKET_TYPE, connected))
    bodies = dict.fromkeys(NUMBERS, _answer(REFUSE))
    # input forged for a terminal, and signals sent by the kernel in the owner's name
    bodies["ioctl"] = _except(1, (_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP))
    # who may not be looked into hides what it holds; who adopts no orphans has them counted by nobody
    bodies["prctl"] = _except(0, (libc.PR_SET_PDEATHSIG, libc.PR_SET_DUMPABLE, libc.PR_SET_CHILD_SUBREAPER))
    # a lease holds up whoever else opens the file
    bodies["fcntl"] = _except(1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETLEASE, _F_NOTIFY))
    bodies |= dict.fromkeys(("setsid", "setpgid"), _answer(PRETEND))
    bodies |= dict.fromkeys(("chmod", "fchmod", "fchmodat", "fchmodat2"), _answer(PRETEND))
    bodies |= dict.fromkeys(("utime", "utimes"), _dated(path=0, times=1))
    bodies |= dict.fromkeys(("futimesat", "utimensat"), _dated(path=1, times=2))
    bodies |= dict.fromkeys(("socket", "socketpair"), unix)
    bodies |= dict.fromkeys(("prlimit64", "sched_setscheduler", "sched_setparam", "sched_setattr"), itself)
    bodies |= dict.fromkeys(("migrate_pages", "move_pages"), itself)
    bodies["sched_setaffinity"] = _only((0, _WHOLE, (0,)), otherwise=PRETEND)
    bodies["setpriority"] = _only((0, _WHOLE, (_PRIO_PROCESS,)), (1, _WHOLE, (0,)))
    bodies["ioprio_set"] = _only((0, _WHOLE, (_IOPRIO_PROCESS,)), (1, _WHOLE, (0,)))
    # a sibling would be no descendant, and a thread with files of its own hides them from who counts
    threads = (0, _CLONE_FILES, _CLONE_FILES | _CLONE_THREAD)
    bodies["clone"] = _only((0, _CLONE_NEW | _CLONE_PARENT, (0,)), (0, _CLONE_FILES | _CLONE_THREAD, threads))
    bodies["clone3"] = _answer(UNKNOWN)
    bodies |= dict.fromkeys(("kill", "tkill", "rt_sigqueueinfo"), _signal(1, own_pid))
    bodies |= dict.fromkeys(("tgkill", "rt_tgsigqueueinfo"), _signal(2, own_pid))
    return bodies


def program(machine: str, own_pid: int | None = None) -> list[Instruction]:
    """Assemble the filter for `os.uname().machine`; `OSError` for an architecture without a table.

    `own_pid` is for kernels whose Landlock does not scope signals: the process may then signal
    itself and no other. Its number stays its own as long as it lives.
    """
    if machine not in MACHINES:
        raise OSError(errno.ENOSYS, f"no system call table for {machine}")
    architecture, column = MACHINES[machine]
    filtered = [
        Instruction(_LOAD, 0, 0, _ARCHITECTURE_AT),
        Instruction(_EQUAL, 1, 0, architecture),
        *_answer(REFUSE),
        Instruction(_LOAD, 0, 0, _NUMBER_AT),
        Instruction(_AT_LEAST, 0, 1, _X32_BIT),
        *_answer(REFUSE),
    ]
    for name, body in _bodies(own_pid).items():
        number = NUMBERS[name][column]
        if number is not None:
            filtered += [Instruction(_EQUAL, 0, len(body), number), *body]
    return filtered + _answer(ALLOW)


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(own_pid: int | None = None) -> None:
    """Put this process and its future children under the filter, for good; needs no_new_privs."""
    instructions = program(os.uname().machine, own_pid)
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    mode_filter = 2
    libc.prctl(libc.PR_SET_SECCOMP, mode_filter, ctypes.byref(_SockFprog(len(instructions), packed)))
