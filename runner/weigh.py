"""From a ruling to a record: comparisons, roofline, waves and flags are added to what the judge found."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from runner import arithmetic, cards, lint, load, roofline, waves
from runner.decode import decode
from runner.plan import Job
from runner.schema import (
    NOT_RANKED,
    PROTOCOL,
    SCHEMA,
    Checked,
    Failed,
    Kernel,
    Record,
    Status,
    Timed,
    digest,
    to_json,
)

#: A solution this much faster than its headline baseline, or this close to the floor, wants a second look.
SUSPICIOUS_SPEEDUP, NEAR_FLOOR = 10.0, 1.15
#: More of the device's time than this in kernels of libraries is flagged; a problem may set another share.
LIBRARY_SHARE = 0.5
#: Whose time is no library's, and whose kernels may move and add but multiply no matrices.
_AUTHORS, _PLAIN = ("", "triton"), ("cuda", "pytorch", "cub")


def card_of(environment: dict[str, Any], sms: int = 0) -> str:
    """Name the folder of results: a card's name, `cpu`, or an unknown device's own name in small letters.

    With `sms` it is a part of that card: `h100_sxm-128sm`.
    """
    if environment["device"] == "cpu":
        return "cpu"
    card = cards.card_for_device(environment["gpu"], environment["sms"])
    own = re.sub(r"[^a-z0-9]+", "-", f"{environment['gpu']}-{environment['sms']}sm".lower())
    name = card.name if card else own
    return f"{name}-{sms}sm" if sms else name


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
    if timed is None or checked is None:
        return made
    return _weigh(made, problem, checked, timed, ruling.get("output_bytes", 0))


def _decoded(kind: type, ruling: dict[str, Any], name: str) -> Any:
    value = ruling.get(name)
    return None if value is None else decode(kind, value)


def _weigh(made: Record, problem: load.Problem, checked: Checked, timed: Timed, output_bytes: int) -> Record:
    """Add comparisons, roofline, waves and flags to a timed record."""
    from runner import analyse  # noqa: PLC0415 - numpy, which a CPU run does not need

    mine, *others = [s for s in timed.samples if not s.config.get("pilot") and s.process == 0]
    comparisons = tuple(analyse.comparison(timed, s.variant) for s in others)
    best = analyse.against_best(timed)
    times_us = analyse.times_us(timed, mine.variant)
    time_us = analyse.median(times_us)
    disturbed = [f"{NOT_RANKED}: {name}" for name in made.environment.get("disturbances", [])]
    if made.environment.get("other_processes") and "other_processes" not in made.flags:
        disturbed.append("other_processes")
    flags = [*made.flags, *disturbed, *analyse.flags_of_comparison(timed, best)]
    if mine.issue_us > time_us:
        flags.append("launch_bound")
    if best.low > SUSPICIOUS_SPEEDUP:
        flags.append("over_10x")
    made = dataclasses.replace(made, comparisons=comparisons, flags=tuple(flags))
    made = _witnessed(made, problem, checked, timed)
    card = cards.find_card(made.card)
    if card is None:
        return made
    occupied = [(x.kernel, waves.launch_occupancy(x, card)) for x in checked.launches]
    made = dataclasses.replace(
        made, waves=tuple({"kernel": k, **to_json(o)} for k, o in occupied if o is not None)
    )
    return _place(made, problem, card, timed, output_bytes)


def _witnessed(made: Record, problem: load.Problem, checked: Checked, timed: Timed) -> Record:
    """Add what ran: the arithmetic of the answer, and flags for what a reader must know of it."""
    kernels = timed.kernels.get(timed.samples[0].variant, ())
    proposed = {name for launch in checked.launches for name in launch.arithmetic}
    if any(kernel.library not in ("triton", *_PLAIN) for kernel in kernels):
        proposed.add(arithmetic.UNKNOWN)
    error = max((e.normwise for e in checked.errors if e.population != "structural"), default=0.0)
    decided, excess = arithmetic.decide(made.cell.arithmetic, proposed, error)
    flags = [f"{NOT_RANKED}: {flag}" for flag in excess]
    if _library_share(kernels) > _admitted_share(problem):
        flags.append("library")
    timed = dataclasses.replace(timed, arithmetic=decided)
    return dataclasses.replace(made, timed=timed, flags=(*made.flags, *flags))


def _library_share(kernels: Sequence[Kernel]) -> float:
    """Share of the device's time in kernels of libraries; copies and fills are the driver's."""
    library_us = sum(kernel.time_us for kernel in kernels if kernel.library not in _AUTHORS)
    return library_us / (sum(kernel.time_us for kernel in kernels) or 1.0)


def _admitted_share(problem: load.Problem) -> float:
    share: float = LIBRARY_SHARE
    return share if problem.foreign else getattr(problem.outline, "LIBRARY_SHARE", share)


def _place(made: Record, problem: load.Problem, card: cards.Card, timed: Timed, output_bytes: int) -> Record:
    """Place a time against the card: bytes, FLOPs, bound, floor.

    INVALID is a time whose whole interval lies below the floor. Of a problem that counts nothing itself, one
    by path say, only the outputs are sure to be moved whole, and FLOPs and bound stay unknown.
    """
    from runner import analyse  # noqa: PLC0415 - numpy, as above

    time_us = analyse.median(analyse.times_us(timed, "solution"))
    _, longest_us = analyse.interval_us(timed, "solution")
    facts: dict[str, Any] = {"min_bytes": output_bytes}
    if not problem.foreign and hasattr(problem.outline, "flops"):
        facts = _bounded(made, problem, card, time_us)
    floor_us = facts["floor_us"] = roofline.floor_us(facts["min_bytes"], 0, card)
    flags = [
        *(["above_bound"] if time_us < facts.get("bound_us", 0.0) else []),
        *(["near_floor"] if time_us < NEAR_FLOOR * floor_us else []),
    ]
    made = dataclasses.replace(made, roofline=facts, flags=(*made.flags, *flags))
    if longest_us >= floor_us:
        return made
    reason = f"{time_us:.2f} us, {longest_us:.2f} at most, is below the byte floor of {floor_us:.2f} us"
    failed = Failed(Status.INVALID, "time", reason)
    return dataclasses.replace(made, status=Status.INVALID, failed=failed, timed=None, comparisons=())


def _bounded(made: Record, problem: load.Problem, card: cards.Card, time_us: float) -> dict[str, Any]:
    """Count a cell's bytes and FLOPs and hold a time against the bounds that follow."""
    shape, arithmetic = problem.shape(made.cell.shape), made.cell.arithmetic
    traffic = problem.outline.min_bytes(shape, 4 if made.cell.dtype == "fp32" else 2)
    flops = problem.outline.flops(shape)
    bound = roofline.bound_us(flops, traffic, card, arithmetic)
    facts = {
        "min_bytes": traffic,
        "flops": flops,
        "bound_us": bound.time_us,
        "limiter": bound.limiter,
        "share_of_bound": roofline.share_of_bound(time_us, bound),
    }
    measured = made.environment.get("ceilings")
    if measured:
        facts["share_of_measured"] = roofline.measured_us(flops, traffic, measured, arithmetic) / time_us
    return facts
