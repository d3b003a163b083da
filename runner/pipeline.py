"""The story: problem x solutions x cells -> records."""

from __future__ import annotations

import dataclasses
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from runner import cards, lint, load, record, roofline, waves
from runner.decode import decode
from runner.judge_process import Judge, JudgeDied
from runner.schema import (
    HIDDEN,
    PROTOCOL,
    SCHEMA,
    Cell,
    Checked,
    Failed,
    Record,
    Shape,
    Status,
    Timed,
    digest,
    to_json,
)

#: The suite's target; its waves are what the sweep `waves` places shapes for where no card is known.
TARGET_CARD = "rtx4090"
DEFAULT_SWEEPS = {"cpu": ("smoke",), "cuda": ("kernelbench", "layers", "ragged", "waves")}
#: A call whose issuing takes this share of its time is bound by the host: shown, not ranked.
LAUNCH_BOUND_SHARE = 0.8
#: The judge's bound of one window and a claim may differ by this, in us, for honest kernels.
CLAIM_NOISE_US = 60.0
#: A dry run's estimate of a cell, in seconds, from runs on two cores and on an H200.
ESTIMATE_S = {"cpu": 0.6, "cuda": 3.0}
_MAX_JUDGE_DEATHS = 3


@dataclass(frozen=True)
class Job:
    """One solution on one cell."""

    solution: load.Solution
    cell: Cell


@dataclass(frozen=True)
class Request:
    """What a run is asked to do. `limits` are the judge's, in seconds and log ratio."""

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


@dataclass(frozen=True)
class Event:
    """Progress: a job begins, or has its record (run now, or found from an earlier run)."""

    index: int
    total: int
    job: Job
    record: Record | None = None
    resumed: bool = False


@dataclass(frozen=True)
class Outcome:
    """All records of the request that exist now, and what was left for another run."""

    records: tuple[Record, ...]
    left: int
    problems: tuple[str, ...]


class HarnessFailure(Exception):
    """The harness itself cannot go on."""


def plan_cells(
    problem: load.Problem,
    shapes: Sequence[str],
    dtypes: Sequence[str],
    maths: Sequence[str],
    device: str,
    sms: int,
) -> tuple[Cell, ...]:
    """Resolve `--shapes` (sweeps, labels, `k=v,...`) in every arithmetic asked for."""
    sweeps = problem.sweeps(sms)
    rows = [row for text in shapes for row in _resolve(problem, text, sweeps)]
    if not shapes:
        wanted = DEFAULT_SWEEPS[device.partition(":")[0]] if not problem.foreign else tuple(sweeps)
        rows = [
            (name, label, shape) for name in wanted if name in sweeps for label, shape in sweeps[name].items()
        ]
        hidden = problem.hidden_shape(random.SystemRandom())
        rows += [(HIDDEN, "drawn", hidden)] if hidden is not None else []
    cells = [
        Cell(sweep, label, shape, dtype, math)
        for sweep, label, shape in rows
        for dtype in dtypes
        for math in (maths if dtype == "fp32" else maths[:1])
    ]
    return tuple({c.key: c for c in cells}.values())


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
            raise load.unknown("sweep or shape", text, {*sweeps, *labels})
        yield places[0], text, sweeps[places[0]][text]


def recorded(request: Request) -> set[tuple[str, str]]:
    """(solution, cell key) pairs that this protocol has recorded for these files, by any versions."""
    found = set()
    for solution in request.solutions:
        paths = (
            [request.output]
            if request.output
            else request.results.glob(f"*/{request.problem.name}/{solution.name}.jsonl")
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
                ):
                    found.add((one.solution, one.cell.key))
    return found


def without_timing(request: Request) -> Request:
    """The same request for correctness alone."""
    return dataclasses.replace(request, baselines=())


def run(request: Request, watch: Callable[[Event], None]) -> Outcome:
    """Run what is not recorded yet; each record is on the disk before it is shown."""
    with record.lock_results(request.results):
        return _Run(request, watch).go()


