"""What failed last time, of a solution's records or of an answer's feedback -> lines of a page."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner import load, record
from runner.decode import Malformed, decode
from runner.lint import ERROR, Finding
from runner.output_rules import OUTPUT_RULES
from runner.report import indented
from runner.schema import HARMLESS, Shape, Status

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from runner.schema import Record

#: Failures that fit a page.
MAX_FAILURES = 5


@dataclass(frozen=True)
class Failure:
    """A cell that an answer failed; `cell` is sweep/label and arithmetic."""

    cell: str
    shape: Shape
    status: Status
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Correctness:
    """How many cells an answer ran and passed, and the others."""

    cells: int
    passed: int
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Feedback:
    """What is said of an answer, and its text; `correctness` is None where it was not run."""

    refused: bool
    findings: tuple[Finding, ...]
    correctness: Correctness | None = None
    source: str | None = None


def read_feedback(path: Path) -> Feedback:
    """Read what `prompt --answer` printed. Raises BadInput."""
    try:
        feedback: Feedback = decode(Feedback, json.loads(load.read_source(path)))
    except (Malformed, ValueError, RecursionError) as error:
        raise load.BadInput(f"'{path}' is not what `prompt --answer` prints: {error}") from None
    return feedback


def of_feedback(feedback: Feedback) -> str:
    """Say which rules an answer broke, and which cells it failed, each reason once."""
    lines = [f"- {text}" for text in breaches(feedback.findings)]
    ran = feedback.correctness
    reasons: dict[str, list[Failure]] = {}
    for one in ran.failures if ran else ():
        reasons.setdefault(f"{one.status}: {_line(one.reason)}", []).append(one)
    for reason, (first, *others) in list(reasons.items())[:MAX_FAILURES]:
        fields = " ".join(f"{name}={value}" for name, value in first.shape.items())
        lines.append(f"- {_line(first.cell)}{_more(len(others))}: {reason}\n    {_line(fields)}")
        lines += indented(first.detail)
    lines += _untold(len(reasons))
    verdict = "Its text was refused" if feedback.refused else "Its text was not refused"
    result = f"{ran.passed} of {ran.cells} cells passed" if ran else "it was not run"
    return "\n".join([f"The last answer to this page: {verdict.lower()}, {result}.", *lines])


def breaches(findings: Iterable[Finding]) -> list[str]:
    """Return a line for each rule of the page that findings name, or whatever else is an error."""
    known = {rule.name for rule in OUTPUT_RULES}
    places: dict[str, list[int]] = {}
    for one in findings:
        if one.rule in known or one.severity == ERROR:
            places.setdefault(f"{_line(one.message)} [{_line(one.rule)}]", []).append(one.line)
    return [
        f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}: {text}"
        for text, lines in places.items()
    ]


def of_records(problem: load.Problem, solution: load.Solution, results: Path) -> str:
    """Say which recorded cells of this very code failed, each reason once."""
    latest: dict[str, Record] = {}
    for path in record.files(results, f"*/{problem.name}/{solution.name}.jsonl"):
        for one in record.read(path)[0]:
            key = f"{one.card} {one.cell.key}"
            if one.solution_digest == solution.digest and one.problem_digest == problem.digest:
                latest[key] = max(one, latest.get(key, one), key=record.recency)
    reasons: dict[str, list[Record]] = {}
    for one in latest.values():
        if one.failed and one.status not in HARMLESS:
            reasons.setdefault(f"{one.status}: {one.failed.reason}", []).append(one)
    if not latest:
        return "This code has not been run."
    if not reasons:
        return f"Nothing: of {len(latest)} recorded cells of this code {_tally(latest.values())}."
    told = [_failure(reason, cells) for reason, cells in list(reasons.items())[:MAX_FAILURES]]
    return "\n".join([*told, *_untold(len(reasons))])


def _tally(cells: Iterable[Record]) -> str:
    counts = Counter(one.status for one in cells)
    others = (f", {count} {status}" for status, count in counts.items() if status is not Status.PASS)
    return f"{counts[Status.PASS]} passed{''.join(others)}"


def _failure(reason: str, cells: list[Record]) -> str:
    first, failed = cells[0].cell, cells[0].failed
    place = f"{first.sweep}/{first.label} {first.arithmetic}{_more(len(cells) - 1)}"
    return "\n".join([f"- {place}: {reason}", *indented(failed.detail if failed else "")])


def _untold(reasons: int) -> list[str]:
    left = reasons - MAX_FAILURES
    return [f"- and {left} other reason{'s' if left > 1 else ''}"] if left > 0 else []


def _more(count: int) -> str:
    return f" and {count} more" if count else ""


def _line(text: str) -> str:
    """Keep a text of a file on one line."""
    return " ".join(text.split())
