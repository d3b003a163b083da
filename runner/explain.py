"""What can be known of a launch without its GPU: grid, occupancy, waves and floor, for each cell and card.

A kernel is persistent if it strides over its grid, by `for` (`Compiled.tile_loop`) or by `while`, and all its
programs run at once; its tail then depends on tiles that only the kernel counts, and no efficiency is given.
"""

from __future__ import annotations

import ast
import functools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import roofline
from runner.lint import Aliases, dotted_name, imported_names, read_header
from runner.retarget import Compiled, Forward, retarget
from runner.schema import Launch, to_json
from runner.waves import Occupancy, launch_occupancy, role

if TYPE_CHECKING:
    from runner.cards import Card
    from runner.load import Problem, Solution
    from runner.schema import Cell, Record

#: What is known of one solution in one cell on one card; what does not exist has no key or is None.
Report = dict[str, Any]
#: Measured on a card: shown beside what is computed for the same launch.
PROFILE = Path(__file__).parent / "stages" / "owner_profile.json"
#: CUDA's largest grid.
MAX_GRID = (2**31 - 1, 65535, 65535)


def explain(
    problem: Problem,
    solutions: Sequence[Solution],
    cells: Sequence[Cell],
    cards: Sequence[Card],
    timeout_s: float,
    records: Iterable[Record] = (),
) -> list[Report]:
    """Return a report for each solution, cell and card, in that order.

    What stops a solution is the `error` of its report, and a cell that it does not declare is `skipped`.
    A kernel that does not compile for the card, or does not fit it, is among the `findings` of its
    launch, and among the report's `stops` where no configuration is left. `timeout_s` is for one cell on
    one card. Where one of the `records` is of the same files, cell and card, each configuration of an
    autotuned launch says whether it `ran` there.
    """
    seen = {
        (one.problem_digest, one.solution_digest, one.cell.key, one.card): one
        for one in records
        if one.checked
    }
    reports = []
    for solution in solutions:
        header = read_header(solution.source)
        covered = [cell for cell in cells if header.covers(cell)]
        forwards = iter(retarget(problem, solution, covered, cards, timeout_s))
        for cell in cells:
            for card in cards:
                forward = next(forwards) if cell in covered else None
                ran = seen.get((problem.digest, solution.digest, cell.key, card.name))
                reports.append(_report(problem, solution, cell, card, forward, ran))
    return reports


def _report(
    problem: Problem, solution: Solution, cell: Cell, card: Card, forward: Forward | None, ran: Record | None
) -> Report:
    place = {
        "problem": problem.name,
        "solution": solution.name,
        "shape": f"{cell.sweep}/{cell.label}",
        "arithmetic": cell.arithmetic,
        "card": card.name,
    }
    traffic_bytes = forward.traffic_bytes if forward else 0
    work = _work(problem, cell, card) or _traffic(traffic_bytes, card)
    report: Report = {**place, **work, **_canonical(problem, cell, card)}
    report["notes"] = list(_notes(solution, work))
    if forward is None:
        return report | {"skipped": f"the solution does not declare {cell.arithmetic}"}
    report |= {"triton": forward.triton} if forward.triton else {}
    if forward.error:
        return report | {"error": forward.error}
    return report | {
        "memory_bytes": forward.memory_bytes,
        "fits_memory": forward.memory_bytes <= card.memory_bytes,
        "operators": forward.operators,
        "stops": stops(forward, card),
        "launches": [
            _launch(made, card, place, made.tile_loop or strides_by_while(solution.source, made))
            | {"ran": _ran(made, ran, forward.triton)}
            for made in forward.launches
        ],
    }


def _canonical(problem: Problem, cell: Cell, card: Card) -> Report:
    """Return what the sweep `waves` placed: a role, its canonical tiles and their waves, one to an SM."""
    known = role(cell.label) if cell.sweep == "waves" else None
    if known is None or not hasattr(problem.outline, "tiles"):
        return {}
    tiles = problem.outline.tiles(problem.shape(cell.shape), known.block_m, known.block_n)
    tile = f"{known.block_m}x{known.block_n}"
    return {"canonical": {"tile": tile, "role": known.name, "tiles": tiles, "waves": tiles / card.sms}}


