"""What a contestant sees of the file system: the interpreter, the compilers, one folder of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runner.contestant.landlock import EVERYTHING, Access

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN: Final = Access.EXECUTE | Access.READ_FILE | Access.READ_DIR
READ: Final = Access.READ_FILE | Access.READ_DIR
DEVICE: Final = Access.READ_FILE | Access.WRITE_FILE
SCRATCH: Final = EVERYTHING & ~(Access.MAKE_CHAR | Access.MAKE_BLOCK)

_ROOT: Final = Path(__file__).resolve().parents[2]
_CHECKOUT: Final = _ROOT / "runner" if _ROOT.name in {"site-packages", "dist-packages"} else _ROOT
_HOME: Final = Path(os.path.expanduser("~")).resolve()  # noqa: PTH111 - never raises, unlike Path.home
#: Never granted as a whole: results, problems, solutions and their history; the caller's home.
PRIVATE: Final = (_CHECKOUT, _HOME)

_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/bin", "/sbin")
_PACKAGES: Final = ("torch", "triton", "numpy", "nvidia")
_READABLE: Final = (
    "/etc/ld.so.cache",
    "/sys",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/devices",
    "/proc/driver/nvidia",
    "/dev/urandom",
    "/dev/zero",
)
_GPU_NODES: Final = ("nvidiactl", "nvidia-uvm", "nvidia[0-9]*", "dxg")


def grants(scratch: Path, device: str) -> Iterator[tuple[Path, Access]]:
    """Yield each path with its rights, for a device that is `cpu` or `cuda`.

    To be called by the process that will be confined: `/proc/self` is its own entry.
    """
    for tree in _code():
        for path in _around(tree.resolve()):
            yield path, RUN
    for name in _READABLE:
        yield Path(name), READ
    yield Path("/dev/null"), DEVICE
    # the driver names its threads here, by an open that truncates, and fails whole if it may not
    yield Path("/proc/self/task"), Access.WRITE_FILE | Access.TRUNCATE
    if device == "cuda":
        for pattern in _GPU_NODES:
            for node in Path("/dev").glob(pattern):
                yield node, DEVICE | Access.IOCTL_DEV
    yield scratch, SCRATCH


def _code() -> Iterator[Path]:
    """Yield the folders that hold programs and libraries."""
    yield from map(Path, _SYSTEM)
    yield from map(Path, (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix))
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        yield from map(Path, (spec and spec.submodule_search_locations) or ())
    for site in sys.path:
        if Path(site).name in {"site-packages", "dist-packages"}:
            yield Path(site)
    listed = [os.environ.get("CUDA_HOME", ""), *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    yield from (Path(folder) for folder in [*listed, *_compilers()] if folder.startswith("/"))


def _compilers() -> Iterator[str]:
    """Yield the homes of the compilers that Triton builds its launcher with."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            folder = Path(found).resolve().parent
            yield str(folder.parent if folder.name == "bin" else folder)


def _around(tree: Path) -> Iterator[Path]:
    """Yield `tree`, or what lies in it beside a private place: Landlock cannot take back a grant."""
    if tree in {Path("/"), *PRIVATE} or not tree.exists():
        return
    if not any(place.is_relative_to(tree) for place in PRIVATE):
        yield tree
        return
    for child in tree.iterdir():
        if not child.is_symlink():
            yield from _around(child)
