"""A solution on the GPU that is here -> what Nsight Compute counts, in the shape that `prompt` reads.

Without ncu, or without leave to count, a report is made from the launches that Triton tells of.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runner import cards, devices, ncu, record, roofline
from runner.lint import read_header
from runner.load import BadInput, Problem, Solution
from runner.observe import Observation, Settings, counted, plain
from runner.schema import PROTOCOL, Cell, Launch
from runner.waves import occupancy

#: What is known of one solution in one cell; `metrics` is {kernel: {metric: number}}.
Report = dict[str, Any]

#: The metrics of the profile that the suite's prompts were modelled on.
OWNER_METRICS = (
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "launch__grid_size",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sector_hit_rate.pct",
)
DURATION = "gpu__time_duration.sum"
REGISTERS = "launch__registers_per_thread"
SHARED, STATIC = (f"launch__shared_mem_per_block_{kind}" for kind in ("dynamic", "static"))
OCCUPANCY = "sm__maximum_warps_per_active_cycle_pct"
LIMITS = {name: f"launch__occupancy_limit_{name}" for name in ("blocks", "registers", "shared_mem", "warps")}
#: What ncu tells of a launch without counting, in one pass.
LAUNCH_METRICS = (REGISTERS, SHARED, STATIC, OCCUPANCY, *LIMITS.values())
#: The units of what Triton tells of a launch, in ncu's words.
CLAIMED_UNITS = {REGISTERS: "register/thread", SHARED: "byte/block"}
#: Public lists of metrics still have a name that no chip since Volta has -> what to ask for instead.
DEAD = {
    "smsp__warp_issue_stalled_memory_dependency_per_warp_active.pct": (
        "smsp__warp_issue_stalled_long_scoreboard_per_warp_active.pct"
    )
}


def wanted(stage_metrics: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """Return the owner's metrics, a stage's and those named besides, each once. Raises BadInput."""
    for name in names:
        if name in DEAD:
            raise BadInput(f"metric '{name}' is on no chip since Volta: ask for {DEAD[name]}")
        if not re.fullmatch(r"[a-z0-9]+__\w+(\.\w+)*", name):
            raise BadInput(f"'{name}' is no metric: a name is like dram__bytes.sum (ncu --query-metrics)")
    return tuple(dict.fromkeys([*OWNER_METRICS, *stage_metrics, *names]))


def require_device() -> None:
    """Raise NoDevice where there is no GPU to profile on."""
    if not devices.count():
        raise devices.NoDevice(
            "profile needs a CUDA device and this machine has none: `python -m runner explain` gives "
            "launches, occupancy, waves and floor without one"
        )


def declared(solution: Solution, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that a solution says it covers."""
    header = read_header(solution.source)
    return [cell for cell in cells if header.covers(cell)]


def profile(
    problem: Problem, solution: Solution, cells: Sequence[Cell], settings: Settings, results: Path
) -> list[Report]:
    """Return a report for each cell, with the metrics of `settings` and the judge's time from `results`.

    What stops the solution is the `error` of a report, a cell that it does not declare is `skipped`, and
    why there are no counters is `no_counters`. Raises HarnessFailure where the process does not begin.
    """
    covered = declared(solution, cells)
    seen, why = _observe(problem, solution, covered, settings) if covered else (None, "")
    reports = []
    for cell in cells:
        report: Report = {
            "problem": problem.name,
            "solution": solution.name,
            "shape": f"{cell.sweep}/{cell.label}",
            "dtype": cell.dtype,
            "math": cell.math,
        }
        if seen is not None and cell in covered:
            report |= _device(seen, settings, why) | _work(problem, cell, seen.device.card)
            report |= _recorded(problem, solution, cell, seen.device.card, results)
            report |= _found(seen, covered.index(cell), settings.metrics)
        else:
            report["skipped"] = f"the solution does not declare {cell.arithmetic}"
        reports.append(report)
    return reports


def _observe(
    problem: Problem, solution: Solution, cells: Sequence[Cell], settings: Settings
) -> tuple[Observation, str]:
    """Run under ncu, else with nobody watching and the reason why."""
    asked = tuple(dict.fromkeys([*settings.metrics, DURATION, *LAUNCH_METRICS]))
    try:
        return counted(problem, solution, cells, dataclasses.replace(settings, metrics=asked)), ""
    except ncu.NoCounters as why:
        return plain(problem, solution, cells, settings.timeout_s), str(why)


def _device(seen: Observation, settings: Settings, why: str) -> Report:
    card = seen.device.card
    facts = {"device": seen.device.name, "card": card.name if card else None, "triton": seen.device.triton}
    if seen.table is None:
        return facts | {"ncu": None, "no_counters": why}
    return facts | {
        "ncu": seen.version,
        "clock_control": settings.clock_control,
        "cache_control": settings.cache_control,
    }