def _ran(made: Compiled, seen: Record | None, triton: str) -> bool | None:
    """Tell whether a record has a launch like this configuration's; None where there is no choice or record.

    Registers and shared memory count where the version of Triton is the same. Configurations that differ in
    nothing that a record holds may all have run.
    """
    if made.choices == 1 or made.launch is None or seen is None or seen.checked is None:
        return None
    same = seen.environment.get("triton") == triton
    return any(
        one == made.launch if same else _outline(one) == _outline(made.launch)
        for one in seen.checked.launches
    )


def _outline(launch: Launch) -> tuple[str, tuple[int, int, int], int]:
    return launch.kernel, launch.grid, launch.num_warps


def _work(problem: Problem, cell: Cell, card: Card) -> Report:
    """Return the problem's own count of bytes and operations and what they bound; nothing without one."""
    if problem.foreign or not hasattr(problem.outline, "flops"):
        return {}
    shape = problem.shape(cell.shape)
    traffic_bytes = problem.outline.min_bytes(shape, 4 if cell.dtype == "fp32" else 2)
    flops = problem.outline.flops(shape)
    bound = roofline.bound_us(flops, traffic_bytes, card, cell.arithmetic)
    return {
        "min_bytes": traffic_bytes,
        "flops": flops,
        "bound_us": bound.time_us,
        "bound_by": bound.limiter,
        "floor_us": roofline.floor_us(traffic_bytes, 0, card),
    }


def _traffic(traffic_bytes: int, card: Card) -> Report:
    """Return the floor of a problem that counts nothing itself, by what its reference reads and writes."""
    if not traffic_bytes:
        return {}
    return {
        "min_bytes": traffic_bytes,
        "flops": None,
        "floor_us": roofline.floor_us(traffic_bytes, 0, card),
    }


def _notes(solution: Solution, work: Report) -> Iterator[str]:
    """Say what is not known, and why; it holds for all cells of a solution alike."""
    if not work:
        yield "bytes and FLOPs are unknown: the problem has no `min_bytes` and `flops` to count them"
    elif work["flops"] is None:
        yield (
            "FLOPs are unknown, for the problem has no `flops` to count them: "
            "the floor is that of inputs, parameters and outputs, each moved once"
        )
    try:
        tree = ast.parse(solution.source)
    except (SyntaxError, ValueError):  # its cells say so
        return
    aliases = imported_names(tree)
    named = (node for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Name)))
    if any(dotted_name(node, aliases) == "torch.compile" for node in named):
        yield (
            "what it gives to torch.compile counts as PyTorch's operators here: "
            "Inductor writes their kernels on a GPU alone, where `profile` shows them"
        )


def _launch(made: Compiled, card: Card, place: dict[str, str], tile_loop: bool) -> Report:
    """Place one launch on a card."""
    facts: Report = to_json(made) | {"programs": math.prod(made.grid)}
    occupied = _occupancy(made, card)
    if occupied is not None:
        persistent = tile_loop and 0 < occupied.programs <= occupied.programs_per_sm * card.sms
        facts |= {
            "programs_per_sm": occupied.programs_per_sm,
            "limiters": list(occupied.limiters),
            "warps_per_sm": occupied.warps_per_sm,
            "max_warps_per_sm": card.max_warps_per_sm,
            "occupancy_pct": 100 * occupied.warps_per_sm / card.max_warps_per_sm,
            "waves": occupied.waves,
            "eta_slot": None if persistent else occupied.eta_slot,
            "eta_sm": None if persistent else occupied.eta_sm,
            "persistent": persistent,
        }
    findings = [*_obstacles(made, occupied, card), *_oddities(made, occupied)]
    return facts | {"measured": measured(made, place), "findings": findings}


