"""Records for other suites: which ones, and what all formats take from one alike.

`export_trace` and `export_kernelbench` hold the words of each. A record that a format has no words for is
left out and counted.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner import files
from runner import record as recorded
from runner.load import BadInput, unknown
from runner.schema import Record

if TYPE_CHECKING:
    from pathlib import Path

#: The baseline that other suites mean by reference: PyTorch with the flags it ships.
REFERENCE = "eager"
#: The end of the name of a card of which `--sms` left a part.
_PART = re.compile(r"-(\d+)sm$")

Json = dict[str, Any]


@dataclass(frozen=True)
class Export:
    """The text of a file, how many records it holds, and how many it does not, by the reason."""

    text: str
    records: int
    left_out: dict[str, int]


def read(results: Path, **chosen: str | None) -> tuple[list[Record], list[str]]:
    """Read the records of GPUs, and a line for each line that is no record.

    `chosen` may name a `problem`, a `solution` and a `card`. Raises BadInput for one that has no records.
    """
    records: list[Record] = []
    problems: list[str] = []
    for path in recorded.files(results):
        found, complaints = recorded.read(path)
        records += [one for one in found if one.card != "cpu"]
        problems += complaints
    if not records:
        raise BadInput(f"'{results}' has no records of a GPU: name another folder with --results")
    for kind, name in chosen.items():
        known = {getattr(one, kind) for one in records}
        if name is not None and name not in known:
            raise unknown(f"{kind} with records", name, known)
        records = [one for one in records if name in (None, getattr(one, kind))]
    return records, problems


def write(path: Path, export: Export) -> None:
    """Write an export to a file. Raises BadInput where that cannot be, and `files.DiskFull`."""
    files.write(path, f"{export.text}\n")


def stats_ms(record: Record, variant: str) -> dict[str, float]:
    """Summarise a variant's times in milliseconds: `mean`, `std`, `min`, `max` and `num_trials`.

    Empty for a variant that was not timed, or has a time that is not positive.
    """
    series = [one.times_us for one in record.timed.samples if one.variant == variant] if record.timed else []
    times_ms = [time_us / 1e3 for times_us in series for time_us in times_us]
    if not times_ms or min(times_ms) <= 0:
        return {}
    return {
        "mean": statistics.fmean(times_ms),
        "std": statistics.pstdev(times_ms),
        "min": min(times_ms),
        "max": max(times_ms),
        "num_trials": len(times_ms),
    }


def hardware(record: Record) -> str:
    """Return the driver's name of the GPU, and of a part of one how much it is: another machine's times."""
    name, sms = str(record.environment.get("gpu", record.card)), record.environment.get("sms")
    # an unknown device's card ends in all of its SMs
    part = _PART.search(record.card)
    return f"{name} ({part[1]} of {sms} SMs)" if part and sms is not None and part[1] != str(sms) else name


def reason(record: Record) -> str:
    """Say why a cell has no result; empty for one that passed."""
    failed = record.failed
    return f"{failed.status} in {failed.stage}: {failed.reason}\n{failed.detail}".rstrip() if failed else ""
