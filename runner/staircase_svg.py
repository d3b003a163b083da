"""Staircases -> a picture: time against programs, and where a wave ends on the card and on the target.

One SVG file without scripts, fonts or links, which follows the light or dark scheme of whoever shows it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from runner.plan import TARGET_CARD
from runner.staircase import LOSES, Staircase, Step, sizes, title

COLUMNS, PANEL_WIDTH, PANEL_HEIGHT, HEAD, LINE = 3, 330, 220, 64, 30
#: The plot within its panel.
LEFT, RIGHT, TOP, BOTTOM = 56, PANEL_WIDTH - 18, 46, PANEL_HEIGHT - 46
#: Labels of an axis that are closer than this would run into each other.
LABEL, MAX_EDGES = 32, 12
STYLE = """
svg { --paper: #fdfdfc; --ink: #1b1f24; --soft: #59616b; --line: #d9dcd8; --card: #0072b2; --target: #b84a00 }
@media (prefers-color-scheme: dark) {
svg { --paper: #14171b; --ink: #e7e9ec; --soft: #a3abb5; --line: #363c44; --card: #5bb4ea; --target: #f2994a }
}
text { fill: var(--soft); font: 11.5px system-ui, sans-serif }
.paper { fill: var(--paper) }
.strong { fill: var(--ink); font-weight: 600 }
.axis { stroke: var(--line) }
.time { fill: none; stroke: var(--ink); stroke-width: 1.5 }
.step { fill: var(--paper); stroke: var(--ink); stroke-width: 1.5 }
.step.loses { fill: var(--ink) }
.edge.card { stroke: var(--card) }
.edge.target { stroke: var(--target); stroke-dasharray: 9 4 }
.edge.wave { stroke-width: 2.5 }
text.card { fill: var(--card) }
text.target { fill: var(--target) }
"""

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Edge:
    """After so many programs a wave is full, or every SM has as many as the others; `owner` is whose."""

    programs: int
    kind: str
    owner: str
    sms: int


def draw(staircases: Sequence[Staircase]) -> str:
    """Draw at least one staircase: a panel each, under a heading for each card, solution and arithmetic."""
    groups = [(name, list(members)) for name, members in itertools.groupby(staircases, key=title)]
    heights = [LINE + PANEL_HEIGHT * math.ceil(len(members) / COLUMNS) for _, members in groups]
    width, height = COLUMNS * PANEL_WIDTH, HEAD + sum(heights)
    svg = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {height}"})
    svg.attrib |= {"width": str(width), "height": str(height), "role": "img"}
    svg.attrib |= {"aria-labelledby": "title", "aria-describedby": "about"}
    _add(svg, "title", "Wave staircases: time against programs", id="title")
    _add(svg, "desc", "; ".join(map(_told, staircases)), id="about")
    _add(svg, "style", STYLE)
    _add(svg, "rect", width="100%", height="100%", class_="paper")
    _legend(svg)
    for (name, members), top in zip(groups, itertools.accumulate(heights, initial=HEAD), strict=False):
        _add(svg, "text", name, x=16, y=top + 20, class_="strong")
        for number, stairs in enumerate(members):
            x, y = number % COLUMNS * PANEL_WIDTH, top + LINE + number // COLUMNS * PANEL_HEIGHT
            _panel(_add(svg, "g", transform=f"translate({x} {y})"), stairs)
    indent(svg)
    return tostring(svg, encoding="unicode")


def _add(parent: Element, name: str, text: str = "", **attributes: Any) -> Element:
    """Append an element; what is invisible in a text is replaced, since XML has no words for some of it."""
    words = {key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items()}
    made = SubElement(parent, name, words)
    made.text = "".join(char if char.isprintable() or char == "\n" else "?" for char in text) or None
    return made


def _told(stairs: Staircase) -> str:
    """Tell a panel in words: `gather_gemm on ..., 64x64@1w: under 127 programs 100.0 us, ...`."""
    steps = ", ".join(map(_step_told, stairs.steps))
    return f"{title(stairs)}, {stairs.name}: {steps}"


def _step_told(step: Step) -> str:
    return f"{step.role.name} {step.filled.programs} programs {step.time_us.value:.1f} us"


def _legend(svg: Element) -> None:
    said = [
        ("wave card", "a wave of the timed card is full"),
        ("wave target", f"a wave of the {TARGET_CARD} is full"),
        ("SM card", "thin: all SMs have equally many programs"),
    ]
    for number, (kind, text) in enumerate(said):
        x = 16 + number * PANEL_WIDTH
        _add(svg, "line", x1=x, x2=x + 28, y1=20, y2=20, class_=f"edge {kind}")
        _add(svg, "text", text, x=x + 34, y=24)
    wave = "a wave is as many programs as run at once: SMs x programs per SM"
    _add(svg, "text", f"{wave}; filled circle: past an edge of the card this step loses time", x=16, y=46)


def edges(stairs: Staircase) -> Iterator[Edge]:
    """Yield the edges of the card and of the target among the programs of the steps, those of waves first."""
    programs = [step.filled.programs for step in stairs.steps]
    per_sm = stairs.steps[0].filled.programs_per_sm
    for kind, factor in (("wave", per_sm), ("SM", 1)):
        for owner, sms in zip(("card", "target"), sizes(stairs), strict=False):
            unit = sms * factor
            counts = range(-(-min(programs) // unit), max(programs) // unit + 1)
            # more of them are a pattern and no marks
            for count in counts if len(counts) <= MAX_EDGES else ():
                if kind == "wave" or count % per_sm:
                    yield Edge(count * unit, kind, owner, sms)


def _panel(panel: Element, stairs: Staircase) -> None:
    programs = [step.filled.programs for step in stairs.steps]
    margin = max(1.0, 0.06 * (max(programs) - min(programs)))
    x = _scale((min(programs) - margin, max(programs) + margin), (LEFT, RIGHT))
    highest = 1.1 * max(step.time_us.high for step in stairs.steps)
    y = _scale((0, highest), (BOTTOM, TOP))
    _add(panel, "text", f"{stairs.name}, {stairs.steps[0].filled.programs_per_sm} per SM", x=LEFT, y=14)
    _axes(panel, programs, x, highest, y)
    for edge in edges(stairs):
        at, kinds = x(edge.programs), f"edge {edge.kind} {edge.owner}"
        _add(panel, "line", x1=at, x2=at, y1=TOP, y2=BOTTOM, class_=kinds)
        if edge.kind == "wave":
            above = TOP - (18 if edge.owner == "card" else 4)
            _add(panel, "text", f"{edge.sms} SMs", x=at, y=above, text_anchor="middle", class_=edge.owner)
    path = " ".join(f"{x(step.filled.programs):.1f},{y(step.time_us.value):.1f}" for step in stairs.steps)
    _add(panel, "polyline", points=path, class_="time")
    for step in stairs.steps:
        _mark(panel, stairs, step, x(step.filled.programs), y)


def _mark(panel: Element, stairs: Staircase, step: Step, x: float, y: Scale) -> None:
    """Draw a step with the interval of its time, and say more where a pointer rests on it."""
    time_us, verdict = step.time_us, stairs.verdict(step)
    _add(panel, "line", x1=x, x2=x, y1=y(time_us.low), y2=y(time_us.high), class_="time")
    loses = " loses" if verdict == LOSES else ""
    mark = _add(panel, "circle", cx=x, cy=y(time_us.value), r=4, class_=f"step{loses}")
    waves = ", ".join(f"{step.waves(sms):.2f} waves of {sms} SMs" for sms in sizes(stairs))
    _add(mark, "title", "; ".join(part for part in (_step_told(step), waves, verdict) if part))


def _axes(panel: Element, programs: Sequence[int], x: Scale, highest: float, y: Scale) -> None:
    for value in _ticks(highest):
        _add(panel, "line", x1=LEFT, x2=RIGHT, y1=y(value), y2=y(value), class_="axis")
        _add(panel, "text", f"{value:g}", x=LEFT - 6, y=y(value) + 4, text_anchor="end")
    _add(panel, "text", "time, \N{MICRO SIGN}s", x=8, y=TOP - 12)
    free = -math.inf
    for count in sorted(set(programs)):
        if x(count) >= free:
            _add(panel, "text", str(count), x=x(count), y=BOTTOM + 16, text_anchor="middle")
            free = x(count) + LABEL
    _add(panel, "text", "programs", x=(LEFT + RIGHT) / 2, y=BOTTOM + 32, text_anchor="middle")


def _scale(values: tuple[float, float], pixels: tuple[float, float]) -> Scale:
    (low, high), (start, end) = values, pixels
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _ticks(highest: float) -> list[float]:
    """Return multiples of 1, 2 or 5 of a decade from 0: at least two, at most five of them above it."""
    decade = 10.0 ** math.floor(math.log10(highest))
    step = next(one for one in (decade / 5, decade / 2, decade, 2 * decade) if highest / one < 6)
    return [step * count for count in range(int(highest / step) + 1)]
