"""Records -> flashinfer-bench's Trace lines, as `flashinfer_bench/data/trace.py` there describes them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING
from uuid import UUID

from runner.export import REFERENCE, Export, Json, hardware, reason, stats_ms
from runner.schema import NOT_RANKED, PROTOCOL, Record, Status, digest

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Each status as an EvaluationStatus; None where it says nothing of the solution.
STATUS: dict[Status, str | None] = {
    Status.PASS: "PASSED",
    Status.WRONG: "INCORRECT_NUMERICAL",  # shapes and dtypes too: a record tells them apart in words only
    Status.VIOLATION: "RUNTIME_ERROR",
    Status.MISSING: "RUNTIME_ERROR",
    Status.TIMEOUT: "TIMEOUT",
    Status.CRASH: "RUNTIME_ERROR",
    Status.OOM: "RUNTIME_ERROR",
    Status.BUILD: "COMPILE_ERROR",
    Status.INVALID: "RUNTIME_ERROR",
    Status.UNSUPPORTED: None,
    Status.NOT_COVERED: None,
    Status.ERROR: None,
}
LIBRARIES = ("torch", "triton", "cuda", "cudnn")
#: A text is told from others of its name by the first digits of its digest.
DIGEST_CHARS = 12


def lines(records: Iterable[Record], arithmetic: str | None = None) -> Export:
    """Write a Trace a line, of one arithmetic or of all."""
    made: list[str] = []
    left_out: Counter[str] = Counter()
    for one in records:
        outcome = trace(one) if arithmetic in (None, one.cell.arithmetic) else f"not {arithmetic}"
        if isinstance(outcome, str):
            left_out[outcome] += 1
        else:
            made.append(json.dumps(outcome, allow_nan=False))
    return Export("\n".join(made), len(made), left_out)


def trace(record: Record) -> Json | str:
    """Return a record as a Trace, or why there is none: a PASS has to have times to rank.

    Arithmetics are different definitions and texts different solutions, so that none is taken for another.
    For a protocol a Trace has no place: it is of the present one. Latencies are means in milliseconds. The
    reference is `eager`.
    """
    if record.protocol != PROTOCOL:
        return f"not of protocol {PROTOCOL}"
    status = STATUS[record.status]
    if status is None:
        return str(record.status)
    barred = next((flag for flag in record.flags if flag.startswith(NOT_RANKED)), None)
    if record.status is Status.PASS and barred is not None:
        return barred  # whoever reads a Trace takes means of its times
    performance = _performance(record)
    if record.status is Status.PASS and performance is None:
        return f"PASS without times of {REFERENCE}"
    return {
        "definition": f"{record.problem}_{record.cell.arithmetic}",
        "workload": _workload(record),
        "solution": f"{record.solution}-{record.solution_digest[:DIGEST_CHARS]}",
        "evaluation": {
            "status": status,
            "environment": _environment(record),
            "timestamp": record.time_utc,
            "log": _log(record),
            "correctness": _correctness(record),
            "performance": performance,
        },
    }


def _workload(record: Record) -> Json:
    """Spread a shape over axes, which are sizes from 0 up, and scalar inputs for all the rest."""
    sizes: dict[str, int | bool] = {}
    for name, value in record.cell.shape.items():
        if isinstance(value, tuple):
            sizes |= {f"{name}_{axis}": size for axis, size in enumerate(value)}
        else:
            sizes[name] = value
    axes = {name: size for name, size in sizes.items() if not isinstance(size, bool) and size >= 0}
    scalars = {name: {"type": "scalar", "value": size} for name, size in sizes.items() if name not in axes}
    identity = digest([record.problem, record.cell.arithmetic, record.cell.shape])
    return {"axes": axes, "inputs": scalars, "uuid": str(UUID(identity[:32]))}


def _environment(record: Record) -> Json:
    known = record.environment
    return {
        "hardware": hardware(record),
        "libs": {name: str(known[name]) for name in LIBRARIES if name in known},
    }


def _log(record: Record) -> str:
    place = f"{record.cell.sweep}/{record.cell.label} {record.cell.arithmetic}"
    flags = f", flags: {' '.join(record.flags)}" if record.flags else ""
    return f"{place}{flags}\n{reason(record)}".rstrip()


def _correctness(record: Record) -> Json | None:
    """Return the errors of an answer that was compared, right or wrong; None for any other.

    The largest normwise error of a slice stands for the relative error, and for the absolute one the largest
    in units of its slice's root mean square. A wrong answer's are not kept: they are NaN, as Trace spells it.
    """
    if record.status not in (Status.PASS, Status.WRONG):
        return None
    errors = record.checked.errors if record.checked else ()
    # the structural population's are in another unit
    measured = [one for one in errors if one.population != "structural"]
    return {
        "max_relative_error": max((one.normwise for one in measured), default="NaN"),
        "max_absolute_error": max((one.elementwise for one in measured), default="NaN"),
        "extra": {"absolute_error_unit": "RMS of a slice", "errors": [asdict(one) for one in errors]},
    }


def _performance(record: Record) -> Json | None:
    mine, reference = stats_ms(record, "solution"), stats_ms(record, REFERENCE)
    if not (mine and reference):
        return None
    return {
        "latency_ms": mine["mean"],
        "reference_latency_ms": reference["mean"],
        "speedup_factor": reference["mean"] / mine["mean"],
    }
