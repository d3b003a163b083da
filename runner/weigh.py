"""From a ruling to a record: comparisons, roofline, waves and flags are added to what the judge found."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from runner import cards, lint, load, roofline, waves
from runner.decode import decode
from runner.plan import Job
from runner.schema import PROTOCOL, SCHEMA, Checked, Failed, Record, Status, Timed, digest, to_json

#: A call whose issuing takes this share of its time is bound by the host: shown, not ranked.
LAUNCH_BOUND_SHARE = 0.8
#: The judge's bound of one window and a claim may differ by this, in us, for honest kernels.
CLAIM_NOISE_US = 60.0


def card_of(environment: dict[str, Any]) -> str:
    """Name the folder of results: a card's name, `cpu`, or an unknown device's own name in small letters."""
    if environment["device"] == "cpu":
        return "cpu"
    card = cards.card_for_device(environment["gpu"], environment["sms"])
    return (
        card.name
        if card
        else re.sub(r"[^a-z0-9]+", "-", f"{environment['gpu']}-{environment['sms']}sm".lower())
    )


@cache
def runner_digest() -> str:
    """Identity of the runner's own sources."""
    folder = Path(__file__).parent
    return digest([p.read_text() for p in sorted(folder.rglob("*.py"))])


def make_record(
    problem: load.Problem,
    job: Job,
    environment: dict[str, Any],
    card: str,
    ruling: dict[str, Any],
    entropy: str,
) -> Record:
    """Join a ruling with what surrounds it; a time below the byte floor is INVALID."""
    failed: Failed | None = _decoded(Failed, ruling, "failed")
    checked: Checked | None = _decoded(Checked, ruling, "checked")
    timed: Timed | None = _decoded(Timed, ruling, "timed")
    header = lint.read_header(job.solution.source)
    made = Record(
        schema=SCHEMA,
        protocol=PROTOCOL,
        time_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        problem=problem.name,
        problem_digest=problem.digest,
        solution=job.solution.name,
        solution_digest=job.solution.digest,
        technique=header.technique,
        author=header.author,
        runner_digest=runner_digest(),
        cell=job.cell,
        card=card,
        environment={**environment, "isolation": ruling.get("isolation", {})},
        entropy=entropy,
        status=failed.status if failed else Status.PASS,
        failed=failed,
        checked=checked,
        timed=timed,
        comparisons=(),
        roofline={},
        waves=(),
        flags=tuple(ruling.get("flags", ())),
    )
    return made if timed is None or checked is None else _weigh(made, problem, checked, timed)


def _decoded(kind: type, ruling: dict[str, Any], name: str) -> Any:
    value = ruling.get(name)
    return None if value is None else decode(kind, value)


def _weigh(made: Record, problem: load.Problem, checked: Checked, timed: Timed) -> Record:
    """Add comparisons, roofline, waves and flags to a timed record."""
    from runner import analyse  # noqa: PLC0415 - numpy, which a CPU run does not need

    by_name = {s.variant: s for s in timed.samples}
    mine = by_name["solution"]
    paired = [s for s in timed.samples if s is not mine and not s.config.get("pilot")]
    comparisons = tuple(analyse.compare(mine.times_us, s.times_us, s.variant) for s in paired)
    doubts = analyse.diagnose(mine.times_us, by_name[timed.headline].times_us).flags
    time_us, claim_us = analyse.median(mine.times_us), analyse.median(mine.claims_us)
    flags = [*made.flags, *doubts]
    if mine.issue_us > LAUNCH_BOUND_SHARE * time_us:
        flags.append("launch_bound")
    if abs(claim_us - time_us) > max(0.1 * time_us, CLAIM_NOISE_US / mine.calls):
        flags.append("claim_mismatch")
    made = dataclasses.replace(made, comparisons=comparisons, flags=tuple(flags))
    if made.card not in cards.card_names():
        return made
    card = cards.load_card(made.card)
    occupied = [(x.kernel, waves.launch_occupancy(x, card)) for x in checked.launches]
    made = dataclasses.replace(
        made, waves=tuple({"kernel": k, **to_json(o)} for k, o in occupied if o is not None)
    )
    return _place(made, problem, card, time_us, max(mine.times_us))


def _place(
    made: Record, problem: load.Problem, card: cards.Card, time_us: float, slowest_us: float
) -> Record:
    """Place a time against the card: bytes, FLOPs, bound, floor."""
    if problem.foreign or not hasattr(problem.outline, "flops"):
        return made
    shape = problem.shape(made.cell.shape)
    traffic = problem.outline.min_bytes(shape, 4 if made.cell.dtype == "fp32" else 2)
    flops = problem.outline.flops(shape)
    bound = roofline.bound_us(flops, traffic, card, made.cell.arithmetic)
    floor = roofline.floor_us(traffic, 0, card)
    facts = {
        "min_bytes": traffic,
        "flops": flops,
        "bound_us": bound.time_us,
        "limiter": bound.limiter,
        "floor_us": floor,
        "share_of_bound": roofline.share_of_bound(time_us, bound),
    }
    made = dataclasses.replace(made, roofline=facts)
    if slowest_us >= floor:
        return made
    failed = Failed(Status.INVALID, "time", f"{time_us:.2f} us is below the byte floor of {floor:.2f} us")
    return dataclasses.replace(made, status=Status.INVALID, failed=failed, timed=None, comparisons=())
