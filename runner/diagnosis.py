"""One thing that `doctor` looked at: how it is, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: As it should be; worth knowing; changes what can be measured on the device at hand.
OK, NOTE, MEND = "ok", "note", "mend"


@dataclass(frozen=True)
class Diagnosis:
    """A subject, its state, what was found in a few words, and the remedy where one is known."""

    subject: str
    state: str
    finding: str
    remedy: str = ""


def lines(found: Sequence[Diagnosis]) -> list[str]:
    """Show each diagnosis on a line of its own, and a remedy on the one below it."""
    width = max(len(one.subject) for one in found)
    told = []
    for one in found:
        told.append(f"{one.state:4}  {one.subject:{width}}  {one.finding}")
        if one.remedy:
            told.append(f"{'':{width + 8}}-> {one.remedy}")
    return told
