"""What a request wants: which cells there are, and which records have what it asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runner import load, plan
from runner.schema import (
    HIDDEN,
    MATHS,
    PROTOCOL,
    SCHEMA,
    Cell,
    Checked,
    Failed,
    Record,
    Status,
    Timed,
)

PROBLEM = load.find_problem("convtranspose2d")


def test_a_cell_of_sixteen_bits_is_the_same_whatever_accuracy_fp32_is_to_have() -> None:
    keys = {
        tuple(one.key for one in plan.plan_cells(PROBLEM, ("smoke",), ("fp16", "bf16"), maths, "cpu", 128))
        for maths in (MATHS, MATHS[:1], MATHS[1:])
    }
    assert len(keys) == 1


def made(sweep: str = "smoke", processes: int = 0, status: Status = Status.PASS) -> Record:
    """Make a record that is timed by a number of processes, which may be none."""
    return Record(
        schema=SCHEMA,
        protocol=PROTOCOL,
        time_utc="",
        problem=PROBLEM.name,
        problem_digest=PROBLEM.digest,
        solution="phase_gemm",
        solution_digest="",
        technique="",
        author="",
        runner_digest="",
        cell=Cell(sweep, "a", {}, "fp32", "tf32"),
        card="h200",
        environment={},
        entropy="",
        status=status,
        failed=None if status is Status.PASS else Failed(status, "check", ""),
        checked=Checked((), True, 1, ()) if status is Status.PASS else None,
        timed=Timed((), "cudnn", 24, 0, 5, 9.0, processes=processes) if processes else None,
        comparisons=(),
        roofline={},
        waves=(),
        flags=(),
    )


@pytest.mark.parametrize(
    ("found", "device", "baselines", "processes", "expected"),
    [
        (made(processes=1), "cuda:0", ("cudnn",), 1, True),
        (made(processes=1), "cuda:0", ("cudnn",), 5, False),
        (made(processes=5), "cuda:0", ("cudnn",), 1, True),
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