class _Run:
    def __init__(self, request: Request, watch: Callable[[Event], None]) -> None:
        self.request, self.watch = request, watch
        self.judge: Judge | None = None
        self.deaths = 0
        self.problems: list[str] = []

    def go(self) -> Outcome:
        try:
            environment = self._judge().environment
            card = card_of(environment)
            known = {} if self.request.rerun else self._known(card)
            return self._jobs(environment, card, known)
        finally:
            if self.judge is not None:
                self.judge.close()

    def _jobs(self, environment: dict[str, Any], card: str, known: dict[str, Record]) -> Outcome:
        request = self.request
        jobs = request.jobs
        records: list[Record] = []
        begun = time.monotonic()
        for index, job in enumerate(jobs):
            found = known.get(_key(request.problem, job, card, environment))
            if found is not None:
                records.append(found)
                self.watch(Event(index, len(jobs), job, found, resumed=True))
                continue
            if request.budget_s is not None and time.monotonic() - begun > request.budget_s:
                return Outcome(tuple(records), len(jobs) - index, tuple(self.problems))
            self.watch(Event(index, len(jobs), job))
            made = self._job(job, environment, card)
            record.append(self._path(card, job), made)
            records.append(made)
            self.watch(Event(index, len(jobs), job, made))
        return Outcome(tuple(records), 0, tuple(self.problems))

    def _judge(self) -> Judge:
        if self.judge is None:
            try:
                self.judge = Judge(self.request.device)
            except JudgeDied as error:
                raise HarnessFailure(f"the judge does not start on {self.request.device}: {error}") from error
        return self.judge

    def _path(self, card: str, job: Job) -> Path:
        if self.request.output is not None:
            return self.request.output
        return record.results_path(self.request.results, card, self.request.problem.name, job.solution.name)

    def _known(self, card: str) -> dict[str, Record]:
        known: dict[str, Record] = {}
        for path in {
            self._path(card, Job(s, c)) for s in self.request.solutions for c in self.request.cells[:1]
        }:
            if path.is_file():
                found, problems = record.read(path)
                self.problems += problems
                known |= {record.resume_key(r): r for r in found if r.status is not Status.ERROR}
        return known

    def _job(self, job: Job, environment: dict[str, Any], card: str) -> Record:
        refusal = _refuse(job)
        if refusal is not None:
            return make_record(self.request.problem, job, environment, card, {"failed": to_json(refusal)}, "")
        try:
            answer = self._judge().ask(_question(self.request, job))
            self.deaths = 0
        except JudgeDied as error:
            self.judge = None
            self.deaths += 1
            if self.deaths >= _MAX_JUDGE_DEATHS:
                raise HarnessFailure(f"the judge died {self.deaths} times in a row: {error}") from error
            failed = to_json(Failed(Status.ERROR, "judge", str(error)))
            answer = {"ruling": {"failed": failed}, "entropy": ""}
        return make_record(self.request.problem, job, environment, card, answer["ruling"], answer["entropy"])


def _refuse(job: Job) -> Failed | None:
    """What needs no contestant: a text that is no solution, a cell that it does not declare."""
    errors = [f for f in lint.lint(job.solution.source) if f.severity == lint.ERROR]
    if errors:
        return Failed(Status.BUILD, "lint", f"line {errors[0].line}: {errors[0].message}")
    header = lint.read_header(job.solution.source)
    if job.cell.dtype not in header.dtypes or (
        job.cell.dtype == "fp32" and job.cell.math not in header.maths
    ):
        return Failed(Status.NOT_COVERED, "plan", f"the solution does not declare {job.cell.arithmetic}")
    return None


def _question(request: Request, job: Job) -> dict[str, Any]:
    return {
        "problem": str(request.problem.path),
        "name": request.problem.name,
        "solution": {
            "name": job.solution.name,
            "path": str(job.solution.path),
            "source": job.solution.source,
        },
        "cell": to_json(job.cell),
        "baselines": request.baselines if request.device != "cpu" else (),
        "limits": request.limits,
    }


def _key(problem: load.Problem, job: Job, card: str, environment: dict[str, Any]) -> str:
    return record.planned_key(
        problem=problem.name,
        problem_digest=problem.digest,
        solution=job.solution.name,
        solution_digest=job.solution.digest,
        cell=job.cell,
        card=card,
        environment=environment,
    )


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
