"""Texts that nobody vouches for -> pieces of HTML: tables that can be sorted, sources, differences."""

from __future__ import annotations

import difflib
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.report import ABSENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Elements for the lines of a difference; their signs stay, so that colour is not needed.
MARKED = {"+": "ins", "-": "del", "@": "b"}


@dataclass(frozen=True)
class Field:
    """A field of a table: its HTML, and what it is sorted by; without a value it stays last."""

    html: str
    value: float | str | None = None

    @classmethod
    def of(cls, text: str) -> Field:
        """Show a text and sort by it."""
        return cls(safe(text), None if text == ABSENT else text)


#: One line of a table: column -> field.
Line = dict[str, Field]


def safe(text: str) -> str:
    """Escape a text; what is invisible or turns the direction of writing is spelled out."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in text))


def table(caption: str, lines: Sequence[Line], header: str, sorted_by: str = "") -> str:
    """Draw at least one line; `header` names the column that says what its line is about."""
    columns = "".join(
        f'<th scope="col" aria-sort="{"ascending" if name == sorted_by else "none"}">'
        f'<button type="button">{safe(name)}</button></th>'
        for name in lines[0]
    )
    rows = "\n".join(f"<tr>{''.join(_cell(*each, header) for each in line.items())}</tr>" for line in lines)
    # a region that scrolls sideways must be within reach of the keyboard
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{safe(caption)}">\n<table>'
        f"<caption>{safe(caption)}</caption>\n<thead><tr>{columns}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def _cell(column: str, field: Field, header: str) -> str:
    value = "" if field.value is None else f' data-value="{safe(str(field.value))}"'
    if column == header:
        return f'<th scope="row"{value}>{field.html}</th>'
    return f"<td{value}>{field.html}</td>"


def details(summary: str, aside: str, content: str, *, opened: bool = False) -> str:
    """Fold HTML away under two texts, the second of them beside the point."""
    label = f'{safe(summary)} <span class="soft">{safe(aside)}</span>'
    return f"<details{' open' if opened else ''}>\n<summary>{label}</summary>\n{content}\n</details>"


def source(text: str, anchor: str) -> str:
    """Show a source; a link to its `anchor` also unfolds what it stands in."""
    return f'<pre id="{anchor}" tabindex="0"><code>{safe(text)}</code></pre>'


def difference(first: str, second: str, names: tuple[str, str]) -> str:
    """Show what turns one source into another, or that nothing does; `names` stand for the two file names."""
    lines = list(difflib.unified_diff(first.splitlines(), second.splitlines(), lineterm=""))[2:]
    counts = {sign: sum(line.startswith(sign) for line in lines) for sign in "+-"}
    marked = "".join(map(_marked, lines)) or "no difference\n"
    aside = f"+{counts['+']} −{counts['-']} lines"  # noqa: RUF001 - a minus, as wide as the plus
    return details(f"{names[0]} → {names[1]}", aside, f'<pre tabindex="0"><code>{marked}</code></pre>')


def _marked(line: str) -> str:
    element = MARKED.get(line[0])
    return f"<{element}>{safe(line)}</{element}>" if element else f"{safe(line)}\n"


def joined(parts: Iterable[str]) -> str:
    """Join pieces that are there, a line each."""
    return "\n".join(part for part in parts if part)
