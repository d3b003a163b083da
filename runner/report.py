"""Records -> tables and a summary; every speed-up is computed anew from the samples."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import statistics
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from runner.flags import notes
from runner.schema import HIDDEN, NOT_RANKED, Checked, Launch, PopulationError, Record, Status, Timed, to_json
from runner.waves import Occupancy, largest, recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FORMATS = ("table", "github", "json", "csv")
#: Stands in a table where there is no number, which nobody takes for a zero or for a slip.
ABSENT = "-"
#: An error this many times its budget is simply wrong; also stands for NaN, and for no budget at all.
LARGEST_SHARE = 1e9
#: Characters of a failure's detail that fit a page or a terminal.
DETAIL_CHARS = 600

#: What is known of one record, numbers in full; what it does not have has no key.
Row = dict[str, Any]
#: One line of a table: column -> text.
Line = dict[str, str]

#: What a terminal too narrow for all columns does without, in this order; names are never cut.
DISPENSABLE = (
    *("flags", "digest", "author", "date", "launches", "beside", "KernelBench", "limited by"),
    *("tail", "worst tail", "bound", "warm_us", "eager", "launch-bound", "fast_1"),
)
#: Columns of numbers in which a reason may stand, which must not stretch them on a terminal.
REASONS = ("speedup", "error")
REASON_CHARS = 40
NUMERIC = (
    "cold_us",
    "warm_us",
    "issue_us",
    "eager",
    "bound",
    "cells",
    "passed",
    "tiles",
    "grid",
    "per SM",
    "waves",
    "tail",
)


def table(records: Iterable[Record], fmt: str = "table") -> str:
    """Show one row per record, in the given order, a table for each problem, card and protocol.

    Below it stands how each launch fills the card, since one line for both fits no terminal. `json` and
    `csv` give numbers in full, the other formats as a person reads them. Rows of the card `cpu` have
    neither times nor speed-ups. Raises ValueError for an unknown format.
    """
    if fmt not in FORMATS:
        raise ValueError(f"unknown format {fmt!r}: one of {', '.join(FORMATS)}")
    rows = [row(record) for record in records]
    if fmt == "json":
        return json.dumps(rows, indent=1)
    if fmt == "csv":
        return to_csv(rows)
    return _per_group(rows, _lines, fmt, _wave_lines)


def summary(records: Iterable[Record], fmt: str = "table") -> str:
    """Show cells, passes and failures per solution and arithmetic, on a GPU with the mean speed-up.

    The mean is geometric, each cell with one weight, over the fastest baselines. Only an arithmetic
    whose cells have all passed and been timed has one; launch-bound cells are counted, not ranked.
    """
    return _per_group([row(record) for record in records], _summary_lines, fmt)


def explain_flags(records: Iterable[Record]) -> str:
    """Say what the flags of these records mean, a line each."""
    return "\n".join(notes(flag for record in records for flag in _flags(record)))


def row(record: Record) -> Row:
    """Return what a table or a program may want of a record: `time_us`, `speedup`, `reason`..."""
    facts: Row = {
        "problem": record.problem,
        "card": record.card,
        "protocol": record.protocol,
        "solution": record.solution,
        "shape": f"{record.cell.sweep}/{record.cell.label}",
        "arithmetic": record.cell.arithmetic,
        "status": str(record.status),
    }
    if record.checked is not None:
        facts |= _correctness(record.checked)
    if record.failed is not None:
        facts["reason"] = record.failed.reason or f"failed in {record.failed.stage}"
        if record.cell.sweep == HIDDEN:  # another one in each run
            facts["reason"] += f" (--shapes {record.cell.spelled})"
    elif record.checked is None:
        facts["reason"] = "not checked"
    elif record.card != "cpu":
        facts |= _speed(record.timed, record.roofline) if record.timed else {"reason": "not timed"}
    return facts | {"waves": list(record.waves), "flags": _flags(record)}


def _flags(record: Record) -> list[str]:
    if record.timed is None:
        return list(record.flags)
    from runner import analyse  # noqa: PLC0415 - numpy, which a table of a CPU run does not need

    return list(analyse.flags_of(record))


def _correctness(checked: Checked) -> Row:
    return {
        "error_of_budget": max(map(_share_of_budget, checked.errors), default=0.0),
        "kernelbench_close": checked.kernelbench_close,
        "launches": _launches(checked.launches),
        "launch_facts": [to_json(one) for one in checked.launches],
    }


def _share_of_budget(error: PopulationError) -> float:
    """Return the worse of the two errors in units of its budget."""
    pairs = ((error.normwise, error.normwise_budget), (error.elementwise, error.elementwise_budget))
    shares = [value / budget if budget > 0 else value * math.inf for value, budget in pairs if value != 0]
    return max((min(LARGEST_SHARE, share) for share in shares), default=0.0)  # NaN is the largest too


def _launches(launches: Sequence[Launch]) -> str:
    """Name each distinct launch once, with its grid: `phase_kernel 12x4 (4 warps)`."""
    names = Counter(
        f"{one.kernel} {'x'.join(map(str, one.grid)).removesuffix('x1').removesuffix('x1')}"
        f" ({one.num_warps} warps)"
        for one in launches
    )
    return ", ".join(f"{count}x {name}" if count > 1 else name for name, count in names.items())


def _speed(timed: Timed, roofline: dict[str, Any]) -> Row:
    """Compare the solution with its fastest baseline and what ran beside it; without pairs, say why not."""
    from runner.analyse import AS_SHIPPED, against_best, comparison, times_us  # noqa: PLC0415 -- numpy: no table of a CPU run needs it

    samples = {one.variant: one for one in timed.samples if not one.config.get("pilot")}
    try:
        ratio = against_best(timed)
        beside = {
            name: comparison(timed, name).speedup
            for name in samples
            if name == AS_SHIPPED or name not in ("solution", ratio.baseline)
        }
    except (KeyError, ValueError) as error:
        return {"reason": f"no comparison: {error}"}
    share = roofline.get("share_of_bound")
    mine = samples["solution"]
    asides = {name: getattr(mine, name) for name in ("warm_us", "issue_us", "steady_us", "graph_us")}
    return {
        "time_us": statistics.median(times_us(timed, "solution")),
        **{name: value for name, value in asides.items() if value is not None},
        "clock": timed.clock,
        "processes": timed.processes,
        "best": ratio.baseline,
        "best_us": statistics.median(times_us(timed, ratio.baseline)),
        "best_config": next(s.config for s in timed.samples if s.variant == ratio.baseline),
        "speedup": ratio.speedup,
        "low": ratio.low,
        "high": ratio.high,
        "verdict": str(ratio.verdict),
        "rounds": ratio.rounds,
        **{f"speedup_{name}": speedup for name, speedup in beside.items()},
        **({"share_of_bound": share} if isinstance(share, float) and math.isfinite(share) else {}),
    }


def _lines(rows: list[Row]) -> list[Line]:
    """Turn the rows of one card into lines, without a column that nobody fills."""
    lines = [_line(one) for one in rows]
    if all(line.get("beside") == ABSENT for line in lines):
        return [{name: text for name, text in line.items() if name != "beside"} for line in lines]
    return lines


def _line(facts: Row) -> Line:
    """Turn a row into the columns of its card; a reason stands in the place of numbers."""

    def show(name: str, form: Callable[[Any], str]) -> str:
        return form(facts[name]) if name in facts and "reason" not in facts else ABSENT

    shared = {name: facts[name] for name in ("solution", "shape")}
    shared |= {"math": facts["arithmetic"], "status": facts["status"]}
    flags = " ".join(facts["flags"]) or ABSENT
    reason = facts.get("reason", "")
    if facts["card"] == "cpu":
        return {
            **shared,
            "error": reason or f"{figures(facts['error_of_budget'])} of budget",
            "KernelBench": show("kernelbench_close", lambda close: "yes" if close else "no"),
            "launches": show("launches", lambda launches: launches or "none seen"),
            "flags": flags,
        }
    return {
        **shared,
        "cold_us": show("time_us", "{:.2f}".format),
        "warm_us": show("warm_us", "{:.2f}".format),
        "best": show("best_us", lambda best_us: f"{facts['best']} {best_us:.2f}"),
        "speedup": reason or _interval(facts),
        "eager": show("speedup_eager", lambda speedup: f"{figures(speedup)}x"),
        "beside": _beside(facts) or ABSENT,
        "bound": show("share_of_bound", "{:.0%}".format),
        "error": show("error_of_budget", figures),
        "flags": flags,
    }


def _beside(facts: Row) -> str:
    """Name the speed-ups over baselines that are asked for by name: fill, compile."""
    named = {key.partition("_")[2]: facts[key] for key in facts if key.startswith("speedup_")}
    return ", ".join(f"{name} {figures(value)}x" for name, value in named.items() if name != "eager")


def _interval(facts: Row) -> str:
    speedup, low, high = (figures(facts[name]) for name in ("speedup", "low", "high"))
    return f"{speedup} [{low}, {high}] {facts['verdict']}"


def _wave_lines(rows: list[Row]) -> list[Line]:
    """Return a line for each distinct launch of each record that places its launches on a card."""
    return [
        {
            "solution": one["solution"],
            "shape": one["shape"],
            "arithmetic": one["arithmetic"],
            "kernel": f"{count}x {kernel}" if count > 1 else kernel,
            **wave_columns(filled),
        }
        for one in rows
        for (kernel, filled), count in _distinct(recorded(one["waves"]))
    ]


def _distinct(launches: Iterable[tuple[str, Occupancy]]) -> Iterable[tuple[tuple[str, Occupancy], int]]:
    """Count equal launches, in the order in which they first come; an occupancy has no hash."""
    found: list[tuple[str, Occupancy]] = list(launches)
    return [(one, found.count(one)) for at, one in enumerate(found) if found.index(one) == at]


def wave_columns(filled: Occupancy) -> Line:
    """Return how a launch fills its card; `tail` is `eta_slot` and `eta_sm`, between which the cost lies."""
    return {
        "grid": str(filled.programs),
        "per SM": str(filled.programs_per_sm),
        "limited by": ", ".join(filled.limiters),
        "waves": figures(filled.waves or 0.0),
        "tail": filled.tail,
    }


def figures(value: float) -> str:
    """Write a ratio with two decimals, or with two figures where decimals would hide it."""
    return f"{value:.2f}" if 0.1 <= value < 1e5 or value == 0 else f"{value:.2g}"


def _summary_lines(rows: list[Row]) -> list[Line]:
    parts: dict[tuple[str, str], list[Row]] = {}
    for one in rows:
        parts.setdefault((one["solution"], one["arithmetic"]), []).append(one)
    lines = []
    for (solution, arithmetic), cells in parts.items():
        statuses = Counter(one["status"] for one in cells)
        passed = statuses.pop(Status.PASS, 0)
        line = {
            "solution": solution,
            "arithmetic": arithmetic,
            "cells": str(len(cells)),
            "passed": str(passed),
        }
        if cells[0]["card"] != "cpu":
            line |= {"speedup": _mean_speedup(cells, passed), "worst tail": _worst_tail(cells)}
        line["others"] = ", ".join(f"{count} {status}" for status, count in statuses.items()) or ABSENT
        lines.append(line)
    return lines


def _mean_speedup(cells: list[Row], passed: int) -> str:
    """Return the geometric mean with the number of cells behind it, or why there is none."""
    # a hidden shape is another one in each run: it must pass, and its time would compare with nobody's
    public = [one for one in cells if not one["shape"].startswith(f"{HIDDEN}/")]
    ranked = [one for one in public if "launch_bound" not in one["flags"]]
    apart = f", {len(public) - len(ranked)} launch-bound apart" if len(ranked) < len(public) else ""
    timed = [one["speedup"] for one in ranked if "speedup" in one and not _is_barred(one)]
    if passed < len(cells):
        return f"unranked: {len(cells) - passed} of {len(cells)} did not pass"
    if not ranked or len(timed) < len(ranked):
        return f"unranked: {len(timed)} of {len(ranked)} compared{apart}"
    return f"{figures(statistics.geometric_mean(timed))} ({len(timed)} of {len(ranked)}{apart})"


def _is_barred(one: Row) -> bool:
    return any(flag.startswith(NOT_RANKED) for flag in one["flags"])


def _worst_tail(cells: list[Row]) -> str:
    """Return the lowest efficiency of a largest grid, and where; launch-bound cells do not wait for it."""
    known = {
        one["shape"]: filled
        for one in cells
        if "launch_bound" not in one["flags"] and (filled := largest(one["waves"]))
    }
    worst = min(known, key=lambda shape: known[shape].eta_slot or 0.0, default=None)
    return f"{known[worst].tail} {worst}" if worst else ABSENT


def _per_group(
    rows: list[Row],
    lines: Callable[[list[Row]], list[Line]],
    fmt: str,
    more: Callable[[list[Row]], list[Line]] = lambda _: [],
) -> str:
    """Render each problem, card and protocol apart: their numbers do not compare; `more` may stand below."""
    groups: dict[str, list[Row]] = {}
    for one in rows:
        title = f"{one['problem']} on {one['card']}, protocol {one['protocol']}"
        groups.setdefault(_printable(title), []).append(one)
    rendered = [
        "\n\n".join([title, *(render(part, fmt) for part in (lines(group), more(group)) if part)])
        for title, group in groups.items()
    ]
    return "\n\n".join(rendered) or "no records"


def render(lines: list[Line], fmt: str) -> str:
    """Draw lines as a table, or as one for GitHub; texts are made harmless first.

    On a terminal that is too narrow some columns are left out, and named; elsewhere all are shown in full.
    """
    from tabulate import tabulate  # noqa: PLC0415 -- 38 ms that `--help` need not pay

    lines = [{column: _printable(text) for column, text in line.items()} for line in lines]
    left_out: list[str] = []
    if fmt == "github":
        escapes = str.maketrans({"|": r"\|", "<": "&lt;"})
        lines = [{column: text.translate(escapes) for column, text in line.items()} for line in lines]
    elif sys.stdout.isatty():
        lines, left_out = _fit(lines, shutil.get_terminal_size().columns)
    align = ["right" if column in NUMERIC else "left" for column in lines[0]]
    tablefmt = "github" if fmt == "github" else "simple"
    text: str = tabulate(lines, headers="keys", tablefmt=tablefmt, disable_numparse=True, colalign=align)
    return f"{text}\n(too narrow for: {', '.join(left_out)})" if left_out else text


def _fit(lines: list[Line], chars: int) -> tuple[list[Line], list[str]]:
    """Leave out columns until a line fits a terminal; returns what is left and the names of those.

    Before any goes, reasons are shortened. What is too long with names alone is the terminal's to wrap.
    """
    # tabulate pads headers by two
    widths = {column: max(len(column) + 2, *(len(line[column]) for line in lines)) for column in lines[0]}
    if _width(widths) <= chars:
        return lines, []
    for column in REASONS:
        if column in widths:
            lines = [{**line, column: _shorten(line[column], REASON_CHARS)} for line in lines]
            widths[column] = max(len(column) + 2, *(len(line[column]) for line in lines))
    left_out = []
    for column in DISPENSABLE:
        if column in widths and _width(widths) > chars:
            del widths[column]
            left_out.append(column)
    return [{column: line[column] for column in widths} for line in lines], left_out


def _width(widths: dict[str, int]) -> int:
    return sum(widths.values()) + 2 * (len(widths) - 1)


def _shorten(text: str, chars: int) -> str:
    """Leave out the middle: labels differ at their ends."""
    left = (chars - 3) // 2
    return text if len(text) <= chars else f"{text[:left]}...{text[left + 3 - chars :]}"


def indented(detail: str) -> list[str]:
    """Return the end of what a failed contestant printed or raised, line by line."""
    return [f"    {_printable(line.expandtabs())}" for line in detail[-DETAIL_CHARS:].strip().splitlines()]


def _printable(text: str) -> str:
    """Disarm what a contestant wrote: no line breaks, terminal codes or halves of characters."""
    return "".join(char if char.isprintable() else "?" for char in text)


def to_csv(rows: list[Row]) -> str:
    """Return a header and a line per row; a field is empty where a row does not have it.

    Texts of a list are joined as `a;b`, what else is no text or number stands as JSON.
    """
    columns = list(dict.fromkeys(column for one in rows for column in one))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for one in rows:
        writer.writerow({column: _csv_field(value) for column, value in one.items()})
    return text.getvalue().removesuffix("\n")  # print adds one


def _csv_field(value: Any) -> Any:
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return _text(";".join(value))
    if isinstance(value, list | tuple | dict | bool):
        return json.dumps(value, sort_keys=True)
    return _text(value) if isinstance(value, str) else value


def _text(value: str) -> str:
    """Keep a spreadsheet from taking a solution's words for a formula."""
    return f"'{_printable(value)}" if value.startswith(("=", "+", "@")) else _printable(value)
