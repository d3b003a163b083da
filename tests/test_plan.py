"""What a request wants: which cells there are, and which records have what it asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runner import load, plan
from runner.schema import HIDDEN, MATHS, Record, Status

PROBLEM = load.find_problem("convtranspose2d")


def test_a_cell_of_sixteen_bits_is_the_same_whatever_accuracy_fp32_is_to_have() -> None:
    keys = {
        tuple(one.key for one in plan.plan_cells(PROBLEM, ("smoke",), ("fp16", "bf16"), maths, "cpu", 128))
        for maths in (MATHS, MATHS[:1], MATHS[1:])
    }
    assert len(keys) == 1


def made(
    sweep: str = "smoke", processes: int = 0, status: Status = Status.PASS, target: float = 0.01
) -> Record:
    """Make what is asked of a record that is timed by a number of processes, which may be none."""
    timed = SimpleNamespace(processes=processes, target=target) if processes else None
    return cast("Record", SimpleNamespace(cell=SimpleNamespace(sweep=sweep), status=status, timed=timed))


def stopped(status: Status, **limits: float) -> Record:
    """Make what is asked of a record of a solution that came to a limit, or failed otherwise."""
    return without(status, {"limits": limits} if limits else {})


def without(status: Status, environment: dict[str, Any]) -> Record:
    return cast("Record", SimpleNamespace(status=status, environment=environment, timed=None))


@pytest.mark.parametrize(
    ("found", "device", "baselines", "processes", "expected"),
    [
        (made(processes=1), "cuda:0", ("cudnn",), 1, True),
        (made(processes=1), "cuda:0", ("cudnn",), 5, False),
        (made(processes=5), "cuda:0", ("cudnn",), 1, True),
        (made(processes=1, target=0.03), "cuda:0", ("cudnn",), 1, False),
        (made(), "cuda:0", ("cudnn",), 1, False),
        (made(), "cuda:0", (), 1, True),
        (made(), "cpu", ("cudnn",), 1, True),
        (made(HIDDEN), "cuda:0", ("cudnn",), 1, True),
        (made(status=Status.WRONG), "cuda:0", ("cudnn",), 5, True),
    ],
)
def test_a_record_suffices_that_has_the_times_that_are_wanted(
    found: Record, device: str, baselines: tuple[str, ...], processes: int, expected: bool
) -> None:
    request = plan.Request(PROBLEM, (), (), baselines, device, Path("results"))
    assert plan.suffices(replace(request, limits={"processes": processes}), found) == expected


@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [
        (stopped(Status.TIMEOUT), {}, True),
        (stopped(Status.TIMEOUT), {"timeout_s": 61.0}, False),
        (stopped(Status.TIMEOUT), {"timeout_s": 5.0}, True),
        (stopped(Status.TIMEOUT, call_s=5.0), {"timeout_s": 5.0}, True),
        (stopped(Status.TIMEOUT, call_s=5.0), {}, False),
        (stopped(Status.OOM, memory_bytes=2**30), {}, False),
        (stopped(Status.OOM), {}, True),
        (without(Status.OOM, {"limits": [1]}), {}, True),
        (without(Status.OOM, {"limits": {"call_s": "5"}}), {}, True),
        (stopped(Status.OOM, memory_bytes=2**30), {"memory_bytes": 2**30}, True),
        (stopped(Status.OOM, call_s=60.0), {"memory_bytes": 2**40}, False),
    ],
)
def test_a_limit_tells_nothing_of_a_larger_one(found: Record, asked: dict[str, Any], expected: bool) -> None:
    request = plan.Request(PROBLEM, (), (), (), "cpu", Path("results"), limits=plan.limits(**asked))
    assert plan.suffices(request, found) == expected


def test_a_wrong_answer_is_one_within_any_limit() -> None:
    found = cast("Record", SimpleNamespace(**{**vars(made(status=Status.WRONG)), "environment": {}}))
    request = plan.Request(PROBLEM, (), (), (), "cpu", Path("results"), limits=plan.limits(timeout_s=600.0))
    assert plan.suffices(request, found)


def test_the_interpreter_is_slow_by_the_operation_and_a_gpu_is_not() -> None:
    problem = load.find_problem("convtranspose2d")
    small, large = (
        plan.plan_cells(problem, (sweep,), ("fp32",), ("tf32",), "cpu", 128) for sweep in ("smoke", "81")
    )
    assert plan.estimate_s(problem, small, "cpu") < 2 * len(small)
    assert plan.estimate_s(problem, large, "cpu") > 1000
    assert plan.estimate_s(problem, large, "cuda:0") == plan.ESTIMATE_S["cuda"]
