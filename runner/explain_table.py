"""What `explain` found -> tables, JSON, CSV. Names in it are a solution's, and disarmed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from runner.report import to_csv

if TYPE_CHECKING:
    from runner.explain import Report

#: One line of a table: column -> text.
Line = dict[str, str]

ABSENT = "-"
RIGHT = ("warps", "stages", "shared", "waves", "slot", "SM", "MB", "GFLOP", "bound_us", "floor_us")
#: Longer names and messages than any that serves a reader.
TEXT_CHARS = 400


def render(reports: Sequence[Report], fmt: str) -> str:
    """Show reports as `json`, `csv` (a line per launch), or as tables: `table`, `github`."""
    if fmt == "json":
        return json.dumps(reports, indent=1)
    if fmt == "csv":
        return _csv(reports)
    groups: dict[tuple[str, str], list[Report]] = {}
    for report in reports:
        groups.setdefault((report["solution"], report["arithmetic"]), []).append(report)
    return "\n\n".join(_group(group, fmt) for group in groups.values())


def _group(reports: list[Report], fmt: str) -> str:
    """Render one solution in one arithmetic: its launches, cards side by side, then the work and remarks."""
    first = reports[0]
    title = f"{first['solution']} on {first['problem']} in {first['arithmetic']}"
    versions = ", ".join(sorted({one["triton"] for one in reports if "triton" in one}))
    title += f", compiled by Triton {versions}" if versions else ""
    shapes = list(dict.fromkeys(one["shape"] for one in reports))
    launches = [
        (shapes.index(one["shape"]), number, line)
        for one in reports
        for number, line in enumerate(_launch_lines(one))
    ]
    launches.sort(key=lambda entry: entry[:2])
    tables = [[line for _, _, line in launches], [_work_line(one) for one in reports]]
    if not any("canonical" in one for one in reports):
        tables[0] = [{name: text for name, text in line.items() if name != "canonical"} for line in tables[0]]
    tables[1] = _without_empty(tables[1])
    told = [text for one in reports for text in one["notes"]]
    told += [text for one in reports for text in _remarks(one)]
    remarks = "\n".join(f"- {printable(text)}" for text in dict.fromkeys(told))
    return "\n\n".join([title, *(_tabulate(lines, fmt) for lines in tables if lines), remarks]).rstrip()


def _launch_lines(report: Report) -> list[Line]:
    """Return a line for each distinct launch, in the order in which they first come, with their count."""
    lines = [_launch_line(report, launch) for launch in report.get("launches", [])]
    counts = Counter(tuple(line.items()) for line in lines)
    return [
        dict(line) | {"kernel": f"{count}x {dict(line)['kernel']}"} if count > 1 else dict(line)
        for line, count in counts.items()
    ]


def _launch_line(report: Report, launch: Report) -> Line:
    spilled = f" +{launch['spills']} spilled" if launch["spills"] else ""
    ran = {True: ", ran", False: ", did not run", None: ""}[launch.get("ran")]
    choice = f" ({launch['choice']} of {launch['choices']}{ran})" if launch["choices"] > 1 else ""
    line = {
        "shape": report["shape"],
        "card": report["card"],
        "kernel": launch["kernel"] + choice,
        "grid": "x".join(map(str, launch["grid"])).removesuffix("x1").removesuffix("x1"),
        "tile": launch["tile"] or ABSENT,
        "warps": _text(launch["num_warps"]),
        "stages": _text(launch["num_stages"]),
        "regs": f"{_text(launch['registers'])}{spilled}",
        "shared": _text(launch["shared_bytes"]),
        "dot": launch["dot"] or ABSENT,
        "canonical": _canonical(report),
    }
    if "waves" not in launch:
        return line | dict.fromkeys(("per SM", "occupancy", "waves", "slot", "SM"), ABSENT)
    return line | {
        "per SM": f"{launch['programs_per_sm']} ({', '.join(launch['limiters'])})",
        "occupancy": f"{launch['warps_per_sm']}/{launch['max_warps_per_sm']} {launch['occupancy_pct']:.2f} %",
        "waves": _text(launch["waves"], ".2f"),
        "slot": _text(launch["eta_slot"], ".1%"),
        "SM": _text(launch["eta_sm"], ".1%"),
    }


def _canonical(report: Report) -> str:
    """Say what the sweep `waves` has placed: `516 of 64x64, 4.03w`."""
    placed = report.get("canonical")
    return f"{placed['tiles']} of {placed['tile']}, {placed['waves']:.2f}w" if placed else ABSENT


def _work_line(report: Report) -> Line:
    if "memory_bytes" in report:
        memory = (
            f"{report['memory_bytes'] / 1e6:.0f} MB {'fits' if report['fits_memory'] else 'does not fit'}"
        )
    else:
        memory = ABSENT

    def show(name: str, form: str, unit: float = 1) -> str:
        return ABSENT if report.get(name) is None else format(report[name] / unit, form)

    return {
        "shape": report["shape"],
        "card": report["card"],
        "memory": memory,
        "MB": show("min_bytes", ".1f", 1e6),
        "GFLOP": show("flops", ".3f", 1e9),
        "bound_us": show("bound_us", ".2f"),
        "by": report.get("bound_by", ABSENT),
        "floor_us": show("floor_us", ".2f"),
    }


def _without_empty(lines: list[Line]) -> list[Line]:
    """Leave out the columns that no line fills."""
    filled = {name for line in lines for name, text in line.items() if text != ABSENT}
    return [{name: text for name, text in line.items() if name in filled} for line in lines]


def _remarks(report: Report) -> Iterator[str]:
    place = f"{report['shape']} {report['card']}"
    yield from (f"{place}: {report[name]}" for name in ("error", "skipped") if name in report)
    if report.get("operators"):
        calls = ", ".join(f"{count}x {name}" for name, count in report["operators"].items())
        yield f"{place}: beside its kernels it calls PyTorch's {calls}"
    for launch in report.get("launches", []):
        name = f"{place} {launch['kernel']}"
        if launch.get("persistent"):
            yield f"{name}: persistent, its programs loop over tiles: no tail is computed"
        yield from (f"{name}: {finding}" for finding in launch["findings"])
        if launch["measured"]:
            figures = ", ".join(f"{metric} {value}" for metric, value in launch["measured"].items())
            yield f"{name}: measured {figures}"


def _text(value: float | None, form: str = "") -> str:
    return ABSENT if value is None else format(value, form)


def printable(text: str) -> str:
    """Disarm what a solution wrote: no line breaks or terminal codes, no flood."""
    return "".join(char if char.isprintable() else "?" for char in text[:TEXT_CHARS])


def _tabulate(lines: list[Line], fmt: str) -> str:
    from tabulate import tabulate  # noqa: PLC0415 -- 38 ms that `--help` need not pay

    lines = [{column: printable(text) for column, text in line.items()} for line in lines]
    if fmt == "github":
        escapes = str.maketrans({"|": r"\|", "<": "&lt;"})
        lines = [{column: text.translate(escapes) for column, text in line.items()} for line in lines]
    tablefmt = "github" if fmt == "github" else "simple"
    align = ["right" if column in RIGHT else "left" for column in lines[0]]
    text: str = tabulate(lines, headers="keys", tablefmt=tablefmt, disable_numparse=True, colalign=align)
    return text


def _csv(reports: Sequence[Report]) -> str:
    rows = []
    for report in reports:
        shared = {name: value for name, value in report.items() if name != "launches"}
        rows += [shared | launch for launch in report.get("launches") or [{}]]
    return to_csv(rows)
