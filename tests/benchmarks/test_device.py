"""The second stopwatch: solutions and PyTorch on a GPU, by pytest-benchmark with a clock of device time.

`python -m pytest -m gpu tests/benchmarks/test_device.py --benchmark-enable --benchmark-autosave`, and
`pytest-benchmark compare` of what that saves. Sides are timed one after the other, so this only reports; the
runner's own rounds decide. A call that is disabled runs once.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from runner import load

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.gpu
PROBLEM = "convtranspose2d"
SHAPES = {"81": {}, "one image": {"batch": 1}}
#: Cycles that a GPU needs for about as long as a host needs to launch a call.
PLUG_CYCLES = 500_000
#: What pytest-benchmark is told of the clock's tick: probing a clock that stands still would never end.
TICK_S = 1e-6


class DeviceClock:
    """Seconds of device time that went by inside `run`."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.spent_s

    def run(self, call: Callable[[], object]) -> None:
        """Run a call behind a plug, so that no launch gap is in its time."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(PLUG_CYCLES)
        begin.record()
        call()
        end.record()
        end.synchronize()
        self.spent_s += begin.elapsed_time(end) / 1e3


@pytest.fixture
def clock(benchmark: BenchmarkFixture) -> DeviceClock:
    made = DeviceClock()
    benchmark._timer = made
    BenchmarkFixture._precisions[made] = TICK_S
    return made


def models(name: str) -> tuple[Any, Any]:
    """Return the problem's module and the class that a solution, or `eager`, is."""
    problem = load.find_problem(PROBLEM)
    module = problem.module()
    if name == "eager":
        return module, module.Model
    solution = load.find_solution(name, PROBLEM)
    text = types.ModuleType(name)
    text.__file__ = str(solution.path)
    exec(compile(solution.source, str(solution.path), "exec"), text.__dict__)  # noqa: S102 - one of our own
    return module, text.ModelNew


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["eager", "gather_gemm", "phase_gemm"])
def test_a_call_on_the_device(benchmark: BenchmarkFixture, clock: DeviceClock, name: str, shape: str) -> None:
    module, model_class = models(name)
    chosen = module.Shape(**SHAPES[shape])
    model = model_class(*module.get_init_inputs(chosen)).cuda().eval()
    inputs = [x.cuda() for x in module.get_inputs(chosen)]
    with torch.inference_mode():
        benchmark.pedantic(clock.run, args=(lambda: model(*inputs),), rounds=30, warmup_rounds=5)
    benchmark.extra_info["shape"] = chosen._asdict()
