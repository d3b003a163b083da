"""The story: problem x solutions x cells -> records."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import jsonl, lint, load, record
from runner.judge_process import Judge, JudgeDied
from runner.plan import Job, Request, granted, suffices
from runner.schema import Failed, Record, Status, to_json
from runner.weigh import card_of, make_record

#: The stage of a cell that fails for its solution's text, which is then read by nobody else.
TEXT = "lint"
_MAX_JUDGE_DEATHS = 3


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
    """All records of the request that exist now, `resumed` of them from before, and what was left to run."""

    records: tuple[Record, ...]
    left: int
    problems: tuple[str, ...]
    resumed: int = 0


class HarnessFailure(Exception):
    """The harness itself cannot go on."""


def run(request: Request, watch: Callable[[Event], None]) -> Outcome:
    """Run what is not recorded yet; each record is on the disk before it is shown."""
    with _alone(request):
        return _Run(request, watch).go()


def _alone(request: Request) -> AbstractContextManager[None]:
    """Hold what the run writes to; with an output that is all it reads, too."""
    if request.output is None:
        return record.lock_results(request.results, _elsewhere(request))
    jsonl.require(request.output)
    return record.lock_output(request.output, _elsewhere(request))


def _elsewhere(request: Request) -> str:
    return "-o FILE" if request.output is None else "another -o FILE"


class _Run:
    def __init__(self, request: Request, watch: Callable[[Event], None]) -> None:
        self.request, self.watch = request, watch
        self.judge: Judge | None = None
        self.gpu: str | None = None
        self.deaths = 0
        self.problems: list[str] = []

    def go(self) -> Outcome:
        try:
            environment = {**self._judge().environment, "limits": granted(self.request)}
            require_sms(int(self.request.limits.get("sms", 0)), environment)
            card = card_of(environment, int(self.request.limits.get("sms", 0)))
            known = {} if self.request.rerun else self._known(card)
            return self._jobs(environment, card, known)
        finally:
            if self.judge is not None:
                self.judge.close()

    def _jobs(self, environment: dict[str, Any], card: str, known: dict[str, Record]) -> Outcome:
        request = self.request
        jobs = request.jobs
        records: list[Record] = []
        resumed, left = 0, 0
        begun = time.monotonic()
        for index, job in enumerate(jobs):
            found = known.get(_key(request.problem, job, card, environment))
            if found is not None and suffices(request, found):
                records.append(found)
                resumed += 1
                self.watch(Event(index, len(jobs), job, found, resumed=True))
                continue
            if request.budget_s is not None and time.monotonic() - begun > request.budget_s:
                left = len(jobs) - index
                break
            self.watch(Event(index, len(jobs), job))
            made, lost = self._job(job, environment, card)
            record.append(self._path(card, job), made, _elsewhere(request))
            records.append(made)
            self.watch(Event(index, len(jobs), job, made))
            if lost is not None:
                self._count_death(lost)
        return Outcome(tuple(records), left, tuple(self.problems), resumed)

    def _judge(self) -> Judge:
        if self.judge is None:
            try:
                self.judge = Judge(self.request.device)
            except JudgeDied as error:
                raise HarnessFailure(f"the judge does not start on {self.request.device}: {error}") from error
            gpu = self.judge.environment.get("uuid", "")
            if self.gpu not in (None, gpu):
                raise HarnessFailure(f"{self.request.device} is another GPU since one was lost: run again")
            self.gpu = gpu
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
            found, problems = record.read(path)
            self.problems += problems
            known |= record.done(found)
        return known

    def _job(self, job: Job, environment: dict[str, Any], card: str) -> tuple[Record, str | None]:
        """Return what is found, and why the judge is gone or has no GPU, if so; None if it was not asked."""
        refused = refusal(job)
        if refused is not None:
            ruling = {"failed": to_json(refused)}
            return make_record(self.request.problem, job, environment, card, ruling, ""), None
        try:
            answer = self._judge().ask(_question(self.request, job))
        except JudgeDied as error:
            failed = to_json(Failed(Status.ERROR, "judge", str(error)))
            answer = {"ruling": {"failed": failed}, "entropy": "", "lost": str(error)}
        ruling, entropy = answer["ruling"], answer["entropy"]
        return make_record(self.request.problem, job, environment, card, ruling, entropy), answer["lost"]

    def _count_death(self, lost: str) -> None:
        """Have the next cell ask a new judge if this one is gone, or has no GPU."""
        if not lost:
            self.deaths = 0
            return
        if self.judge is not None:
            self.judge.close()
            self.judge = None
        self.deaths += 1
        if self.deaths >= _MAX_JUDGE_DEATHS:
            raise HarnessFailure(f"the judge died {self.deaths} times in a row: {lost}")


def require_sms(sms: int, environment: dict[str, Any]) -> None:
    """Refuse, by BadInput, to emulate a part of the GPU that is no part of it."""
    if sms and environment["device"] == "cpu":
        raise load.BadInput(f"--sms {sms} restricts a GPU: name one with --device cuda:N")
    if sms and sms >= environment["sms"]:
        raise load.BadInput(
            f"--sms {sms} is no part of {environment['gpu']} with its {environment['sms']} SMs"
        )


def flaw(solution: load.Solution) -> lint.Finding | None:
    """The first error in a solution's text, for which none of its cells can be run."""
    return next((one for one in lint.lint(solution.source) if one.severity == lint.ERROR), None)


def refusal(job: Job) -> Failed | None:
    """What needs no contestant: a text that is no solution, a cell that it does not declare."""
    error = flaw(job.solution)
    if error is not None:
        return Failed(Status.BUILD, TEXT, f"line {error.line}: {error.message}")
    if not lint.read_header(job.solution.source).covers(job.cell):
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
