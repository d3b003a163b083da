"""Who is alive: a contestant for each solution, and the trusted one that holds the baselines.

Neighbouring cells share them; the trusted one stays built while several solutions run on one cell.
"""

from __future__ import annotations

from typing import Any

import torch

from runner import load
from runner.judge.bench import Limits, NoBaseline
from runner.judge.case import Case
from runner.judge.contestants import Contestant, Foul
from runner.judge.zygotes import NoFork, Zygotes

#: Each keeps a CUDA context between its cells (0.7 GB on an H200); a fork cost less than a second there.
MAX_CONTESTANTS = 4


class Company:
    """The contestants of one judge."""

    def __init__(self, device: str, limits: Limits, *, confined: bool = True) -> None:
        self.limits = limits
        self.zygotes = Zygotes(device, confined=confined)
        self._contestants: dict[str, Contestant] = {}
        self._trusted: Contestant | None = None
        self._trusted_for: tuple[Case, tuple[str, ...]] | None = None

    def contestant(self, solution: load.Solution, role: str = "solution") -> Contestant:
        """The solution's own process in a role, forked if there is none."""
        key = f"{role} {solution.digest}"
        known = self._contestants.pop(key, None)
        if known is not None and known.is_orphan:
            known.close()
            known = None
        if known is None:
            while len(self._contestants) >= MAX_CONTESTANTS:
                self._contestants.pop(next(iter(self._contestants))).close()
            known = self._forked()
        self._contestants[key] = known  # the last one used stands last
        return known

    def _forked(self) -> Contestant:
        """Fork a contestant; where that cannot be, without the others, who may hold what it needs."""
        try:
            return Contestant(self.zygotes, self.limits.memory_bytes)
        except NoFork:
            for other in self._contestants.values():
                other.close()
            self._contestants.clear()
            return Contestant(self.zygotes, self.limits.memory_bytes)

    @property
    def pids(self) -> list[int]:
        """The processes that are alive."""
        trusted = [] if self._trusted is None else [self._trusted]
        return [contestant.pid for contestant in (*self._contestants.values(), *trusted)]

    def dismiss(self, solution: load.Solution, role: str = "solution") -> str:
        """Kill a solution's process; returns the end of what it printed."""
        contestant = self._contestants.pop(f"{role} {solution.digest}", None)
        return "" if contestant is None else contestant.close()

    def leave(self, solution: load.Solution, role: str = "solution") -> None:
        """Have a solution's process, if it lives, drop the cell."""
        contestant = self._contestants.get(f"{role} {solution.digest}")
        if contestant is not None:
            contestant.leave(self.limits.call_s)

    def build(self, case: Case, contestant: Contestant, job: dict[str, Any]) -> float | None:
        """Build a job in a contestant and hand it the parameters; returns what `prepare` took, in us."""
        blocks = 2 if case.device.type == "cuda" else 3
        contestant.build({**job, "sms": self.limits.sms}, blocks, self.limits.build_s)
        for item in case.parameters.tensors:
            item.view(contestant.blocks[0]).copy_(case.state[item.name])
        if case.device.type == "cuda":
            torch.cuda.synchronize()
        return contestant.load(self.limits.build_s)

    def trusted(self, case: Case, baselines: tuple[str, ...]) -> Contestant:
        """The baselines' process, built for the case; raises NoBaseline."""
        if self._trusted is not None and self._trusted.is_orphan:
            self.drop_trusted()
        if self._trusted is not None and self._trusted_for == (case, baselines):
            return self._trusted
        self.release_trusted()
        try:
            if self._trusted is None:
                self._trusted = Contestant(self.zygotes, self.limits.memory_bytes)
            source, digest = case.problem.source, case.problem.digest
            self.build(case, self._trusted, case.job(source, digest, "reference", "Model", baselines))
        except Foul as foul:
            raise NoBaseline(foul) from foul
        self._trusted_for = case, baselines
        return self._trusted

    def release_trusted(self) -> None:
        """Have the baselines drop their cell."""
        if self._trusted is not None and self._trusted_for is not None:
            try:
                self._trusted.leave(self.limits.call_s)
            except Foul:
                self.drop_trusted()
        self._trusted_for = None

    def drop_trusted(self) -> None:
        """Kill the baselines' process."""
        if self._trusted is not None:
            self._trusted.close()
        self._trusted = self._trusted_for = None

    def close(self) -> None:
        """Let all processes go."""
        for contestant in self._contestants.values():
            contestant.close()
        self.drop_trusted()
        self.zygotes.close()
