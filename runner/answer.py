"""A model's reply -> its code, what the output rules say of it, and the judge's records as feedback."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from runner import lint
from runner.output_rules import CHECKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.schema import Record

#: A fence opens or closes a block when it stands alone on its line.
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*")


def judge(reply: str) -> dict[str, Any]:
    """Hold the last fenced block of a reply against the output rules and lint.

    Returns `refused`, and `findings` with line (within the block), rule, severity and message; one error
    among them refuses. Nothing is run, so a reply that is not refused may still be wrong.
    """
    source = last_block(reply)
    if source is None:
        finding = lint.Finding(1, "no-block", lint.ERROR, "no fenced block, or the last one is not closed")
        findings: tuple[lint.Finding, ...] = (finding,)
    else:
        findings = lint.lint(source, CHECKS)
    refused = any(one.severity == lint.ERROR for one in findings)
    return {"refused": refused, "findings": [asdict(one) for one in findings]}


def feedback(records: Sequence[Record]) -> dict[str, Any]:
    """Tell in plain JSON how many cells passed, and of the others each cell, shape, status and reason."""
    failures = [
        {
            "cell": f"{one.cell.sweep}/{one.cell.label} {one.cell.arithmetic}",
            "shape": one.cell.shape,
            "status": one.status,
            "reason": one.failed.reason,
        }
        for one in records
        if one.failed
    ]
    return {"cells": len(records), "passed": len(records) - len(failures), "failures": failures}


def last_block(reply: str) -> str | None:
    """Return the text of the last fenced block; None without one, and where it is cut off."""
    block: str | None = None
    lines: list[str] = []
    fence = ""
    for line in reply.split("\n"):
        mark = FENCE.fullmatch(line)
        if fence and mark and mark[1].startswith(fence) and not mark[2]:
            block, fence = "".join(f"{each}\n" for each in lines), ""
        elif fence:
            lines.append(line)
        elif mark:
            fence, lines = mark[1], []
    return None if fence else block
