"""A model's reply -> its code, what the output rules say of it, and the judge's records as feedback."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from runner import lint, output_rules
from runner.failures import Correctness, Failure, Feedback

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.schema import Record

#: A fence opens or closes a block when it stands alone on its line, indented in a list as its block is.
FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*")
#: So much further in than the fence that opens a block, a line is of the block.
INNER = 4

#: What an answer defines, and an example of its use does not.
ANSWER = re.compile(r"^class\s+ModelNew\b", re.MULTILINE)
#: Languages of a block that may be the answer; a command line after it is none.
PYTHON = ("", "python", "python3", "py", "triton")
#: Languages of a block that the whole reply may be wrapped in.
MARKDOWN = ("markdown", "md")
#: How likely a block is the answer that is in Python and defines it.
COMPLETE = 2


def judge(reply: str) -> Feedback:
    """Hold a reply's `last_block` against the output rules and lint.

    Lines of findings are within the block; one error among them refuses. Nothing is run, so a reply that is
    not refused may still be wrong.
    """
    source = last_block(reply)
    if source is None:
        finding = lint.Finding(1, "no-block", lint.ERROR, "no fenced block, or the last one is not closed")
        findings: tuple[lint.Finding, ...] = (finding,)
    else:
        findings = output_rules.findings(source, bind=True)
    refused = any(one.severity == lint.ERROR for one in findings)
    return Feedback(refused, findings, source=source)


def without_launches(records: Sequence[Record], source: str) -> tuple[lint.Finding, ...]:
    """Find that a text was right in a cell without a kernel: a name in `forward` is no launch yet."""
    idle = next((one.cell for one in records if one.checked and not one.checked.launches), None)
    if idle is None:
        return ()
    model = ANSWER.search(source)
    line = source[: model.start()].count("\n") + 1 if model else 1
    message = f"no kernel was launched in {idle.sweep}/{idle.label} {idle.arithmetic}, right as it is"
    return (lint.Finding(line, "calls-kernels", lint.ERROR, message),)


def correctness(records: Sequence[Record]) -> Correctness:
    """Tell how many cells passed, and of the others each cell, shape, status and reason."""
    failures = tuple(
        Failure(
            f"{one.cell.sweep}/{one.cell.label} {one.cell.arithmetic}",
            one.cell.shape,
            one.status,
            one.failed.reason,
            one.failed.detail,
        )
        for one in records
        if one.failed
    )
    return Correctness(len(records), len(records) - len(failures), failures)


def last_block(reply: str) -> str | None:
    """Return the text of the last fenced block that defines `ModelNew`, else in Python, else of any language.

    None without one, and where the reply is cut off in one, unless the answer stands complete before. A reply
    that is wrapped in a block of Markdown as a whole is taken out of it.
    """
    blocks: list[tuple[int, str]] = []  # how likely it is the answer
    lines: list[str] = []
    fence, language, indent = "", "", 0
    for line in reply.split("\n"):
        mark = FENCE.fullmatch(line)
        inner = mark is not None and len(mark[1]) >= indent + INNER
        if fence and mark and mark[2].startswith(fence) and not mark[3] and not inner:
            text = "".join(f"{each}\n" for each in lines)
            if language in MARKDOWN and (inner_block := last_block(text)) is not None:
                text, language = inner_block, "python"
            is_python = language in PYTHON
            blocks.append((is_python + (is_python and bool(ANSWER.search(text))), text))
            fence = ""
        elif fence:
            lines.append(line[min(indent, len(line) - len(line.lstrip())) :])
        elif mark:
            fence, language, lines, indent = mark[2], _language(mark[3]), [], len(mark[1])
    if not blocks:
        return None
    likely, answer = max(reversed(blocks), key=lambda block: block[0])
    return None if fence and (likely < COMPLETE or ANSWER.search("\n".join(lines))) else answer


def _language(info: str) -> str:
    """Return the language that `python:solution.py`, `{.python}` or `python,linenos` name."""
    return re.split(r"[:,]", info.strip("{}.").lower())[0]