def stops(forward: Forward, card: Card) -> list[str]:
    """Return what keeps a forward from running on a card: of a launch, what stops every configuration."""
    if forward.error:
        return [forward.error]
    found = [(made, list(_obstacles(made, _occupancy(made, card), card))) for made in forward.launches]
    able = {made.call for made, why in found if not why}
    told = [f"{made.kernel}: {text}" for made, why in found if made.call not in able for text in why]
    return list(dict.fromkeys(told))


def _occupancy(made: Compiled, card: Card) -> Occupancy | None:
    return launch_occupancy(made.launch, card) if made.launch else None


def strides_by_while(source: str, made: Compiled) -> bool:
    """Say whether a `while` of a kernel steps from its program id by the number of its programs.

    The step is asked of Triton, by itself or under a name, or a constant of the launch.
    """
    tree = ast.parse(source)
    aliases = imported_names(tree)
    programs = math.prod(made.grid)
    counts = {name for name, value in made.constants.items() if type(value) is int and value == programs}
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        if function.name != made.kernel:
            continue
        ids = _asked(function, "program_id", aliases)
        counts |= _asked(function, "num_programs", aliases)
        for loop in (node for node in ast.walk(function) if isinstance(node, ast.While)):
            for step in (node for node in ast.walk(loop) if isinstance(node, ast.AugAssign)):
                by_programs = _names(step.value) & counts or _asks(step.value, "num_programs", aliases)
                if _names(step.target) & _names(loop.test) & ids and by_programs:
                    return True
    return False


def _asked(function: ast.AST, question: str, aliases: Aliases) -> set[str]:
    """Return the names that a kernel gives to what it asks Triton."""
    answers = (node for node in ast.walk(function) if isinstance(node, ast.Assign))
    return {name for one in answers if _asks(one.value, question, aliases) for name in _names(*one.targets)}


def _asks(node: ast.AST, question: str, aliases: Aliases) -> bool:
    calls = (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))
    return any(dotted_name(call.func, aliases) == f"triton.language.{question}" for call in calls)


def _names(*nodes: ast.AST) -> set[str]:
    return {inner.id for node in nodes for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _obstacles(made: Compiled, occupied: Occupancy | None, card: Card) -> Iterator[str]:
    """Yield why a card cannot take a launch; `occupied` is None where there is no binary."""
    if made.error:
        yield f"cannot be compiled: {made.error}"
    for axis, size, limit in zip("xyz", made.grid, MAX_GRID, strict=True):
        if size > limit:
            yield f"does not fit: {size} programs along {axis}, at most {limit}"
    if occupied is None:
        return
    if occupied.limits["shared"] == 0:
        limit = card.shared_bytes_per_program
        yield f"does not fit: {made.shared_bytes} bytes of shared memory, at most {limit}"
    elif occupied.programs_per_sm == 0:
        yield f"does not fit: no room for one program ({', '.join(occupied.limiters)})"


def _oddities(made: Compiled, occupied: Occupancy | None) -> Iterator[str]:
    if occupied is None:
        return
    for axis, size in zip("xyz", made.grid, strict=True):
        if size > 1 and axis not in made.program_ids:
            yield f"never asks for the program id along {axis}, where the grid has {size}"
    if not occupied.programs:
        yield "an empty grid"
    if (made.num_ctas or 1) > 1:
        yield f"clusters of {made.num_ctas}, which the occupancy does not model"


def measured(made: Compiled, place: dict[str, str]) -> dict[str, float] | None:
    """Return what a profiler measured for this launch in this place, if it is the one that was profiled."""
    profile = _profile()
    launch = {"tile": made.tile, "num_warps": made.num_warps, "num_stages": made.num_stages}
    if launch != profile["launch"] or any(profile[name] != value for name, value in place.items()):
        return None
    (metrics,) = profile["metrics"].values()
    found: dict[str, float] = metrics
    return found


@functools.cache
def _profile() -> dict[str, Any]:
    profile: dict[str, Any] = json.loads(PROFILE.read_text())
    return profile
