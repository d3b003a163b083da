"""What is timed is checked too: the first call and the last in full, one in sixteen, others by a slice."""

from __future__ import annotations

import random

import torch

from runner.judge import check
from runner.judge.bench import Bench
from runner.judge.contestants import Foul
from runner.schema import Status

FULL_CHECK_EVERY = 16


class Inspector:
    """Holds the snapshots of one variant's calls against the oracle."""

    def __init__(self, bench: Bench, variant: str) -> None:
        self.bench, self.variant = bench, variant
        self.rng = random.SystemRandom()
        self.seen = 0
        self.checked = 0

    def inspect(self, calls: int, *, thorough: bool = False) -> None:
        """Check one of the calls just made, chosen after the fact, or raise Foul."""
        full = thorough or self.seen == 0 or self.rng.randrange(FULL_CHECK_EVERY) == 0
        self.seen += 1
        case, call = self.bench.case, self.rng.randrange(calls)
        if not full and case.reached is None:
            return
        sample = None if full else self.rng.randrange(len(case.expected[0]))
        self.hold(check.Tally(), call, sample)
        self.checked += 1

    def hold(self, tally: check.Tally, call: int = 0, sample: int | None = None) -> None:
        """Hold one call's snapshot against the oracle, all of it or one sample; raises Foul."""
        bench, case = self.bench, self.bench.case
        bench.require_intact_inputs(self.variant, call + 1)
        count = len(case.expected)
        outputs = bench.snapshots[call * count : (call + 1) * count]
        inputs = case.inputs.views(bench.master, call * case.inputs.size)
        if sample is not None:
            part = slice(sample, sample + 1)
            outputs = [y[part] for y in outputs]
            inputs = [x[part] if isinstance(x, torch.Tensor) else x for x in inputs]
        check.compare(outputs, inputs, case.oracle, case.reached, case.generator, tally)
        if tally.wrong:
            raise Foul(Status.WRONG, "check", tally.wrong)
