"""What a page says of metrics: measured ones of a profile, others predicted where compiling tells them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

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

#: Numbers by kernel and metric.
Kernels = dict[str, dict[str, float]]


def read_profile(path: Path) -> Kernels:
    """Read `{"metrics": {kernel: {metric: number}}}`; other keys are ignored. Raises BadInput."""
    try:
        data = json.loads(read_source(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"'{path}' is not JSON: {error}") from None
    kernels = data.get("metrics") if isinstance(data, dict) else None
    if not isinstance(kernels, dict) or not all(
        isinstance(metrics, dict) and all(isinstance(v, int | float) for v in metrics.values())
        for metrics in kernels.values()
    ):
        raise BadInput(
            f"""'{path}' is no profile: it should hold {{"metrics": {{kernel: {{metric: number}}}}}}"""
        )
    return kernels


def section(
    stage: Stage,
    measured: Kernels,
    predict_for: tuple[Problem, Solution, Cell, Card],
    predict_s: float | None,
) -> str:
    """Return what was measured and, of the stage's other metrics, each as predicted or as not measured.

    A prediction compiles the solution in the sandbox within `predict_s` seconds; None predicts nothing.
    """
    names = [metric.name for metric in stage.metrics]
    absent = _without(names, measured)
    wanted = [name for name in absent if name in PREDICTABLE]
    predicted = _only(wanted, predict(*predict_for, predict_s)) if wanted and predict_s else {}
    lines = [json.dumps(measured, indent=2)] if measured else []
    if predicted:
        *_, cell, card = predict_for
        lines.append(
            f"Predicted for {cell.sweep}/{cell.label} by compiling for the {card.title}, not measured:"
        )
        lines.append(json.dumps(predicted, indent=2))
    return "\n".join([*lines, *(f"{name}: not measured" for name in _without(absent, predicted))])


def predict(problem: Problem, solution: Solution, cell: Cell, card: Card, timeout_s: float) -> Kernels:
    """Compile a solution for a card and return what is `PREDICTABLE` of each kernel's largest launch.

    Autotuned launches are left out, since which configuration wins is not known, and what does not compile.
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
    return kernels


def _without(names: Sequence[str], kernels: Kernels) -> list[str]:
    known = {name for metrics in kernels.values() for name in metrics}
    return [name for name in names if name not in known]


def _only(names: Sequence[str], kernels: Kernels) -> Kernels:
    return {kernel: {name: metrics[name] for name in names} for kernel, metrics in kernels.items()}
