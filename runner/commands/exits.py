"""Exit codes, of what was found and of what went wrong."""

from __future__ import annotations

from collections.abc import Iterable

from runner import devices, files, gpu_lock, judge_process, ncu, pipeline, record
from runner.load import BadInput
from runner.schema import HARMLESS, PROBLEM, Failed, Record, Status

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_HARNESS, EXIT_DEVICE = range(5)
#: Errors that are one clear line; any other is a bug.
_CODES: dict[type[Exception], int] = {
    BadInput: EXIT_USAGE,
    devices.NoDevice: EXIT_DEVICE,
    ncu.NoCounters: EXIT_DEVICE,
    gpu_lock.DeviceBusy: EXIT_DEVICE,
    pipeline.HarnessFailure: EXIT_HARNESS,
    judge_process.JudgeDied: EXIT_HARNESS,
    record.ResultsUnwritable: EXIT_HARNESS,
    record.ResultsBusy: EXIT_HARNESS,
    files.DiskFull: EXIT_HARNESS,
    record.ResultsUnreadable: EXIT_USAGE,
}


def of_error(error: Exception) -> int | None:
    """Return the code of an error that is one clear line; None for a bug."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)


def of_records(records: Iterable[Record]) -> int:
    """Return the code of what the judge found."""
    return of_failures(one.failed for one in records)


def of_failures(failures: Iterable[Failed | None]) -> int:
    """Return the code of how cells failed: the harness's fault before the problem's and a solution's."""
    found = [one for one in failures if one]
    errors = [one for one in found if one.status == Status.ERROR]
    if errors:
        return EXIT_USAGE if all(one.stage == PROBLEM for one in errors) else EXIT_HARNESS
    return EXIT_DONE if {one.status for one in found} <= set(HARMLESS) else EXIT_FAILED
