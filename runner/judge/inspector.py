"""What is timed is checked too: the first call and the last in full, one in sixteen, others by a slice.

Where nobody knows that samples are independent there is no slice: every second call is checked in full, or
one in sixteen where that takes long.
"""

from __future__ import annotations

import random
import time

import torch

from runner.judge import check
from runner.judge.bench import Bench
from runner.judge.case import make_room
from runner.judge.contestants import Foul
from runner.schema import Status

FULL_CHECK_EVERY = 16
#: Where there are no slices, if a check takes no longer than this.
UNSLICED_CHECK_EVERY, UNSLICED_CHECK_S = 2, 0.25
#: What products of operands of 10 bits lose, relative to a slice, and more than fp32's may.
_OF_TF32 = (2e-5, 2e-3)


class Inspector:
    """Holds the snapshots of one variant's calls against the oracle."""

    def __init__(self, bench: Bench, variant: str) -> None:
        self.bench, self.variant = bench, variant
        self.rng = random.SystemRandom()
        self.seen = 0
        self.checked = 0
        self.took_s = 0.0
        self.cramped = False  # some calls could not be checked

    def inspect(self, calls: int, *, thorough: bool = False) -> None:
        """Check one of the calls just made, chosen after the fact, or raise Foul."""
        case, call = self.bench.case, self.rng.randrange(calls)
        often = case.reached is None and self.took_s <= UNSLICED_CHECK_S
        every = UNSLICED_CHECK_EVERY if often else FULL_CHECK_EVERY
        full = thorough or self.seen == 0 or self.rng.randrange(every) == 0
        self.seen += 1
        if not full and case.reached is None:
            return
        sample = None if full else self.rng.randrange(len(case.expected[0]))
        begun_s = time.monotonic()
        try:
            self.hold(check.Tally(), call, sample)
            self.checked += 1
        except torch.OutOfMemoryError:  # beside a baseline; the first call and the last have more
            if thorough:
                raise
            self.cramped = True
        self.took_s = time.monotonic() - begun_s
        if case.reached is None:
            make_room(case.device)

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
            raise Foul(Status.WRONG, "check", f"{tally.wrong}{_how_far(tally, case.cell.arithmetic)}")


def _how_far(tally: check.Tally, arithmetic: str) -> str:
    """Tell the relative error where one was measured, and whose it could be."""
    measured = [one for one in tally.errors if one.population != "structural"]
    if tally.share <= 1.0 or not measured:
        return ""
    worst = max(measured, key=lambda one: one.normwise / one.normwise_budget)
    told = f", a relative error of {worst.normwise:.2g}, {tally.share:.2g} x budget"
    least, most = _OF_TF32
    like_tf32 = arithmetic == "fp32" and least < worst.normwise < most
    return f"{told}{'; TF32 loses as much, and this cell is to be exact in fp32' if like_tf32 else ''}"
