"""fp32 accuracy over long reductions, with sums as a tensor core keeps them.

The error of such a sum grows with its length, so a solution that is right on small layers may not be on deep
ones: on an H100 the judge refused one over 1440 products. One child, this file run as a script, computes all
cases in Triton's interpreter with the runner's emulation, and the tests read its answer.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner import lint, load
from runner.arithmetic import FP32_ERROR

ROOT = Path(__file__).parents[1]
#: Problem -> a layer with few outputs, sums of up to 1440 products or more.
DEEP = {
    "conv1d": {"in_channels": 512, "out_channels": 16, "length": 8, "kernel_size": 3},
    "conv2d": {"in_channels": 160, "out_channels": 16, "height": 4, "width": 5, "kernel_size": 3},
    "conv3d": {"in_channels": 64, "out_channels": 16, "depth": 3, "height": 4, "width": 3, "kernel_size": 3},
    "convtranspose1d": {"in_channels": 512, "out_channels": 16, "length": 8, "kernel_size": 3},
    "convtranspose2d": {"in_channels": 160, "out_channels": 16, "height": 4, "width": 5, "kernel_size": 3},
    "convtranspose3d": {"in_channels": 64, "out_channels": 16, "depth": 3, "height": 4, "width": 3},
    "separable_conv2d": {"in_channels": 1536, "out_channels": 16, "height": 3, "width": 3},
}
#: Takes the interpreter half a minute, for the programs of 1536 channels; `fused_gemm` has the same product.
SLOW = {("separable_conv2d", "two_pass")}
PLAIN = {"batch": 1, "stride": 1, "padding": 0, "dilation": 1}
CASES = [
    (problem, solution)
    for problem in DEEP
    for solution in load.solution_names(problem)
    if (problem, solution) not in SLOW
    and "fp32" in lint.read_header(load.find_solution(solution, problem).source).maths
]


def error(problem: str, solution: str) -> float:
    """Run a solution on its problem's deep layer; returns the relative error of the norm."""
    reference = load.find_problem(problem).module()
    shape = reference.Shape(**PLAIN | DEEP[problem])
    init = reference.get_init_inputs(shape)
    torch.manual_seed(0)
    inputs = [torch.randn_like(x) for x in reference.get_inputs(shape)]
    model = reference.Model(*init)
    namespace: dict[str, object] = {"__name__": solution}
    file = load.find_solution(solution, problem).path
    exec(compile(file.read_text(), file, "exec"), namespace)  # noqa: S102 - one of ours
    torch.backends.cudnn.allow_tf32 = False
    candidate = namespace["ModelNew"](*init)  # type: ignore[operator] # a class, as lint knows
    candidate.load_state_dict(dict(zip(candidate.state_dict(), model.state_dict().values(), strict=True)))
    with torch.no_grad():
        exact = model.double()(*(x.double() for x in inputs))
        return float((candidate(*inputs).double() - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    # a process of its own: TRITON_INTERPRET counts when triton is imported
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=False)
    done = run(command, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("problem", "solution"), CASES)
def test_a_long_sum_is_as_good_as_fp32(problem: str, solution: str, errors: dict[str, float]) -> None:
    assert errors[f"{problem}/{solution}"] < FP32_ERROR


def main() -> None:
    """Print the error of every case."""
    from runner.contestant import emulate

    emulate.install()
    print(json.dumps({f"{problem}/{solution}": error(problem, solution) for problem, solution in CASES}))


if __name__ == "__main__":
    main()
