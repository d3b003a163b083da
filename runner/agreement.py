"""What `explain` predicts for the card that is here against what ncu reports, launch by launch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from runner import cards, ncu, profiling
from runner.devices import NoDevice
from runner.explain import explain
from runner.load import Problem, Solution
from runner.observe import Observation, Settings, counted
from runner.schema import Cell

#: One cell: how many launches agree, and each difference with the launch, the quantity and both values.
Report = dict[str, Any]
#: What is compared of a launch -> value.
Facts = dict[str, Any]

#: What all reports of one sum have in common.
SUMMED_BY = ("problem", "solution", "solution_digest", "arithmetic", "card", "predicted_by", "ran", "ncu")
REASON_CHARS = 100

#: ncu prints percentages with two decimals.
OCCUPANCY_DECIMALS = 2
#: ncu tells of no fewer registers per thread: 66 launches on an H100 had 16 whose binaries have 8 to 14.
LEAST_REGISTERS = 16


def compare(
    problem: Problem, solutions: Sequence[Solution], cells: Sequence[Cell], timeout_s: float
) -> list[Report]:
    """Return a report for each solution and each cell that it declares; one run of ncu for each solution.

    `timeout_s` is for a solution under ncu, and for each cell of its prediction. Raises NoDevice for a GPU
    without a data sheet, NoCounters where ncu cannot be asked, and HarnessFailure.
    """
    reports = []
    for solution in solutions:
        covered = profiling.declared(solution, cells)
        if not covered:
            continue
        # resources are told without replaying a kernel: neither clocks nor caches matter
        settings = Settings(profiling.LAUNCH_METRICS, "none", "none", timeout_s)
        seen = counted(problem, solution, covered, settings)
        predicted = explain(problem, [solution], covered, [_card(seen)], timeout_s)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = {"solution_digest": solution.digest, "time_utc": now}
        reports += [_report(one, seen, number) | made for number, one in enumerate(predicted)]
    return reports


def totals(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Sum up reports by solution and arithmetic, each difference with its shape.

    `failed` has the shapes that could not be compared, each with the beginning of its reason.
    """
    sums: dict[tuple[str, ...], dict[str, Any]] = {}
    for report in reports:
        place = {name: report[name] for name in SUMMED_BY}
        counts = {"time_utc": report["time_utc"], "cells": 0, "launches": 0, "differences": [], "failed": {}}
        one = sums.setdefault(tuple(map(str, place.values())), place | counts)
        if "error" in report:
            one["failed"][report["shape"]] = str(report["error"])[:REASON_CHARS]
            continue
        one["cells"] += 1
        one["launches"] += report["launches"]
        one["differences"] += [{"shape": report["shape"], **each} for each in report["differences"]]
    return list(sums.values())


def _card(seen: Observation) -> cards.Card:
    card = seen.device.card
    if card is None:
        known = ", ".join(cards.card_names())
        raise NoDevice(f"no card is a {seen.device.name} with {seen.device.sms} SMs; cards: {known}")
    return card


def _report(predicted: Report, seen: Observation, number: int) -> Report:
    place = {name: predicted[name] for name in ("problem", "solution", "shape", "arithmetic", "card")}
    versions = {"predicted_by": predicted.get("triton"), "ran": seen.device.triton, "ncu": seen.version}
    report = place | versions
    error = predicted.get("error") or seen.seen[number].error
    if error:
        return report | {"error": error}
    launched = [one for one in seen.table.launches if one.cell == number] if seen.table else []
    calls = _calls(predicted["launches"])
    names = {choice["kernel"] for call in calls for choice in call}
    others = sorted({one.kernel for one in launched if one.kernel not in names})
    own = [one for one in launched if one.kernel in names]
    differences = list(_differences(calls, own))
    return report | {"launches": len(own), "not_predicted": others, "differences": differences}


def _calls(launches: Sequence[Facts]) -> list[list[Facts]]:
    """Group what is predicted by call: an autotuned one has an entry for each configuration."""
    calls: dict[int, list[Facts]] = {}
    for one in launches:
        calls.setdefault(one["call"], []).append(one)
    return list(calls.values())


def _differences(calls: Sequence[Sequence[Facts]], launched: Sequence[ncu.Launched]) -> list[Facts]:
    """Compare in order; an autotuned call with the configuration that comes nearest to what ran."""
    found: list[Facts] = []
    if len(calls) != len(launched):
        found.append({"quantity": "launches", "predicted": len(calls), "measured": len(launched)})
    for number, (call, one) in enumerate(zip(calls, launched, strict=False)):
        nearest = min((_unequal(choice, one) for choice in call), key=len)
        found += [{"launch": number, "kernel": one.kernel, **each} for each in nearest]
    return found


def _unequal(choice: Facts, launched: ncu.Launched) -> list[Facts]:
    predicted, measured = _predicted(choice), _measured(launched)
    return [
        {"quantity": name, "predicted": predicted[name], "measured": measured[name]}
        for name in measured
        if predicted[name] != measured[name]
    ]


def _predicted(choice: Facts) -> Facts:
    warps, registers = choice["num_warps"], choice["registers"]
    occupancy_pct = choice.get("occupancy_pct")
    return {
        "kernel": choice["kernel"],
        "grid": list(choice["grid"]),
        "threads": None if warps is None else warps * cards.WARP_THREADS,
        "registers": None if registers is None else max(registers, LEAST_REGISTERS),
        "shared_bytes": choice["shared_bytes"],
        "programs_per_sm": choice.get("programs_per_sm"),
        "occupancy_pct": None if occupancy_pct is None else round(occupancy_pct, OCCUPANCY_DECIMALS),
    }


def _measured(launched: ncu.Launched) -> Facts:
    values = launched.values
    # the limit by shared memory follows the carve-out that the driver chose, so only the least compares
    limits = [values[metric] for metric in profiling.LIMITS.values() if metric in values]
    occupancy_pct = values.get(profiling.OCCUPANCY)
    return {
        "kernel": launched.kernel,
        "grid": list(launched.grid),
        "threads": launched.threads,
        "registers": values.get(profiling.REGISTERS),
        "shared_bytes": profiling.shared_bytes(launched),
        "programs_per_sm": min(limits, default=None),
        "occupancy_pct": None if occupancy_pct is None else round(occupancy_pct, OCCUPANCY_DECIMALS),
    }
