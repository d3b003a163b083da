"""The sandbox that a contestant enters after its fork and before it reads a stranger's file.

Each layer is tried and none is fatal; what holds and what does not is reported. The modules that
a contestant needs are imported before: the runner's own source is out of its sight afterwards.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runner.contestant import landlock, libc, seccomp, view

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

#: What of the caller's environment a contestant keeps; no other name, so no token or proxy.
KEPT_VARIABLES: Final = frozenset({
    "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "CC", "CXX",
    "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MODULE_LOADING",
    "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NVML_BASED_CUDA_CHECK", "TRITON_INTERPRET", "TRITON_PTXAS_PATH",
    "TORCHDYNAMO_DISABLE",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED",
})  # fmt: skip

#: Without one of these a level is `none`; the others make a better one of it.
CORE_LAYERS: Final = ("no_new_privs", "landlock", "seccomp", "rlimits", "no_caps", "single_thread")

FILE_BYTES: Final = 2 << 30
OPEN_FILES: Final = 1024
#: Threads of a contestant's user within its own user namespace; torch starts one per core.
TASKS: Final = 4096

_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000


@dataclass(frozen=True)
class Isolation:
    """What confines a contestant.

    `level` is `partial` when every core layer is on and `none` otherwise. `full` is kept for
    layers that a probe child has tried from inside and found closed. `layers` are on; each of
    `missing` reads `layer: reason`.
    """

    level: str
    layers: tuple[str, ...]
    missing: tuple[str, ...]


class _Layers:
    """The report while it is being made."""

    def __init__(self) -> None:
        self.on: list[str] = []
        self.missing: list[str] = []

    def attempt(self, layer: str, step: Callable[[], object]) -> bool:
        """Run a step, which may return a fuller name of its layer; an `OSError` is its absence."""
        try:
            name = step()
        except OSError as error:
            self.missing.append(f"{layer}: {error.strerror or error}")
            return False
        self.on.append(name if isinstance(name, str) else layer)
        return True

    def isolation(self) -> Isolation:
        """Freeze the report."""
        families = {layer.partition("-")[0] for layer in self.on}
        level = "partial" if families.issuperset(CORE_LAYERS) else "none"
        return Isolation(level, tuple(self.on), tuple(self.missing))


def enter(scratch: Path, *, device: str, memory_bytes: int | None = None) -> Isolation:
    """Confine this process for good and return what was reached.

    `scratch` is an existing folder, the only one that stays writable and the new working
    directory. `device` is `cpu` or `cuda`; anything else is a `ValueError`. `memory_bytes` bounds
    what a CPU contestant may map beyond what it holds now; CUDA reserves address space too freely
    for such a limit. The process dies with its parent from now on. The caller has made a new session,
    closed descriptors, and runs one thread.
    """
    if device not in {"cpu", "cuda"}:
        raise ValueError(f"device is {device!r}, not cpu or cuda")
    scratch = scratch.resolve(strict=True)
    # a process that is not dumpable does not own its /proc entry and could not name its threads
    libc.prctl(libc.PR_SET_DUMPABLE, 1)
    layers = _Layers()
    layers.attempt("single_thread", _require_one_thread)
    layers.attempt("clean_environ", _require_clean_start)
    _settle(scratch)
    layers.attempt("namespaces", _leave_namespaces)
    layers.attempt("rlimits", lambda: _limit(memory_bytes if device == "cpu" else None))
    layers.attempt("no_caps", _drop_capabilities)
    layers.attempt("no_new_privs", lambda: libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1))
    signals_scoped = _confine_files(layers, scratch, device)
    libc.die_with_parent()  # the kernel forgets it where privileges change, and seccomp refuses it
    layers.attempt("seccomp", lambda: seccomp.install(None if signals_scoped else os.getpid()))
    return layers.isolation()


def unconfined(scratch: Path) -> Isolation:
    """Settle in `scratch` without any layer: what the selftest compares the sandbox's cost with."""
    _settle(scratch.resolve(strict=True))
    libc.die_with_parent()
    return Isolation("none", (), ("every layer: not asked for",))