def _work(problem: Problem, cell: Cell, card: cards.Card | None) -> Report:
    """Return what the fewest bytes and the operations of a cell bound; nothing where either is unknown."""
    if card is None or problem.foreign or not hasattr(problem.outline, "flops"):
        return {}
    shape = problem.shape(cell.shape)
    traffic_bytes = problem.outline.min_bytes(shape, 4 if cell.dtype == "fp32" else 2)
    bound = roofline.bound_us(problem.outline.flops(shape), traffic_bytes, card, cell.arithmetic)
    return {
        "bound_us": bound.time_us,
        "bound_by": bound.limiter,
        "floor_us": roofline.floor_us(traffic_bytes, 0, card),
    }


def _recorded(
    problem: Problem, solution: Solution, cell: Cell, card: cards.Card | None, results: Path
) -> Report:
    """Return the judge's latest time of these files in a cell on a card, by this protocol, if any."""
    if card is None:
        return {}
    this = (cell.key, problem.digest, solution.digest, PROTOCOL)
    records, _ = record.read(record.results_path(results, card.name, problem.name, solution.name))
    times = {
        one.time_utc: statistics.median(
            t for s in one.timed.samples if s.variant == "solution" for t in s.times_us
        )
        for one in records
        if one.timed and (one.cell.key, one.problem_digest, one.solution_digest, one.protocol) == this
    }
    return {"recorded_us": times[max(times)]} if times else {}


def _found(seen: Observation, number: int, metrics: Sequence[str]) -> Report:
    """Return the metrics by kernel, each with its unit, those that are missing, and all launches."""
    one = seen.seen[number]
    if one.error:
        return {"error": one.error}
    if seen.table is None:
        launched, units = [_claimed(number, launch) for launch in one.launches], CLAIMED_UNITS
    else:
        launched = [each for each in seen.table.launches if each.cell == number]
        units = seen.table.units
    longest: dict[str, ncu.Launched] = {}
    for each in launched:
        longest[each.kernel] = max(longest.get(each.kernel, each), each, key=_weight)
    found = {
        kernel: {name: each.values[name] for name in metrics if name in each.values}
        for kernel, each in longest.items()
    }
    measured = set().union(*found.values())
    return {
        "metrics": found,
        "units": {name: unit for name, unit in units.items() if name in measured},
        "missing": [name for name in metrics if name not in measured],
        "launches": [_launch(each, seen.device.card) for each in launched],
    }


def _weight(launched: ncu.Launched) -> float:
    """Order launches of one kernel by time, or by size where nothing was counted."""
    return launched.values.get(DURATION, math.prod(launched.grid))


def _claimed(cell: int, launch: Launch) -> ncu.Launched:
    """Put a launch that Triton tells of into ncu's words; its shared memory is all dynamic."""
    threads = launch.num_warps * cards.WARP_THREADS
    values = {
        "launch__grid_size": math.prod(launch.grid),
        "launch__block_size": threads,
        REGISTERS: launch.registers,
        SHARED: launch.shared_bytes,
    }
    known: dict[str, float] = {name: value for name, value in values.items() if value is not None}
    return ncu.Launched(cell, launch.kernel, launch.grid, (threads, 1, 1), known)


def shared_bytes(launched: ncu.Launched) -> float | None:
    """Return dynamic and static shared memory together; None where the dynamic part is unknown."""
    return launched.values[SHARED] + launched.values.get(STATIC, 0) if SHARED in launched.values else None


def _launch(launched: ncu.Launched, card: cards.Card | None) -> Report:
    """Return a launch's resources, what ncu says of its occupancy, and what follows from the data sheet."""
    facts: Report = {
        "kernel": launched.kernel,
        "grid": list(launched.grid),
        "block": list(launched.block),
        "registers": launched.values.get(REGISTERS),
        "shared_bytes": shared_bytes(launched),
    }
    if DURATION in launched.values:
        facts["duration_us"] = launched.values[DURATION] / 1e3  # ncu's base unit is the nanosecond
    limits = {name: launched.values[metric] for name, metric in LIMITS.items() if metric in launched.values}
    if limits:
        facts |= {"ncu_limits": limits, "ncu_occupancy_pct": launched.values.get(OCCUPANCY)}
    if card is None or facts["registers"] is None or facts["shared_bytes"] is None:
        return facts
    registers, shared = int(facts["registers"]), int(facts["shared_bytes"])
    placed = occupancy(launched.threads, registers, shared, launched.grid, card)
    return facts | {
        "programs_per_sm": placed.programs_per_sm,
        "limiters": list(placed.limiters),
        "occupancy_pct": 100 * placed.warps_per_sm / card.max_warps_per_sm,
        "waves": placed.waves,
    }
