"""An honest TF32 answer of few output channels is no matter of luck.

Under tiny inputs a second layer's outputs are what it makes of the first one's bias: one number a channel.
With one channel thousands of errors are then one, of the answer as of the class that it is held against.
"""

from __future__ import annotations

import random

import torch
from torch.nn import functional

from runner import load, plan
from runner.judge import check
from runner.judge.case import Case

PROBLEM = load.find_problem("separable_conv2d")
#: As `ragged/many-to-one`, of fewer pixels.
SHAPE = "batch=2,in_channels=233,out_channels=1,height=15,width=17,bias=true"
DRAWS = 100


def nearest(values: torch.Tensor) -> torch.Tensor:
    """Round to nearest TF32, as a kernel does that does not leave it to the tensor core."""
    bits = values.float().contiguous().view(torch.int32)
    return (bits + 0x1000 & ~0x1FFF).view(torch.float32).double()


def share_of_budget(seed: int) -> float:
    """Return how much of its budget an answer takes whose operands of the second layer are rounded."""
    (cell,) = plan.plan_cells(PROBLEM, (SHAPE,), ("fp32",), ("tf32",), "cpu", 128)
    entropy = random.Random(seed).randbytes(16)  # noqa: S311 - repeatable on purpose
    case = Case(PROBLEM, cell, torch.device("cpu"), entropy)
    block, tally = torch.empty(case.inputs.size, dtype=torch.uint8), check.Tally()
    case.draw(1, block, 1)
    inputs = case.inputs.views(block)
    exact = case.oracle.exact
    with torch.inference_mode():
        between = nearest(exact.depthwise(inputs[0].double()))
        answer = functional.conv2d(between, nearest(exact.pointwise.weight), exact.pointwise.bias).float()
    check.compare([answer], inputs, case.oracle, case.reached, case.generator, tally)
    (error,) = tally.errors
    return max(error.normwise / error.normwise_budget, error.elementwise / error.elementwise_budget)


def test_operands_rounded_to_nearest_are_within_the_budget_of_tf32() -> None:
    shares = sorted(map(share_of_budget, range(DRAWS)))
    assert shares[-1] < 1, f"{sum(share >= 1 for share in shares)} of {DRAWS} are refused"
