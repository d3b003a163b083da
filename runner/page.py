"""Boards -> one HTML file that loads nothing: tables, charts, sources and what differs between them.

Tables, sources and differences are text in the file; `page.js` draws the charts from the JSON beside them.
What records and sources say is escaped, and the page's policy runs no script but the one whose digest it
names.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from runner import cards, files, flags, load, page_data, standings, summary
from runner.leaderboard import Board, Entry, geometric_mean, is_faster
from runner.lint import read_header
from runner.page_html import Field, Line, details, difference, joined, safe, source, table
from runner.report import ABSENT, figures

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runner.page_data import Facts, Newest
    from runner.schema import Record

HERE = Path(__file__).parent
#: Problem -> name -> solution that is on a board and not stale, both sorted.
Sources = dict[str, dict[str, load.Solution]]

#: A verdict is a sign and a word, never a colour alone.
VERDICTS = {"FASTER": "▲ faster", "SAME": "= same", "SLOWER": "▼ slower", "UNRESOLVED": "? unresolved"}
ABOUT = {
    "speedup": "Above 1 is faster than the baseline; the axis is logarithmic. Lines are intervals, dashed "
    "where the cell is launch-bound. Filled markers are faster beyond doubt.",
    "roofline": "Each cell under what the card allows, counting only work and traffic that every algorithm "
    "needs; dotted lines are shares of the bound. Hollow markers are launch-bound.",
    "waves": "Times in microseconds over grids at the edge of a wave: below each step the programs of its "
    "largest grid, and how many waves (w) they are. A line stands where another wave begins, a dotted one "
    "where some SM gets one program more; long dashes are where either would be on the target card.",
}


def write(folder: Path, boards: Sequence[Board], records: Iterable[Record], root: Path = load.ROOT) -> Path:
    """Write `folder`/index.html of boards and the records that they rank; return its path.

    Raises BadInput for a folder that cannot be written, and `files.DiskFull`.
    """
    path = folder / "index.html"
    files.write(path, render(boards, page_data.newest(records), root))
    return path


def render(boards: Sequence[Board], records: Newest, root: Path = load.ROOT) -> str:
    """Return the page; the same boards, records and files give the same text."""
    sources = _sources(boards, root)
    data = [_data(board, records, sources, root) for board in boards]
    style, script = _asset("page.css"), _asset("page.js")
    return Template(_asset("page.html")).substitute(
        style=style,
        style_digest=_policy_digest(style),
        script=script,
        script_digest=_policy_digest(script),
        contents=joined(itertools.starmap(_link, enumerate(boards))) or "<li>no records</li>",
        means=_means(boards),
        boards=joined(_section(index, board, data[index], sources) for index, board in enumerate(boards)),
        sources=joined(_solutions(problem, sources) for problem in sources),
        newest=safe(max((entry.date for board in boards for _, entry in board.ranked), default=ABSENT)),
        # the data must not end the script element that it stands in
        data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    )


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _policy_digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _sources(boards: Iterable[Board], root: Path) -> Sources:
    found: Sources = {}
    for board in boards:
        known = found.setdefault(board.problem, {})
        for name in (entry.solution for _, entry in board.ranked if not entry.stale):
            known[name] = load.find_solution(name, board.problem, root)
    return {problem: dict(sorted(known.items())) for problem, known in sorted(found.items()) if known}


def _data(board: Board, records: Newest, sources: Sources, root: Path) -> Facts:
    series = {name: number for number, name in enumerate(sources.get(board.problem, ()))}
    return page_data.board_facts(board, records, series, root)


def _anchor(sources: Sources, problem: str, solution: str) -> str:
    return f"source-{list(sources).index(problem)}-{list(sources[problem]).index(solution)}"


def _card(board: Board) -> str:
    card = cards.find_card(board.card)
    if card is None:
        return board.card
    return card.title if board.card == card.name else f"{card.sms} SMs of {card.title}"


def _leader(board: Board) -> str:
    """Say who is first, and who would be had it run everywhere; without a rank, who came furthest."""
    place, first = board.ranked[0]
    if not place:
        return "nobody is ranked" if first.stale else f"unranked: {_so_far(board, first)}"
    faster = [e for rank, e in board.ranked if not rank and not e.stale and is_faster(e, first)]
    ahead = "".join(f"; unranked and faster: {_so_far(board, one)}" for one in faster[:1])
    return f"first: {first.solution}, {_mean(first)}{ahead}"


def _so_far(board: Board, entry: Entry) -> str:
    cells = entry.compared | entry.launch_bound
    mean = f"{figures(geometric_mean(cells.values()).speedup)} on " if cells else ""
    return f"{entry.solution}, {mean}{len(cells)} of {board.cells} cells"


def _link(index: int, board: Board) -> str:
    """Link to a board, with its leader."""
    head = f"<strong>{safe(board.problem)}, {safe(board.arithmetic)}</strong>"
    where = f'<span class="soft">{safe(_card(board))}, protocol {board.protocol}</span>'
    return f'<li><a href="#board-{index}">{head}<span>{safe(_leader(board))}</span>{where}</a></li>'


def _means(boards: Sequence[Board]) -> str:
    """Show the geometric mean of each sweep, in a table for each card and arithmetic."""
    rows = summary.rows(boards)
    sweeps = dict.fromkeys(row["sweep"] for row in rows)
    tables: dict[str, dict[tuple[str, str], Line]] = {}
    for row in rows:
        names = {name: Field.of(row[name]) for name in ("problem", "solution")}
        line = names | dict.fromkeys(sweeps, Field(ABSENT))
        line = tables.setdefault(summary.title(row), {}).setdefault((row["problem"], row["solution"]), line)
        line[row["sweep"]] = Field(safe(summary.figure(row)), row["speedup"])
    return joined(
        details(
            f"Means {title}", f"{len(lines)} lines", table(f"Means {title}", [*lines.values()], "solution")
        )
        for title, lines in tables.items()
    )


def _section(index: int, board: Board, data: Facts, sources: Sources) -> str:
    title = f"{board.problem} on {board.card}, protocol {board.protocol}, {board.arithmetic}"
    facts, listed = json.loads(standings.show([board], "json")), board.listed
    lines = [
        _line(place, entry, row, "" if entry.stale else _anchor(sources, board.problem, entry.solution))
        for (place, entry), row in zip(board.ranked, facts, strict=True)
        if (place, entry) in listed
    ]
    caption = f"Ranked ones first, then by cells; {board.cells} cells, {_card(board)}"
    heading = f'<h2 id="board-{index}">{safe(title)}</h2>'
    gaps = (_gaps(entry) for _, entry in board.ranked)
    body = [table(caption, lines, "solution", "rank"), _flags(board), *gaps]
    charts = _charts(index, data) if data["solutions"] else []
    return joined([f'<section aria-labelledby="board-{index}">', heading, *body, *charts, "</section>"])


def _line(place: int | None, entry: Entry, facts: Facts, anchor: str) -> Line:
    """Return the line that `leaderboard` prints; `facts` is its row of `--format json`."""
    passed, apart = facts["compared"] + facts["launch_bound"], entry.launch_bound.values()
    mean_apart = f"{len(apart)} at {figures(geometric_mean(apart).speedup)}" if apart else "0"
    name, share, worst = safe(entry.solution), facts["share_of_bound"], entry.compared.get(facts["worst"])
    slowest = (
        Field(f"{figures(worst.speedup)} {safe(facts['worst'])}", worst.speedup) if worst else Field(ABSENT)
    )
    tail = entry.worst_tail
    return {
        "rank": Field(str(place or ABSENT), place),
        "solution": Field(f'<a href="#{anchor}">{name}</a>' if anchor else name, entry.solution),
        "speedup": Field(safe(_mean(entry)), facts.get("speedup")),
        "cells": Field(str(passed) if entry.stale else f"{passed} of {facts['cells']}", passed),
        "launch-bound": Field(mean_apart, len(apart)),
        "fast_1": Field(f"{facts['fast_1']} of {facts['compared']}", facts["fast_1"]),
        "worst": slowest,
        "bound": _share(share),
        "tail": Field(entry.grids[tail].tail, entry.grids[tail].eta_slot) if tail else Field(ABSENT),
        "flags": Field.of(standings.flags(entry)),
        "author": Field.of(entry.author or ABSENT),
        "date": Field.of(entry.date),
        "digest": Field.of(entry.digest[: standings.DIGEST_CHARS]),
    }


def _mean(entry: Entry) -> str:
    mean = entry.mean
    return _interval(mean.speedup, mean.low, mean.high) if mean else f"unranked: {entry.unranked}"


def _interval(speedup: float, low: float, high: float) -> str:
    return f"{figures(speedup)} [{figures(low)}, {figures(high)}]"


def _share(share: float | None) -> Field:
    return Field(ABSENT if share is None else f"{share:.0%}", share)


def _flags(board: Board) -> str:
    notes = flags.notes(flag for _, entry in board.listed for flag in entry.flags)
    items = joined(f"<li>{safe(note)}</li>" for note in notes)
    return details("What the flags mean", f"{len(notes)} of them", f"<ul>{items}</ul>") if notes else ""


def _gaps(entry: Entry) -> str:
    """Name all cells that keep a solution from its rank."""
    if entry.stale or not entry.gaps:
        return ""
    items = joined(f"<li>{safe(place)}: {safe(reason)}</li>" for place, reason in entry.gaps.items())
    return details(f"{entry.solution} has no rank:", entry.unranked, f"<ul>{items}</ul>")


def _charts(index: int, data: Facts) -> list[str]:
    cells = [(one["name"], cell) for one in data["solutions"] for cell in one["cells"]]
    sweeps = list(dict.fromkeys(cell["sweep"] for _, cell in cells))
    legend = f'<div class="legend" role="group" aria-label="Solutions in charts" data-legend="{index}"></div>'
    parts = [legend, "<h3>Speed-up per shape</h3>", f'<p class="soft">{ABOUT["speedup"]}</p>']
    for sweep in sweeps:
        said = _verdicts((name, cell) for name, cell in cells if cell["sweep"] == sweep)
        parts.append(details(sweep, said, _plot("speedup", index, said, sweep), opened=sweep == sweeps[0]))
    if data["roof"] and any("share_of_bound" in cell for _, cell in cells):
        parts += ["<h3>Roofline</h3>", _figure("roofline", index)]
    if any(cell["sweep"] == "waves" and "waves" in cell for _, cell in cells):
        parts += ["<h3>Wave staircase</h3>", _figure("waves", index)]
    numbers = table("Every cell", [_cell_line(*one) for one in cells], "shape")
    return [*parts, "<h3>Numbers</h3>", details("Every cell", f"{len(cells)} of them", numbers)]


def _verdicts(cells: Iterable[tuple[str, Facts]]) -> str:
    """Count verdicts and gaps per solution: `quick: 3 faster, 1 slower`."""
    counts: dict[str, Counter[str]] = {}
    for name, cell in cells:
        said = cell["verdict"].lower() if "verdict" in cell else cell["reason"]
        counts.setdefault(name, Counter())[said] += 1
    return "; ".join(
        f"{name}: {', '.join(f'{count} {said}' for said, count in sorted(each.items()))}"
        for name, each in counts.items()
    )


def _plot(chart: str, index: int, description: str, sweep: str = "") -> str:
    panels = " panels" if chart == "waves" else ""
    return (
        f'<div class="plot{panels}" data-chart="{chart}" data-board="{index}" data-sweep="{safe(sweep)}" '
        f'data-description="{safe(description)}"></div>'
    )


def _figure(chart: str, index: int) -> str:
    return f"<figure><figcaption>{ABOUT[chart]}</figcaption>{_plot(chart, index, ABOUT[chart])}</figure>"


def _cell_line(solution: str, cell: Facts) -> Line:
    def number(name: str, form: str) -> Field:
        return Field(format(cell[name], form), cell[name]) if name in cell else Field(ABSENT)

    compared = "speedup" in cell
    interval = _interval(cell["speedup"], cell["low"], cell["high"]) if compared else ABSENT
    verdict = VERDICTS[cell["verdict"]] if compared else cell["reason"]
    return {
        "shape": Field.of(cell["shape"]),
        "solution": Field.of(solution),
        "speedup": Field(interval, cell.get("speedup")),
        "verdict": Field.of(f"{verdict}, launch-bound" if cell.get("launch_bound") else verdict),
        "baseline": Field.of(cell.get("baseline", ABSENT)),
        "time_us": number("time_us", ".2f"),
        "bound": _share(cell.get("share_of_bound")),
        "programs": number("programs", ".0f"),
        "per SM": number("programs_per_sm", ".0f"),
        "limited by": Field.of(", ".join(cell.get("limiters", ())) or ABSENT),
        "waves": number("waves", ".2f"),
        "tail": Field(cell.get("tail", ABSENT), cell.get("eta_slot")),
    }


def _solutions(problem: str, sources: Sources) -> str:
    """Show the sources of a problem's solutions, and what differs between each two."""
    known = sources[problem]
    texts = [
        details(name, read_header(one.source).technique, source(one.source, _anchor(sources, problem, name)))
        for name, one in known.items()
    ]
    differences = [
        difference(first.source, second.source, (first.name, second.name))
        for first, second in itertools.combinations(known.values(), 2)
    ]
    heading = f"<h2>Solutions of {safe(problem)}</h2>"
    between = ["<h3>What differs</h3>", *differences] if differences else []
    return joined(["<section>", heading, *texts, *between, "</section>"])
