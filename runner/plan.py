"""What is to be run: names and words of a command line to cells."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner import cards, load, record
from runner.schema import (
    CALL_S,
    DTYPES,
    HIDDEN,
    MATHS,
    MEMORY_BYTES,
    PROTOCOL,
    TARGET,
    Cell,
    Record,
    Shape,
    Status,
)

#: The suite's target; its waves are what the sweep `waves` places shapes for where no card is known.
TARGET_CARD = "rtx4090"
DEFAULT_SWEEPS = {"cpu": ("smoke",), "cuda": ("kernelbench", "layers", "ragged", "waves")}
#: Fresh processes of a ranked run.
RANKED_PROCESSES = 5
#: An estimate of a cell, in seconds: `smoke` of three problems took 0.5 to 1.3 on two cores, layers 5 on
#: an H100. The largest of KernelBench take 20 there.
ESTIMATE_S = {"cpu": 1.0, "cuda": 5.0}
#: What Triton's interpreter does in a second: three solutions took 4 to 13 s for 3.4 million operations.
INTERPRETER_FLOPS = 1e6
#: The interval at which rounds may end (`schema.TARGET`), and the seconds that they may take.
USUAL_ROUNDS, QUICK_ROUNDS = (TARGET, 1.0), (0.03, 0.5)


@dataclass(frozen=True)
class Job:
    """One solution on one cell."""

    solution: load.Solution
    cell: Cell


@dataclass(frozen=True)
class Request:
    """What a run is asked to do. `limits` are the judge's own (`runner.judge.bench.Limits`)."""

    problem: load.Problem
    solutions: tuple[load.Solution, ...]
    cells: tuple[Cell, ...]
    baselines: tuple[str, ...]
    device: str
    results: Path
    output: Path | None = None
    rerun: bool = False
    budget_s: float | None = None
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def jobs(self) -> list[Job]:
        """Cell by cell, so that solutions share a cell's oracle and tuned baselines."""
        return [Job(solution, cell) for cell in self.cells for solution in self.solutions]


def plan_cells(
    problem: load.Problem,
    shapes: Sequence[str],
    dtypes: str | Sequence[str],
    maths: str | Sequence[str],
    device: str,
    sms: int,
) -> tuple[Cell, ...]:
    """Resolve `--shapes` (sweeps, labels, `k=v,...`) in every arithmetic asked for.

    Raises BadInput for a shape, a dtype or a math that there is not.
    """
    dtypes, maths = arithmetics(dtypes, maths)
    sweeps = problem.sweeps(sms)
    rows = [row for text in shapes for row in _resolve(problem, text, sweeps)]
    if not shapes:
        wanted = DEFAULT_SWEEPS[device.partition(":")[0]] if not problem.foreign else tuple(sweeps)
        rows = [
            (name, label, shape) for name in wanted if name in sweeps for label, shape in sweeps[name].items()
        ]
        if not rows:
            raise load.BadInput(
                f"problem '{problem.name}' has no shapes in {' or '.join(wanted)}: "
                f"name some with --shapes, of {', '.join(sweeps)}"
            )
        hidden = problem.hidden_shape(random.SystemRandom())
        rows += [(HIDDEN, "drawn", hidden)] if hidden is not None else []
    cells = [
        Cell(sweep, label, shape, dtype, math)
        for sweep, label, shape in rows
        for dtype in dtypes
        for math in (maths if dtype == "fp32" else MATHS[:1])
    ]
    return tuple({c.key: c for c in cells}.values())


def card(name: str) -> cards.Card:
    """Find a card by its name. Raises BadInput, which names the card of a device's name."""
    try:
        return cards.load_card(name)
    except ValueError as error:
        raise load.BadInput(str(error)) from None


def first_sweep(problem: load.Problem, sms: int) -> str:
    """Name the sweep that is explained or profiled unless another is named: `kernelbench`, else the first."""
    sweeps = problem.sweeps(sms)
    return "kernelbench" if "kernelbench" in sweeps else next(iter(sweeps))


