"""Records of the sweep `waves` -> time against tiles: what a solution loses past the edge of a wave.

A step is a shape. All steps of one stairs have nearly the same work per tile, so a kernel whose time follows
its work takes as long for a unit of it past an edge as before. The *penalty* of a step is its time over
that of the step `full`, divided by the same ratio of their work: 1 loses nothing.

Edges are of two kinds, as the two efficiencies of `runner.waves` are: past a *wave* some program waits for
another to end, past an *SM* some SM has one program more than before. They lie elsewhere on another card;
those of the target stand beside those of the card that was timed, with the programs per SM of the latter.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import cards, load, record
from runner.analyse import RESOLUTION, interval_us, median, times_us
from runner.plan import TARGET_CARD
from runner.report import ABSENT, Line, figures, render, to_csv, wave_columns
from runner.schema import PROTOCOL, TARGET, Record, digest, to_json
from runner.waves import Occupancy, Role, largest, role

SWEEP = "waves"
#: A penalty may lie this far above 1 before it counts as a loss: what also counts as SAME for times.
MARGIN = 2 * TARGET
#: Verdicts on a step that passes an edge of the card.
LOSES, KEEPS, HIDDEN, UNCLEAR = "loses", "loses nothing", "launch-bound", "unresolved"


@dataclass(frozen=True)
class Spread:
    """A figure with its interval of about 95 %."""

    value: float
    low: float
    high: float

    def __truediv__(self, other: Spread) -> Spread:
        """Divide figures of different runs, which share no rounds: bounds at their worst."""
        return Spread(self.value / other.value, self.low / other.high, self.high / other.low)

    def scaled(self, factor: float) -> Spread:
        """Return the figure in another unit."""
        return Spread(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Step:
    """One shape: `tiles` of the canonical size, `filled` by the kernel's own, `flops` of work."""

    role: Role
    tiles: int | None
    filled: Occupancy
    flops: int
    time_us: Spread
    launch_bound: bool

    def waves(self, sms: int) -> float:
        """Return the waves on a card of `sms` SMs that runs as many programs on each."""
        return self.filled.programs / (sms * self.filled.programs_per_sm)

    def rounds(self, sms: int) -> dict[str, int]:
        """Return the waves that are begun on a card of `sms` SMs, and the programs of its fullest SM."""
        wave, programs = sms * self.filled.programs_per_sm, self.filled.programs
        return {"wave": -(-programs // wave), "SM": -(-programs // sms)}


@dataclass(frozen=True)
class Staircase:
    """The steps of one solution around one edge, at least one, in the order of their work."""

    card: str
    problem: str
    solution: str
    arithmetic: str
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """The canonical tile and its edge: `64x64@4w`."""
        return self.steps[0].role.stairs

    @property
    def sms(self) -> int:
        """The SMs of the card that was timed."""
        return self.steps[0].filled.sms or 0

    @property
    def full(self) -> Step | None:
        """The step that the others are held against; None where it was not timed."""
        return next((step for step in self.steps if step.role.name == "full"), None)

    def penalty(self, step: Step) -> Spread | None:
        """Return the time per work of a step in units of that of `full`."""
        full = self.full
        return (step.time_us / full.time_us).scaled(full.flops / step.flops) if full else None

    def edges(self, step: Step, sms: int) -> list[str]:
        """Name the kinds of edges that a card of `sms` SMs has between `full` and a step with more work."""
        if self.full is None or step.flops <= self.full.flops:
            return []
        before, after = self.full.rounds(sms), step.rounds(sms)
        return [kind for kind in before if after[kind] > before[kind]]

    def verdict(self, step: Step) -> str:
        """Say what a step past an edge of the card loses; empty where it passes none."""
        penalty = self.penalty(step)
        if penalty is None or self.full is None or not self.edges(step, self.sms):
            return ""
        if step.launch_bound or self.full.launch_bound:
            return HIDDEN
        if penalty.low > 1 + MARGIN:
            return LOSES
        return KEEPS if penalty.high <= 1 + MARGIN else UNCLEAR


def read(results: Path, problem: load.Problem, solutions: Sequence[load.Solution]) -> list[Staircase]:
    """Return the staircases that `results` holds of these texts, by card, solution and arithmetic.

    Only the sweep as it is placed for the target counts, and of each cell the newest record. Lines that
    are no records are left to `leaderboard.read` to report.
    """
    sweep = problem.sweeps(cards.load_card(TARGET_CARD).sms).get(SWEEP, {})
    labels, texts = list(sweep), {(one.name, one.digest) for one in solutions}
    found = [
        one
        for path in record.files(results, f"*/{problem.name}/*.jsonl")
        for one in record.read(path)[0]
        if one.cell.sweep == SWEEP
        and one.cell.label in labels
        and digest(one.cell.shape) == digest(sweep[one.cell.label])
        and (one.problem_digest, one.protocol) == (problem.digest, PROTOCOL)
        and (one.solution, one.solution_digest) in texts
    ]
    newest = {
        (one.card, one.solution, one.cell.arithmetic, labels.index(one.cell.label)): one
        for one in sorted(found, key=record.recency)
    }
    groups: dict[tuple[str, str, str, str], list[Step]] = {}
    for (card, solution, arithmetic, _), one in sorted(newest.items(), key=lambda item: item[0]):
        if step := _step(one, problem):
            groups.setdefault((card, solution, arithmetic, step.role.stairs), []).append(step)
    return [
        Staircase(card, problem.name, solution, arithmetic, tuple(sorted(steps, key=lambda one: one.flops)))
        for (card, solution, arithmetic, _), steps in groups.items()
    ]


def _step(one: Record, problem: load.Problem) -> Step | None:
    """Read a record; None where it was not timed, or does not know its work or its launches."""
    known, filled = role(one.cell.label), largest(one.waves)
    time_us, flops = _time_us(one), one.roofline.get("flops")
    if not (known and filled and time_us and type(flops) is int and 0 < flops < 2**63):
        return None
    outline, shape = problem.outline, problem.shape(one.cell.shape)
    tiles = outline.tiles(shape, known.block_m, known.block_n) if hasattr(outline, "tiles") else None
    # a gate keeps launching out of the times; what cannot stand behind one has it in them
    host = "launch_bound" in one.flags and any("syncs" in flag for flag in one.flags)
    return Step(known, tiles, filled, flops, time_us, launch_bound=host)


def _time_us(one: Record) -> Spread | None:
    """Return the solution's time with its interval, no narrower than that of a comparison."""
    found = times_us(one.timed, "solution") if one.timed else []
    if one.timed is None or not found or min(found) <= 0:
        return None
    centre, (low, high) = median(found), interval_us(one.timed, "solution")
    reach = math.exp(RESOLUTION)
    return Spread(centre, min(low, centre / reach), max(high, centre * reach))


def show(staircases: Sequence[Staircase], fmt: str) -> str:
    """Show staircases as a table for each card, solution and arithmetic; `json` and `csv` a row per step."""
    if fmt in ("json", "csv"):
        rows = [_row(stairs, step) for stairs in staircases for step in stairs.steps]
        return json.dumps(rows, indent=1) if fmt == "json" else to_csv(rows)
    heading = "### " if fmt == "github" else ""
    parts = []
    for name, group in itertools.groupby(staircases, key=title):
        members = list(group)
        lines = [_line(stairs, step) for stairs in members for step in stairs.steps]
        parts += [f"{heading}{name}", render(lines, fmt), _summary(members)]
    return "\n\n".join(parts)


def _row(stairs: Staircase, step: Step) -> dict[str, Any]:
    penalty = stairs.penalty(step)
    return {
        "card": stairs.card,
        "problem": stairs.problem,
        "solution": stairs.solution,
        "arithmetic": stairs.arithmetic,
        "stairs": stairs.name,
        "role": step.role.name,
        "tiles": step.tiles,
        **to_json(step.filled),
        "flops": step.flops,
        "time_us": to_json(step.time_us),
        "launch_bound": step.launch_bound,
        "waves_at": {str(sms): step.waves(sms) for sms in sizes(stairs)},
        "past": {str(sms): stairs.edges(step, sms) for sms in sizes(stairs)},
        "penalty": to_json(penalty) if penalty else None,
        "verdict": stairs.verdict(step),
    }


def _line(stairs: Staircase, step: Step) -> Line:
    penalty = stairs.penalty(step)
    past = {sms: stairs.edges(step, sms) for sms in sizes(stairs)}
    return {
        "stairs": stairs.name,
        "role": step.role.name,
        "tiles": ABSENT if step.tiles is None else str(step.tiles),
        **{name: text for name, text in wave_columns(step.filled).items() if name in ("grid", "per SM")},
        **{f"waves at {sms}": f"{step.waves(sms):.2f}" for sms in past},
        "past": ", ".join(f"{kind} of {sms}" for sms, kinds in past.items() for kind in kinds) or ABSENT,
        "time_us": f"{step.time_us.value:.2f}",
        "penalty": _interval(penalty) if penalty else ABSENT,
        "verdict": stairs.verdict(step) or ABSENT,
    }


def title(stairs: Staircase) -> str:
    """Name what a table or a row of panels is about."""
    return f"{stairs.solution} on {stairs.problem}, {stairs.card}, {stairs.arithmetic}"


def sizes(stairs: Staircase) -> Sequence[int]:
    """Return the SMs of the card and of the target, once where they are the same."""
    return list(dict.fromkeys((stairs.sms, cards.load_card(TARGET_CARD).sms)))


def _summary(staircases: Sequence[Staircase]) -> str:
    """Say whether a solution loses time past the edges of the card that it was timed on."""
    told = [
        (verdict, stairs, step)
        for stairs in staircases
        for step in stairs.steps
        if (verdict := stairs.verdict(step))
    ]
    sms = staircases[0].sms
    if not told:
        return f"no step passes an edge of {sms} SMs"
    counts = Counter(verdict for verdict, _, _ in told)
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    losses = [(stairs.penalty(step), stairs, step) for verdict, stairs, step in told if verdict == LOSES]
    costs = [(cost, f"{stairs.name}-{step.role.name}") for cost, stairs, step in losses if cost]
    worst = max(costs, key=lambda entry: entry[0].value, default=None)
    most = f"; at most {_interval(worst[0])} times as long for its work, at {worst[1]}" if worst else ""
    return f"steps past an edge of {sms} SMs: {said}{most}"


def _interval(spread: Spread) -> str:
    return f"{figures(spread.value)} [{figures(spread.low)}, {figures(spread.high)}]"
