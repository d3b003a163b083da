"""Two solutions in the same rounds: one verdict a shape, with the samples behind it; nothing is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from runner.decode import decode
from runner.judge_process import Judge, JudgeDied
from runner.load import Solution
from runner.pipeline import refusal, require_sms
from runner.plan import Job, Request
from runner.schema import PROTOCOL, Cell, Failed, Timed, to_json
from runner.weigh import card_of

RIVAL = "rival"
#: What a comparison says of where it was made.
_VERSIONS = ("gpu", "driver", "cuda", "cudnn", "torch", "triton")


@dataclass(frozen=True)
class Duel:
    """What became of one cell. Without `timed` both were only checked, or `failed` says why not.

    `facts` say who was compared, when and on what.
    """

    cell: Cell
    failed: Failed | None
    timed: Timed | None
    flags: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def compare(request: Request, other: Solution, watch: Callable[[Cell], None]) -> Iterator[Duel]:
    """Yield a duel of the request's first solution with `other` for each of its cells.

    `watch` is told of a cell before it runs. Raises JudgeDied, also where it lost its GPU, and BadInput for
    more SMs than there are.
    """
    mine, *_ = request.solutions
    judge = Judge(request.device)
    try:
        require_sms(int(request.limits.get("sms", 0)), judge.environment)
        facts = _facts(request, mine, other, judge.environment)
        for cell in request.cells:
            watch(cell)
            refused = _refusal(mine, other, cell)
            if refused is not None:
                yield Duel(cell, refused, None, (), facts | {"isolation": "", "time_utc": _now()})
                continue
            question = {
                "problem": str(request.problem.path),
                "name": request.problem.name,
                "solution": _text(mine),
                "rival": _text(other),
                "cell": to_json(cell),
                "limits": request.limits,
            }
            answer = judge.ask(question)
            ruling = answer["ruling"]
            yield Duel(
                cell,
                _decoded(Failed, ruling["failed"]),
                _decoded(Timed, ruling["timed"]),
                tuple(ruling["flags"]),
                facts | {"isolation": ruling["isolation"].get("level", ""), "time_utc": _now()},
            )
            if answer["lost"]:
                raise JudgeDied(f"the GPU is lost: {answer['lost']}")
    finally:
        judge.close()


def _refusal(mine: Solution, other: Solution, cell: Cell) -> Failed | None:
    """What needs no contestant: a text that is no solution, a cell that one of the two does not declare."""
    for place, solution in (("A", mine), ("B", other)):
        refused = refusal(Job(solution, cell))
        if refused is not None:
            return replace(refused, reason=f"{place} ({solution.name}): {refused.reason}")
    return None


def _facts(request: Request, mine: Solution, other: Solution, environment: dict[str, Any]) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "problem": request.problem.name,
        "problem_digest": request.problem.digest,
        "solution": mine.name,
        "solution_digest": mine.digest,
        "other": other.name,
        "other_digest": other.digest,
        "card": card_of(environment, int(request.limits.get("sms", 0))),
        **{name: environment[name] for name in _VERSIONS if name in environment},
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _text(solution: Solution) -> dict[str, str]:
    return {"name": solution.name, "path": str(solution.path), "source": solution.source}


def _decoded(kind: type, value: Any) -> Any:
    return None if value is None else decode(kind, value)


def row(duel: Duel) -> dict[str, Any]:
    """Return a duel's facts; `ratio` is the other's time over the first's: above 1 the first is faster.

    `timed` holds the raw samples, from which all figures beside it can be computed again.
    """
    from runner import analyse  # noqa: PLC0415 - numpy, which a CPU run does not need

    facts: dict[str, Any] = {
        **duel.facts,
        "cell": to_json(duel.cell),
        "shape": f"{duel.cell.sweep}/{duel.cell.label}",
        "arithmetic": duel.cell.arithmetic,
        "flags": list(duel.flags),
    }
    if duel.failed is not None:
        return facts | {"status": str(duel.failed.status), "reason": duel.failed.reason}
    if duel.timed is None:
        return facts | {"status": "PASS", "reason": "both are right; nothing is timed here"}
    found = analyse.comparison(duel.timed, RIVAL)
    flags = [*duel.flags, *analyse.flags_of_comparison(duel.timed, found)]
    if any(one.issue_us > analyse.median(one.times_us) for one in duel.timed.samples):
        flags.append("launch_bound")
    return facts | {
        "status": "PASS",
        "flags": flags,
        "time_us": analyse.median(analyse.times_us(duel.timed, "solution")),
        "other_us": analyse.median(analyse.times_us(duel.timed, RIVAL)),
        "ratio": found.speedup,
        "low": found.low,
        "high": found.high,
        "verdict": str(found.verdict),
        "rounds": found.rounds,
        "clock": duel.timed.clock,
        "processes": duel.timed.processes,
        "timed": to_json(duel.timed),
    }


def table(rows: list[dict[str, Any]], fmt: str) -> str:
    """Show rows as a table or as JSON."""
    if fmt == "json":
        return json.dumps(rows, indent=1)
    from tabulate import tabulate  # noqa: PLC0415 - only where a table is drawn

    lines = [
        {
            "shape": one["shape"],
            "arithmetic": one["arithmetic"],
            "status": one["status"],
            "A us": f"{one['time_us']:.2f}" if "time_us" in one else "-",
            "B us": f"{one['other_us']:.2f}" if "other_us" in one else "-",
            "B/A": f"{one['ratio']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" if "ratio" in one else "-",
            "verdict": one.get("verdict", one.get("reason", "")),
            "flags": ", ".join(one["flags"]),
        }
        for one in rows
    ]
    text: str = tabulate(lines, headers="keys", tablefmt="github" if fmt == "github" else "simple")
    return text