def arithmetics(
    dtypes: str | Sequence[str], maths: str | Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the dtypes and the maths that are named. Raises BadInput for one that is not known."""
    return load.known_names("dtype", dtypes, DTYPES), load.known_names("math", maths, MATHS)


def _resolve(
    problem: load.Problem, text: str, sweeps: dict[str, dict[str, Shape]]
) -> Iterator[tuple[str, str, Shape]]:
    sweep, _, label = text.partition("/")
    if text in sweeps:
        yield from ((text, name, shape) for name, shape in sweeps[text].items())
    elif "=" in text:
        yield "custom", text, problem.parse_shape(text)
    elif sweep in sweeps and label in sweeps[sweep]:
        yield sweep, label, sweeps[sweep][label]
    else:
        places = [name for name, rows in sweeps.items() if text in rows]
        if len(places) > 1:
            raise load.BadInput(
                f"shape '{text}' is in several sweeps: say {' or '.join(f'{p}/{text}' for p in places)}"
            )
        if not places:
            labels = {label for rows in sweeps.values() for label in rows}
            if "," in text:
                raise load.BadInput(f"shape '{text}': write --shapes once for each sweep or label")
            raise load.unknown("sweep or shape", text, {*sweeps, *labels})
        yield places[0], text, sweeps[places[0]][text]


def estimate_s(problem: load.Problem, cells: Iterable[Cell], device: str) -> float:
    """Estimate how many seconds a solution's cells take, by the problem's own count of operations."""
    kind = device.partition(":")[0]
    count = None if problem.foreign or kind != "cpu" else getattr(problem.outline, "flops", None)
    return sum(
        ESTIMATE_S[kind] + (count(problem.shape(cell.shape)) / INTERPRETER_FLOPS if count else 0.0)
        for cell in cells
    )


def recorded(request: Request) -> set[tuple[str, str]]:
    """(solution, cell key) pairs that this protocol has recorded for these files, by any versions."""
    found = set()
    for solution in request.solutions:
        paths = (
            [request.output]
            if request.output
            else record.files(request.results, f"*/{request.problem.name}/{solution.name}.jsonl")
        )
        for path in paths:
            cpu = path.parent.parent.name == "cpu"
            if request.output is None and cpu != (request.device == "cpu"):
                continue
            for one in record.read(path)[0]:
                files = (one.problem_digest, one.solution_digest, one.protocol)
                if (
                    files == (request.problem.digest, solution.digest, PROTOCOL)
                    and one.status is not Status.ERROR
                    and suffices(request, one)
                ):
                    found.add((one.solution, one.cell.key))
    return found


def suffices(request: Request, found: Record) -> bool:
    """Whether a record has what a request wants of its cell: times, of as many processes and as narrow.

    A limit that stopped a solution tells nothing of a larger one.
    """
    if found.status in (Status.TIMEOUT, Status.OOM):
        then = _numbers(found.environment.get("limits"))
        return all(value <= then.get(name, _usual(name)) for name, value in granted(request).items())
    if found.timed is not None:
        wanted = request.limits.get("target", TARGET)
        return (
            found.timed.processes >= int(request.limits.get("processes", 1)) and found.timed.target <= wanted
        )
    timeless = request.device == "cpu" or not request.baselines or found.cell.sweep == HIDDEN
    return timeless or found.status is not Status.PASS


def granted(request: Request) -> dict[str, float]:
    """Return a contestant's limits in this request, as its records tell them."""
    return {name: request.limits.get(name, _usual(name)) for name in ("call_s", "memory_bytes")}


def _usual(limit: str) -> float:
    return CALL_S if limit == "call_s" else default_memory_bytes()


def _numbers(value: object) -> dict[str, float]:
    """Take what is a number from what may be any JSON."""
    pairs = value.items() if isinstance(value, dict) else ()
    return {str(name): number for name, number in pairs if isinstance(number, (int, float))}


def default_memory_bytes() -> int:
    """Half of the host's memory, or MEMORY_BYTES where that is less."""
    return min(MEMORY_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") // 2)


def limits(
    *,
    timeout_s: float = CALL_S,
    memory_bytes: int | None = None,
    quick: bool = False,
    ranked: bool = False,
    sms: int = 0,
) -> dict[str, float]:
    """Return a request's `limits`: those of a contestant, and how long and where it is timed."""
    target, timing_s = QUICK_ROUNDS if quick else USUAL_ROUNDS
    return {
        "build_s": 2 * timeout_s,
        "call_s": timeout_s,
        "memory_bytes": default_memory_bytes() if memory_bytes is None else memory_bytes,
        "timing_s": timing_s,
        "target": target,
        "processes": RANKED_PROCESSES if ranked else 1,
        "sms": sms,
    }


def without_timing(request: Request) -> Request:
    """The same request for correctness alone."""
    return dataclasses.replace(request, baselines=())