def allowed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a contestant may see.

    The zygote is executed with these alone: what a process was started with stays readable in
    its `/proc/self/environ` and in its memory, whatever it deletes later.
    """
    return {name: value for name, value in environment.items() if name in KEPT_VARIABLES}


def close_descriptors(keep: Collection[int]) -> None:
    """Close every descriptor but `keep`; of 0 to 2, those not kept lead to /dev/null.

    Left free, they would be given to the next file opened, and prints would go into it.
    """
    for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - numbers, not paths
        if descriptor not in keep:
            with suppress(OSError):  # the listing's own
                os.close(descriptor)
    for _ in {0, 1, 2}.difference(keep):
        # the lowest free number each time; programs started later shall have it too
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _require_one_thread() -> None:
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise OSError(0, f"{threads} threads run, and most layers bind only the calling one")


def _require_clean_start() -> None:
    started_with = Path("/proc/self/environ").read_bytes().split(b"\0")
    names = {os.fsdecode(variable.partition(b"=")[0]) for variable in started_with if variable}
    if foreign := sorted(names - KEPT_VARIABLES - _own_variables(Path()).keys()):
        raise OSError(0, f"started with {len(foreign)} other variables, such as {foreign[0]}")


def _own_variables(scratch: Path) -> dict[str, str]:
    return {
        "HOME": str(scratch),
        "USER": "contestant",
        "TMPDIR": str(scratch / "tmp"),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "TRITON_HOME": str(scratch),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TORCH_EXTENSIONS_DIR": str(scratch / "extensions"),
        "CUDA_CACHE_PATH": str(scratch / "cuda"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _settle(scratch: Path) -> None:
    """Make `scratch` the home of everything that writes files."""
    environment = allowed_environment(os.environ) | _own_variables(scratch)
    os.environ.clear()
    os.environ.update(environment)
    (scratch / "tmp").mkdir(exist_ok=True)
    # both may have been read from the old environment before the fork
    tempfile.tempdir = environment["TMPDIR"]
    sys.dont_write_bytecode = True
    os.chdir(scratch)


def _leave_namespaces() -> str:
    """Take an empty network and IPC of one's own, in a user namespace where that is needed."""
    with suppress(PermissionError):
        libc.call("unshare", _CLONE_NEWNET | _CLONE_NEWIPC)
        return "namespaces-net+ipc"
    user, group = os.getuid(), os.getgid()
    libc.call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC)
    libc.prctl(libc.PR_SET_DUMPABLE, 1)  # undone by the new user namespace, and the maps are root's then
    # a root that lacks CAP_SETFCAP may not map itself; it keeps its files without
    with suppress(PermissionError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    # elsewhere this limit counts all that the user runs on the machine
    _lower(resource.RLIMIT_NPROC, TASKS)
    return "namespaces-user+net+ipc"


def _limit(memory_bytes: int | None) -> None:
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, FILE_BYTES)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    if memory_bytes is not None:
        held_pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, held_pages * resource.getpagesize() + memory_bytes)


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (lowered, lowered))


def _drop_capabilities() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    with suppress(PermissionError):  # without CAP_SETPCAP; no_new_privs makes the bounding set moot
        for capability in range(last + 1):
            libc.prctl(libc.PR_CAPBSET_DROP, capability)
    libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_CLEAR_ALL)
    version_3, own_process = 0x20080522, 0
    no_effective_permitted_inheritable = bytes(2 * 3 * 4)
    libc.call("capset", struct.pack("=Ii", version_3, own_process), no_effective_permitted_inheritable)


def _confine_files(layers: _Layers, scratch: Path, device: str) -> bool:
    """Apply Landlock and return whether it also keeps signals inside."""
    version = 0

    def confine() -> str:
        nonlocal version
        version = landlock.abi()
        # never closed: the rule on this folder lives as long as its entry in the kernel's cache
        os.open("/proc/self/task", os.O_PATH | os.O_CLOEXEC)
        landlock.restrict(version, view.grants(scratch, device))
        return f"landlock-{version}"

    confined = layers.attempt("landlock", confine)
    if confined:
        lacking = {name: since for name, since in landlock.CLOSED_BY_ABI.items() if version < since}
        layers.missing += [f"landlock_{name}: needs ABI {since}" for name, since in lacking.items()]
    return confined and version >= landlock.CLOSED_BY_ABI["scope"]
