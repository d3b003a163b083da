"""What a page says of metrics: measured ones of a profile, others predicted where compiling tells them."""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner import explain, explain_table
from runner.cards import card_names, counter_names, load_card
from runner.load import BadInput, Problem, Solution, read_source
from runner.retarget import retarget
from runner.waves import launch_occupancy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runner.cards import Card
    from runner.schema import Cell
    from runner.stages import Stage

#: What a launch that is compiled for a card tells without being run there. The limit by shared memory is not
#: among it: it follows the carve-out that the driver chooses.
PREDICTABLE = (
    "launch__grid_size",
    "launch__registers_per_thread",
    "launch__shared_mem_per_block_dynamic",
    "launch__occupancy_limit_registers",
)

#: What ncu derives from a launch, and its query does not list: beginnings of names.
DERIVED = ("launch__", "derived__", "device__attribute_", "sm__maximum_warps_")
#: What a profile may tell of its numbers, beside them.
FACTS = ("card", "device", "problem", "solution", "shape", "arithmetic", "dtype", "math")

#: Numbers by kernel and metric.
Kernels = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Profile:
    """What was measured; `facts` are those of `FACTS` that the file tells."""

    path: Path
    kernels: Kernels
    facts: dict[str, str]


def read_profile(path: Path) -> Profile:
    """Read `{"metrics": {kernel: {metric: number}}}` and `FACTS`; other keys are ignored. Raises BadInput."""
    try:
        data = json.loads(read_source(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"'{path}' is not JSON: {error}") from None
    kernels = data.get("metrics") if isinstance(data, dict) else None
    if not isinstance(kernels, dict) or not all(
        isinstance(metrics, dict) and all(map(_is_number, metrics.values())) for metrics in kernels.values()
    ):
        raise BadInput(
            f"""'{path}' is no profile: it should hold {{"metrics": {{kernel: {{metric: number}}}}}}"""
        )
    return Profile(path, kernels, _facts(data))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _facts(data: dict[str, Any]) -> dict[str, str]:
    facts = {name: " ".join(data[name].split()) for name in FACTS if isinstance(data.get(name), str)}
    dtype = facts.pop("dtype", None)
    math_of_fp32 = facts.pop("math", None)
    if dtype:
        facts.setdefault("arithmetic", math_of_fp32 or dtype if dtype == "fp32" else dtype)
    device = facts.pop("device", "")
    named = [name for name in card_names() if device == name or device in load_card(name).driver_names]
    if device:
        facts.setdefault("card", named[0] if len(named) == 1 else device)
    return facts


def require_fit(profile: Profile, problem: Problem, card: Card) -> None:
    """Raise BadInput for numbers of another card or problem, and for metrics that no chip's list has."""
    known = {"card": (card.name, *card.driver_names), "problem": (problem.name,)}
    for name, expected in known.items():
        told = profile.facts.get(name, expected[0])
        if told not in expected:
            raise BadInput(
                f"'{profile.path}' was measured on {name} '{told}', not '{expected[0]}': "
                f"choose another --{name} or --profile"
            )
    counters = counter_names(card.chip)
    for name in (name for metrics in profile.kernels.values() for name in metrics):
        parts = name.split(".")
        bases = {".".join(parts[: n + 1]) for n in range(len(parts))}
        if not bases & counters and not name.startswith(DERIVED):
            near = difflib.get_close_matches(parts[0], counters, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see ncu --query-metrics --chip {card.chip}"
            raise BadInput(f"'{profile.path}' has '{name}', which is no metric of the {card.chip}: {hint}")


def section(
    stage: Stage,
    profile: Profile | None,
    problem: Problem,
    solution: Solution,
    cells: Sequence[Cell],
    card: Card,
    predict_s: float | None,
) -> str:
    """Return what was measured and, of the stage's other metrics, each as predicted or as not measured.

    A prediction compiles the solution for the first cell, in the sandbox, within `predict_s` seconds; None
    predicts nothing.
    """
    names = [metric.name for metric in stage.metrics]
    absent = _without(names, profile.kernels if profile else {})
    wanted = [name for name in absent if name in PREDICTABLE]
    cell = cells[0]
    kernels, stops, tuned = (
        predict(problem, solution, cell, card, predict_s) if wanted and predict_s else ({}, [], [])
    )
    predicted = _only(wanted, kernels)
    lines = []
    if profile:
        lines = [_origin(profile, solution, cells), json.dumps(profile.kernels, indent=2)]
    place = f"{cell.sweep}/{cell.label} in {cell.arithmetic}"
    if stops:
        lines.append(f"Compiled for the {card.title}, this code stops in {place}:")
        lines += [f"- {explain_table.printable(text)}" for text in stops]
    if tuned:
        lines.append(f"Not predicted, since an autotuner chooses: {', '.join(tuned)}")
    if predicted:
        lines.append(f"Predicted for {place} by compiling for the {card.title}, not measured:")
        lines.append(json.dumps(predicted, indent=2))
    return "\n".join([*lines, *(f"{name}: not measured" for name in _without(absent, predicted))])


def _origin(profile: Profile, solution: Solution, cells: Sequence[Cell]) -> str:
    """Say whose numbers they are as far as the file tells, and where that is not what the page shows."""
    shown = {
        "solution": {solution.name},
        "shape": {f"{cell.sweep}/{cell.label}" for cell in cells},
        "arithmetic": {cell.arithmetic for cell in cells},
    }
    told, untold = [], []
    for name in ("card", "problem", *shown):
        if name not in profile.facts:
            untold.append(name)
            continue
        value = profile.facts[name]
        told.append(f"{name} {value}{'' if value in shown.get(name, {value}) else ' (not of this page)'}")
    unknown = [f"the file does not tell {', '.join(untold)}"] if untold else []
    return f"Measured: {'; '.join([', '.join(told), *unknown] if told else unknown)}."


def predict(
    problem: Problem, solution: Solution, cell: Cell, card: Card, timeout_s: float
) -> tuple[Kernels, list[str], list[str]]:
    """Compile for a card; return what is `PREDICTABLE` of each kernel's largest launch, and what stops it.

    Autotuned launches are left out, since which configuration wins is not known, and what does not compile.
    The former are named last.
    """
    (forward,) = retarget(problem, solution, [cell], [card], timeout_s)
    launches = [made.launch for made in forward.launches if made.launch and made.choices == 1]
    kernels: Kernels = {}
    for launch in sorted(launches, key=lambda each: math.prod(each.grid)):
        occupied = launch_occupancy(launch, card)
        if occupied and launch.registers is not None and launch.shared_bytes is not None:
            limit = occupied.limits["registers"]
            numbers = (occupied.programs, launch.registers, launch.shared_bytes, limit)
            kernels[launch.kernel] = dict(zip(PREDICTABLE, numbers, strict=True))
    tuned = dict.fromkeys(made.launch.kernel for made in forward.launches if made.launch and made.choices > 1)
    return kernels, explain.stops(forward, card), list(tuned)


def _without(names: Sequence[str], kernels: Kernels) -> list[str]:
    known = {name for metrics in kernels.values() for name in metrics}
    return [name for name in names if name not in known]


def _only(names: Sequence[str], kernels: Kernels) -> Kernels:
    return {kernel: {name: metrics[name] for name in names} for kernel, metrics in kernels.items()}
