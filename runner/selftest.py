"""The selftest's findings, told by a process of the judge's, as a table with pass marks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runner import record
from runner.gpu_lock import DeviceBusy
from runner.judge_process import JudgeDied
from runner.load import ROOT, known_names
from runner.schema import PROTOCOL

PARTS = ("equals", "order", "ratios", "processes", "plans", "edges", "boundary")
#: A card's findings in the folder of its records.
FILE = "selftest.jsonl"
_MARKS = {True: "pass", False: "FAIL", None: ""}
_SHOWN = ("test", "subject", "figure")


def require_parts(parts: Sequence[str]) -> None:
    """Raise BadInput for a part that is none."""
    if parts:
        known_names("part of the selftest", parts, PARTS)


def run(device: str, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield findings (`test`, `subject`, `figure`, `passed`, and what they were found with) as they come.

    `parts` are of PARTS, none for all. Raises BadInput for a part that is none, DeviceBusy and JudgeDied.
    """
    require_parts(parts)
    command = [sys.executable, "-m", "runner.judge.selftest", device, *parts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        try:
            for text in process.stdout:
                finding = json.loads(text)
                if "busy" in finding:
                    raise DeviceBusy(finding["busy"])
                if "unusable" in finding:
                    raise JudgeDied(f"the selftest does not start on {device}: {finding['unusable']}")
                yield finding
        except BaseException:  # nobody waits for a finding any more
            process.kill()
            raise
    if process.returncode:
        raise JudgeDied(f"the selftest ended with code {process.returncode}")


def recorded(results: Path) -> dict[str, list[dict[str, str]]]:
    """Return a table for each card that has findings of this protocol: the latest of each test and subject.

    Lines that are no findings are passed over: a file may be torn, and nothing is decided by it. Raises
    `record.ResultsUnreadable` for a folder that cannot be listed.
    """
    tables = {}
    for path in record.files(results, f"*/{FILE}"):
        latest: dict[tuple[str, str], dict[str, str]] = {}
        for finding in filter(_is_finding, map(_parsed, path.read_text(errors="replace").splitlines())):
            shown = {name: str(finding[name]) for name in _SHOWN}
            shown |= {"": _MARKS[finding["passed"]], "date": str(finding.get("time_utc", ""))[:10]}
            latest[shown["test"], shown["subject"]] = shown
        if latest:
            title = f"what these numbers are worth on {path.parent.name}, protocol {PROTOCOL}"
            tables[title] = list(latest.values())
    return tables


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _is_finding(line: Any) -> bool:
    return (
        isinstance(line, dict)
        and line.get("protocol") == PROTOCOL
        and all(isinstance(line.get(name), str) for name in _SHOWN)
        and "passed" in line
        and line["passed"] in (True, False, None)
    )


def line(finding: dict[str, Any]) -> str:
    """Tell one finding."""
    return f"{finding['test']} {finding['subject']}: {finding['figure']} {_MARKS[finding['passed']]}".rstrip()


def table(findings: Sequence[dict[str, Any]], fmt: str) -> str:
    """Show all of them."""
    if fmt == "json":
        return json.dumps(findings, indent=1)
    from tabulate import tabulate  # noqa: PLC0415 - only where a table is drawn

    rows = [{name: one[name] for name in _SHOWN} | {"": _MARKS[one["passed"]]} for one in findings]
    text: str = tabulate(rows, headers="keys")
    return text
