"""The selftest's findings, told by a process of the judge's, as a table with pass marks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from runner.gpu_lock import DeviceBusy
from runner.judge_process import JudgeDied
from runner.load import ROOT, unknown

PARTS = ("equals", "order", "ratios", "processes", "plans", "edges", "boundary")
_MARKS = {True: "pass", False: "FAIL", None: ""}


def run(device: str, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield findings (`test`, `subject`, `figure`, `passed`) as they come.

    Raises BadInput for a part that is none, DeviceBusy and JudgeDied.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown("part of the selftest", part, PARTS)
    command = [sys.executable, "-m", "runner.judge.selftest", device, *parts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        for text in process.stdout:
            finding = json.loads(text)
            if "busy" in finding:
                raise DeviceBusy(finding["busy"])
            yield finding
    if process.returncode:
        raise JudgeDied(f"the selftest ended with code {process.returncode}")


def line(finding: dict[str, Any]) -> str:
    """Tell one finding."""
    return f"{finding['test']} {finding['subject']}: {finding['figure']} {_MARKS[finding['passed']]}".rstrip()


def table(findings: Sequence[dict[str, Any]], fmt: str) -> str:
    """Show all of them."""
    if fmt == "json":
        return json.dumps(findings, indent=1)
    from tabulate import tabulate  # noqa: PLC0415 - only where a table is drawn

    rows = [{**one, "passed": _MARKS[one["passed"]]} for one in findings]
    text: str = tabulate(rows, headers="keys")
    return text
