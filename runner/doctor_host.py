"""What `doctor` asks of the host: packages, tools, cores, disks. Nothing here loads torch."""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from runner import ncu
from runner.diagnosis import MEND, NOTE, OK, Diagnosis
from runner.load import ROOT

#: A judge and one spinning contestant take a core each while they time, drivers and the system the rest.
MIN_CORES = 4
#: The largest file that a contestant may write; compile caches of a sweep take less.
MIN_FREE_BYTES = 2 << 30
#: Packages that only a GPU needs.
_FOR_GPU = ("nvidia-ml-py",)
_DRIVER = Path("/proc/driver/nvidia/params")
_CAP_SYS_ADMIN, _CAP_PERFMON = 21, 38


def examine(device: str, results: Path) -> Iterator[Diagnosis]:
    """Diagnose the host of `cpu` or `cuda:N`, and the folder that records go to."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    yield from packages([one for one in requirements if device != "cpu" or not one.startswith(_FOR_GPU)])
    yield host(device)
    yield from folders(results)
    if device != "cpu":
        yield compiler()
        yield counters(ncu.find())
        yield nvcc()


def packages(requirements: list[str]) -> Iterator[Diagnosis]:
    """Hold what is installed against requirements such as `torch>=2.11,<2.14; MARKER`."""
    fine = []
    for requirement in requirements:
        name, bounds = re.match(r"([\w-]+)([^;]*)", requirement).groups()  # type: ignore[union-attr] # ours
        remedy = f'pip install "{name}{bounds}"'
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Diagnosis(name, MEND, "not installed", remedy)
            continue
        if _within(version, bounds):
            fine.append(f"{name} {version}")
        else:
            yield Diagnosis(name, MEND, f"{version} is not {bounds}", remedy)
    yield Diagnosis("packages", OK, ", ".join(fine))


def _within(version: str, bounds: str) -> bool:
    have = _numbers(version)
    limits = [(operator, _numbers(bound)) for operator, bound in re.findall(r"(>=|<)([\d.]+)", bounds)]
    return all(have >= bound if operator == ">=" else have < bound for operator, bound in limits)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:2]))


def host(device: str) -> Diagnosis:
    """Describe cores and whose they are; on a GPU's host, too few of them are heard in short cells."""
    cores = len(os.sched_getaffinity(0))
    virtual = "hypervisor" in _text("/proc/cpuinfo")
    pages = re.search(r"\[(\w+)\]", _text("/sys/kernel/mm/transparent_hugepage/enabled"))
    governor = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    told = [
        f"{cores} cores",
        *(["a virtual machine, whose neighbours are heard"] if virtual else []),
        *([f"huge pages: {pages[1]}"] if pages else []),
        *([f"governor: {governor}"] if governor else []),
    ]
    remedy = ""
    if device != "cpu" and cores < MIN_CORES:
        remedy = f"give it {MIN_CORES} cores: judge and contestant spin on one each while they time"
    elif device != "cpu" and governor == "powersave":
        remedy = "cpupower frequency-set -g performance: launches of short kernels then take less"
    return Diagnosis("host", NOTE if remedy else OK, ", ".join(told), remedy)


def folders(results: Path) -> Iterator[Diagnosis]:
    """Ask whether records can be kept, and whether there is room for scratch files."""
    there = next(path for path in (results.absolute(), *results.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        yield Diagnosis("results", OK, f"{results} can be written")
    else:
        yield Diagnosis("results", MEND, f"{there} cannot be written", "name a folder with --results DIR")
    scratch = Path(tempfile.gettempdir())
    for path in dict.fromkeys((there, scratch)):
        free_bytes = shutil.disk_usage(path).free
        found, remedy = f"{free_bytes / 2**30:.1f} GiB free for {path}", ""
        if free_bytes < MIN_FREE_BYTES:
            elsewhere = "set TMPDIR" if path == scratch else "name another folder with --results DIR"
            remedy = f"make room for {MIN_FREE_BYTES >> 30} GiB, or {elsewhere}"
        yield Diagnosis("disk", MEND if remedy else OK, found, remedy)


def compiler() -> Diagnosis:
    """Find the C compiler that Triton builds a kernel's launcher with."""
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if found:
        return Diagnosis("C compiler", OK, found)
    return Diagnosis("C compiler", MEND, "none: Triton can launch nothing", "install gcc, or set CC")


def nvcc() -> Diagnosis:
    """Find the compiler of solutions that come as CUDA C++."""
    places = [f"{os.environ.get('CUDA_HOME', '')}/bin/nvcc", *glob.glob("/usr/local/cuda*/bin/nvcc")]  # noqa: PTH207 - an absolute pattern
    found = shutil.which("nvcc") or next((path for path in places if os.access(path, os.X_OK)), "")
    if found:
        return Diagnosis("nvcc", OK, found)
    return Diagnosis(
        "nvcc", NOTE, "none: `load_inline` builds no CUDA C++", "install the CUDA toolkit, or set CUDA_HOME"
    )


def counters(tool: Path | None) -> Diagnosis:
    """Find Nsight Compute and whether the driver would let this user count; only `profile` needs them."""
    if tool is None:
        return Diagnosis("counters", NOTE, "no ncu: `profile` gives no counters", ncu.GET_IT)
    found = f"{tool} {ncu.version(tool)}"
    if counting_forbidden(_text(_DRIVER), _text("/proc/self/status")):
        return Diagnosis("counters", NOTE, f"{found}, but only for administrators", ncu.GET_PERMISSION)
    return Diagnosis("counters", OK, found)


def counting_forbidden(driver: str, status: str) -> bool:
    """Whether counters are kept from a process, by the driver's parameters and the process's status."""
    admin_only = re.search(r"^RmProfilingAdminOnly: 1$", driver, re.MULTILINE)
    effective = re.search(r"^CapEff:\s*(\w+)$", status, re.MULTILINE)
    capabilities = int(effective[1], 16) if effective else 0
    return bool(admin_only) and not capabilities & (1 << _CAP_SYS_ADMIN | 1 << _CAP_PERFMON)


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
