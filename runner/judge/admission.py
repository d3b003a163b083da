"""Admission: on a shape, does every wrong answer fail and every honest one pass, and what does matter.

Run as a process of its own: `{"problem": PATH, "name": NAME, "cell": {...}}` on standard input, a line each,
is answered by an `Admission` as JSON. Nothing here is foreign: the answers come from the reference.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch

from runner import load
from runner.admit import Admission, judge_digest, problem_digest
from runner.contestant import libc
from runner.judge import check, fake_layers, fakes
from runner.judge.case import Case, shortage
from runner.judge.fakes import Asked, NotApplicable, is_floating
from runner.judge.oracle import Oracle
from runner.judge.referee import CHECK_CALLS
from runner.schema import Cell, to_json

T = TypeVar("T")
#: Why a fake that equals the truth in every call is none.
RIGHT = "the right answer here"
#: Samples are judged one by one, so a few stand for all.
SAMPLES = 2
#: Single elements of each tensor that are left out, to see whether the comparator notices.
PROBES = 4


class _Remembering(Oracle):
    """An oracle that works out an answer once: all fakes of a call are held against the same."""

    def __init__(self, case: Case) -> None:
        module = case.problem.module()
        super().__init__(
            lambda: module.Model(*case.init),
            case.state,
            case.dtype,
            case.cell.arithmetic,
            composed=case.oracle.composed,
        )
        self._known: dict[Any, Any] = {}

    def truth(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        compute = super().truth
        truth: list[torch.Tensor] = self._once("truth", inputs, lambda: compute(inputs))
        return truth

    def observed(self, inputs: Sequence[Any]) -> list[torch.Tensor] | None:
        compute = super().observed
        observed: list[torch.Tensor] | None = self._once("observed", inputs, lambda: compute(inputs))
        return observed

    def class_model(self, inputs: Sequence[Any], generator: torch.Generator, draw: int) -> list[torch.Tensor]:
        compute = super().class_model
        model: list[torch.Tensor] = self._once(
            f"class {draw}", inputs, lambda: compute(inputs, generator, draw)
        )
        return model

    def _once(self, what: str, inputs: Sequence[Any], compute: Callable[[], Any]) -> Any:
        """Inputs are told apart by where they lie: nobody writes there again."""
        key = (what, *((v.data_ptr(), v.shape) for v in inputs if isinstance(v, torch.Tensor)))
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


class Trial:
    """One cell's calls as a real check makes them, and the judge's opinion of answers."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.oracle = _Remembering(case)
        drawn = [self._inputs(index) for index in range(CHECK_CALLS + 1)]
        truths = [self.oracle.truth(inputs) for inputs in drawn]
        # the last is drawn as a timed call is; wrong answers have to fail before there is one
        self.calls = [
            Asked(self.oracle, inputs, truths[i], truths[0], truths[i - 1]) for i, inputs in enumerate(drawn)
        ]
        self.matters = _matters(self.oracle, self.calls[0].inputs, one=case.reached is not None)

    def _inputs(self, index: int) -> list[Any]:
        """Draw as the referee does: the problem's own inputs, extreme scales in turn, at last the mixture."""
        case = self.case
        block = torch.zeros(case.inputs.size, dtype=torch.uint8, device=case.device)
        if index == 0:
            case.draw_own(block)
        else:
            case.draw(1, block, index - 1 if index < CHECK_CALLS else None)
        few = slice(None) if case.reached is None else slice(SAMPLES)
        return [v[few].clone() if isinstance(v, torch.Tensor) else v for v in case.inputs.views(block)]

    def _expected(self) -> list[torch.Tensor]:
        few = slice(None) if self.case.reached is None else slice(SAMPLES)
        return [y if y.dim() == 0 else y[few] for y in self.case.expected]

    def rounded(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Round outputs to the dtypes that are asked for."""
        return [y.to(want.dtype) for y, want in zip(outputs, self._expected(), strict=True)]

    def complaint(self, asked: Asked, outputs: Sequence[torch.Tensor]) -> str:
        """What the judge says against an answer to one call; empty if nothing."""
        facts = [(str(y.dtype).removeprefix("torch."), tuple(y.shape), y.stride()) for y in outputs]
        wrong = check.form(facts, self._expected())
        if wrong:
            return wrong
        tally, generator = check.Tally(), self.case.generator
        check.compare(outputs, asked.inputs, self.oracle, self.case.reached, generator, tally)
        return tally.wrong

    def refuses(self, fake: fakes.Answer) -> bool:
        """Whether a fake fails in one of the checked calls. Raises NotApplicable if it is none."""
        same = True
        for asked in self.calls[:CHECK_CALLS]:
            outputs = self.rounded(fake(asked))
            if self.complaint(asked, outputs):
                return True
            same &= all(map(torch.equal, outputs, self.rounded(asked.truth)))
        if same:
            raise NotApplicable(RIGHT)
        return False

    def spoils(self, spoil: fakes.Spoil) -> bool:
        """Whether right values in a wrong form fail in the first call."""
        asked = self.calls[0]
        return bool(self.complaint(asked, spoil(self.rounded(asked.truth))))

    def complaint_of(self, answer: fakes.Answer) -> str:
        """What the judge says against an honest answer, in any call."""
        found = (self.complaint(asked, self.rounded(answer(asked))) for asked in self.calls)
        return next(filter(None, found), "")


def _matters(oracle: Oracle, inputs: Sequence[Any], *, one: bool) -> dict[str, torch.Tensor]:
    """Which elements of each input and parameter move any output, `one` sample standing for all.

    Such an element has a gradient, unless it matters for other values only than those that were drawn.
    """
    model = copy.deepcopy(oracle.exact)
    arguments = [v[:1] if one and isinstance(v, torch.Tensor) else v for v in inputs]
    arguments = [v.double().requires_grad_() if is_floating(v) else v for v in arguments]
    leaves: dict[str, torch.Tensor] = {name: p.requires_grad_() for name, p in model.named_parameters()}
    leaves |= {f"input{i}": v for i, v in enumerate(arguments) if is_floating(v)}
    result = model(*arguments)
    outputs = [result] if isinstance(result, torch.Tensor) else result
    # weights, no two alike: a normalised output has a constant sum
    moved = [(y * torch.rand_like(y)).sum() for y in outputs if y.requires_grad]
    if not moved:
        return {name: torch.zeros_like(leaf) != 0 for name, leaf in leaves.items()}
    gradients = torch.autograd.grad(moved, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {name: gradient != 0 for name, gradient in zip(leaves, gradients, strict=True)}


def _about(problem: load.Problem, cell: Cell, device: torch.device) -> Admission:
    """Say what is held against what, where; nothing has been tried yet."""
    digests = (problem_digest(problem), judge_digest())
    return Admission(problem.name, *digests, cell, str(device), torch.__version__)


def admit(problem: load.Problem, cell: Cell, device: torch.device) -> Admission:
    """Hold the whole battery against one cell."""
    about = _about(problem, cell, device)
    reason = shortage(problem, cell, device)
    if reason:
        return replace(about, unsupported=reason)
    # the same draws each time, so that a record can be computed again
    case = Case(problem, cell, device, hashlib.sha256(f"{problem.name}/{cell.key}".encode()).digest()[:16])
    trial = Trial(case)
    outcomes = dict(_wrong(trial))
    honest = dict(_honest(trial))
    absent: dict[str, list[str]] = {}
    for name, outcome in (outcomes | honest).items():
        if isinstance(outcome, NotApplicable):
            absent.setdefault(str(outcome), []).append(name)
    return replace(
        about,
        refused=tuple(name for name, outcome in outcomes.items() if outcome is True),
        accepted=tuple(name for name, outcome in outcomes.items() if outcome is False),
        honest=sum(outcome == "" for outcome in honest.values()),
        slandered={name: said for name, said in honest.items() if isinstance(said, str) and said},
        not_applicable={reason: tuple(names) for reason, names in absent.items()},
        sensitivity=dict(_sensitivity(trial)),
    )


def _wrong(trial: Trial) -> Iterator[tuple[str, bool | NotApplicable]]:
    """Try all fakes: the name, and whether it was refused or why it is none."""
    case = trial.case
    ignorant = fake_layers.ignorant(trial.oracle.exact, trial.matters)
    incomplete = fakes.incomplete(max(y.dim() for y in case.expected))
    imprecise = fake_layers.imprecise(case.cell.arithmetic, wide=case.shape is not None)
    forgetful = fake_layers.forgetful(trial.oracle.exact, trial.matters)
    for name, fake in chain(fakes.constant(), forgetful):
        outcome = _try(partial(trial.refuses, fake))
        # that an input or a parameter hardly matters to a right answer is what these are there to find
        right = isinstance(outcome, NotApplicable) and str(outcome) == RIGHT
        yield name, False if right else outcome
    for name, fake in chain(incomplete, ignorant, imprecise):
        yield name, _try(partial(trial.refuses, fake))
    for name, spoil in fakes.spoiled():
        yield name, _try(partial(trial.spoils, spoil))


def _honest(trial: Trial) -> Iterator[tuple[str, str | NotApplicable]]:
    for name, answer in fake_layers.honest(trial.case.cell.arithmetic):
        yield name, _try(partial(trial.complaint_of, answer))


def _try(attempt: Callable[[], T]) -> T | NotApplicable:
    try:
        return attempt()
    except NotApplicable as reason:
        return reason


def _sensitivity(trial: Trial) -> Iterator[tuple[str, tuple[float, int, int]]]:
    """Of each tensor: the share that matters, how often the judge noticed a missing element, of how many."""
    for name, used in trial.matters.items():
        places = used.nonzero()
        share = round(len(places) / used.numel(), 4)
        size, generator = (PROBES,), trial.case.generator
        chosen = torch.randint(max(1, len(places)), size, generator=generator, device=used.device)
        probes = [tuple(place) for place in places[chosen].tolist()] if len(places) else []
        outcomes = [_try(partial(trial.refuses, fake_layers.without(name, place))) for place in probes]
        noticed = sum(outcome is True for outcome in outcomes)
        yield name, (share, noticed, noticed + sum(outcome is False for outcome in outcomes))


def _answer(line: str, device: torch.device) -> Admission:
    request = json.loads(line)
    path = Path(request["problem"])
    shape = {k: tuple(v) if isinstance(v, list) else v for k, v in request["cell"].pop("shape").items()}
    problem = load.Problem(request["name"], path, load.read_source(path))
    cell = Cell(shape=shape, **request["cell"])
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        return admit(problem, cell, device)
    except torch.OutOfMemoryError as error:
        reason = f"the judge ran out of device memory: {str(error)[:200]}"
        return replace(_about(problem, cell, device), unsupported=reason)


def main() -> None:
    """Serve requests until standard input ends."""
    libc.die_with_parent()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing but answers may reach the command line
    device = torch.device(sys.argv[1])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for line in sys.stdin:
        print(json.dumps(to_json(_answer(line, device))), file=out)


if __name__ == "__main__":
    main()
