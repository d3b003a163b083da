"""Nsight Compute: where it is, what it is asked, and the table of numbers that it answers with."""

from __future__ import annotations

import contextlib
import csv
import functools
import glob
import math
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Where CUDA's packages put it when PATH does not lead there.
PLACES = ("/usr/local/cuda*/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")
#: The NVTX range whose kernels are profiled; within it, each cell has a range of its own.
RANGE, CELL = "kernelwave", "cell-"
GET_IT = "it comes with the CUDA toolkit; put ncu on PATH"
GET_PERMISSION = (
    "be root, or load the driver with NVreg_RestrictProfilingToAdminUsers=0; a container needs CAP_SYS_ADMIN"
)
#: Listing a chip's metrics is the slowest of its questions.
ANSWER_S = 60.0


class NoCounters(Exception):
    """Why there are no counters, in one line that says how to get them."""


@dataclass(frozen=True)
class Launched:
    """One launch that was profiled, with its numbers by metric.

    `cell` is the number of the range that it was made in.
    """

    cell: int
    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    values: dict[str, float]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return math.prod(self.block)


@dataclass(frozen=True)
class Table:
    """Launches in the order they were made, and the unit of each metric, in base units."""

    launches: tuple[Launched, ...]
    units: dict[str, str]


def find() -> Path | None:
    """Find ncu on PATH, else the newest that is installed in one of `PLACES`."""
    if on_path := shutil.which("ncu"):
        return Path(on_path)
    installed = [path for place in PLACES for path in glob.glob(place) if os.access(path, os.X_OK)]  # noqa: PTH207 - absolute patterns
    return Path(max(installed, key=_numbers)) if installed else None


def _numbers(path: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", path)]


def version(tool: Path) -> str:
    """Return ncu's own version, or `unknown`."""
    found = re.search(r"Version (\S+)", _ask(tool, "--version"))
    return found[1] if found else "unknown"


def lacking(tool: Path, metrics: Sequence[str]) -> list[str]:
    """Return the counters among `metrics` that the live device lacks; none where ncu cannot list them.

    Only names with a suffix (`.sum`, `.pct`) are counters. The others, such as `launch__grid_size`, ncu
    computes itself and lists nowhere.
    """
    counters = [name for name in metrics if "." in name]
    listing = _ask(tool, "--query-metrics") if counters else ""
    known = set(re.findall(r'^"?(\w+__\w+)', listing, re.MULTILINE))
    return [name for name in counters if known and name.partition(".")[0] not in known]


@functools.cache
def _ask(tool: Path, question: str) -> str:
    try:
        answer = subprocess.run(
            [tool, question], capture_output=True, text=True, errors="replace", timeout=ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def cell_range(cell: int) -> str:
    """Name the NVTX range of a cell."""
    return f"{CELL}{cell}"


def command_line(
    tool: Path,
    metrics: Sequence[str],
    clock_control: str,
    cache_control: str,
    log: Path,
    child: Sequence[str],
) -> list[str]:
    """Return the command that profiles `child` within `RANGE` and writes its table to `log`."""
    return [
        *(str(tool), "--target-processes", "all"),
        *("--nvtx", "--nvtx-include", f"{RANGE}/"),  # the slash says that it is pushed and popped
        *("--clock-control", clock_control, "--cache-control", cache_control),
        *("--csv", "--page", "raw", "--print-units", "base", "--print-kernel-base", "function"),
        *("--metrics", ",".join(metrics), "--log-file", str(log)),
        *child,
    ]


def complaint(log: str, code: int) -> str:
    """Return what kept ncu from profiling, in one line with the remedy where there is one; else nothing."""
    if "ERR_NVGPUCTRPERM" in log:
        return f"the driver keeps counters from this user (ERR_NVGPUCTRPERM): {GET_PERMISSION}"
    if code == 0:
        return ""
    errors = re.findall(r"^==ERROR== (.+)", log, re.MULTILINE)
    return f"ncu ended with code {code}: {errors[0] if errors else 'it does not say why'}"


def read(text: str, metrics: Sequence[str]) -> Table:
    """Read the table of a raw page: text, a header, units, then a line for each launch.

    The page has hundreds of columns whatever was asked, so those of `metrics` are taken by name. What is
    no finite number (`n/a`) is left out. Raises NoCounters for a launch outside the ranges of cells.
    """
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID",')), len(lines))
    table = csv.DictReader(lines[start:])
    units: dict[str, str] = next(table, {})
    launches = tuple(_launched(row, metrics) for row in table if row.get("Kernel Name"))
    return Table(launches, {name: units[name] for name in metrics if name in units})


def _launched(row: dict[str, str], metrics: Sequence[str]) -> Launched:
    ranges = " ".join(text for column, text in row.items() if column and "Push/Pop_Range" in column)
    cell = re.search(rf"\b{CELL}(\d+)\b", ranges)
    if cell is None:
        raise NoCounters(f"ncu does not tell the NVTX range of {row['Kernel Name']}: another version may")
    values = {name: number(row.get(name) or "") for name in metrics}
    return Launched(
        cell=int(cell[1]),
        kernel=row["Kernel Name"],
        grid=_sizes(row["Grid Size"]),
        block=_sizes(row["Block Size"]),
        values={name: value for name, value in values.items() if value is not None},
    )


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part.replace(",", "")) for part in text.strip("() ").split(", "))


def number(text: str) -> float | None:
    """Read a number with commas between its thousands; None for anything that is not finite or no number."""
    plain = text.replace(",", "")
    with contextlib.suppress(ValueError):
        return int(plain)
    with contextlib.suppress(ValueError):
        return value if math.isfinite(value := float(plain)) else None
    return None
