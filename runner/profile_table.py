"""What `profile` found -> tables and CSV. Names in it are a solution's, and are disarmed by `report`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from runner.report import ABSENT, Line, render, to_csv

Report = dict[str, Any]


#: What of a report is about its launches, each in a row of its own.
_PER_LAUNCH = ("launches", "metrics", "units")


def table(reports: Sequence[Report], fmt: str = "table") -> str:
    """Show for each cell its launches, the metrics of each kernel, and what else is known.

    `fmt` is `table`, `github` or `csv`, which has a row for each launch with the metrics of its kernel.
    """
    if fmt == "csv":
        return to_csv([row for report in reports for row in _rows(report)])
    return "\n\n".join(_cell(report, fmt) for report in reports)


def _rows(report: Report) -> Iterator[Report]:
    shared = {name: value for name, value in report.items() if name not in _PER_LAUNCH}
    for launch in report.get("launches") or [{}]:
        metrics = report.get("metrics", {}).get(launch.get("kernel"), {})
        units = {name: f"{name} ({unit})" for name, unit in report.get("units", {}).items() if unit}
        yield shared | launch | {units.get(name, name): value for name, value in metrics.items()}


def _cell(report: Report, fmt: str) -> str:
    tool = f", ncu {report['ncu']}" if report.get("ncu") else ""
    place = f"{report['solution']} on {report['problem']} {report['shape']}"
    arithmetic = f"{report['dtype']}/{report['math']}" if report["dtype"] == "fp32" else report["dtype"]
    title = f"{place} in {arithmetic}, {report.get('device') or 'not run'}{tool}"
    launches = [_launch(one) for one in report.get("launches", [])]
    metrics = [
        {"kernel": kernel, "metric": name, "value": f"{value:,}", "unit": report["units"].get(name, "")}
        for kernel, values in report.get("metrics", {}).items()
        for name, value in values.items()
    ]
    tables = [render(lines, fmt) for lines in (launches, metrics) if lines]
    return "\n\n".join([title, *tables, "\n".join(f"- {text}" for text in _remarks(report))]).rstrip()


def _launch(launch: Report) -> Line:
    def show(name: str, form: str = "") -> str:
        return ABSENT if launch.get(name) is None else format(launch[name], form)

    limiters = f" ({', '.join(launch['limiters'])})" if "limiters" in launch else ""
    return {
        "kernel": launch["kernel"],
        "grid": "x".join(map(str, launch["grid"])).removesuffix("x1").removesuffix("x1"),
        "threads": "x".join(map(str, launch["block"])).removesuffix("x1").removesuffix("x1"),
        "regs": show("registers"),
        "shared": show("shared_bytes"),
        "per SM": show("programs_per_sm") + limiters,
        "occupancy %": show("occupancy_pct", ".2f"),
        "waves": show("waves", ".2f"),
        "us": show("duration_us", ".2f"),
    }


def _remarks(report: Report) -> Iterator[str]:
    yield from (report[name] for name in ("error", "skipped") if name in report)
    if "no_counters" in report:
        yield f"no counters: {report['no_counters']}"
    if report.get("missing"):
        yield f"not measured: {', '.join(report['missing'])}"
    if "recorded_us" in report:
        yield f"the judge recorded {report['recorded_us']:.2f} us"
    if "bound_us" in report:
        yield f"no faster than {report['bound_us']:.2f} us here, by {report['bound_by']}"


def differences(reports: Sequence[Report], fmt: str = "table") -> str:
    """Show each difference between prediction and measurement, what could not be compared, and a count.

    `csv` has the differences alone, a row each.
    """
    lines: list[Line] = []
    for report in reports:
        place = {name: report[name] for name in ("solution", "shape", "arithmetic")}
        lines += [_difference(place, one) for one in report.get("differences", [])]
    if fmt == "csv":
        return to_csv([*lines])
    errors = [
        f"{one['solution']} {one['shape']} {one['arithmetic']}: {one['error']}"
        for one in reports
        if "error" in one
    ]
    launches = sum(one.get("launches", 0) for one in reports)
    versions = sorted({f"Triton {one['predicted_by']} predicted, {one['ran']} ran" for one in reports})
    count = f"{launches} launches in {len(reports)} cells: {len(lines)} differences ({'; '.join(versions)})"
    return "\n\n".join([*([render(lines, fmt)] if lines else []), *errors, count])


def _difference(place: Line, one: Report) -> Line:
    launch = f"{one['launch']} {one['kernel']}" if "launch" in one else ABSENT
    values = {name: str(one[name]) for name in ("quantity", "predicted", "measured")}
    return place | {"launch": launch} | values
