"""Kernels are named after all else, and a process that is lost by it takes nothing along."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from runner import load, measure
from runner.channel import Frame, Kind
from runner.judge.bench import Limits
from runner.judge.contestants import Foul
from runner.judge.timing import Timing
from runner.schema import Kernel, Status

SOLUTION = load.find_solution("phase_gemm", "convtranspose2d")
KERNEL = Frame(
    Kind.KERNEL,
    args=(2, 363_004, 50880, 1, 1, 128, 96, 26624),
    payload=b"triton".ljust(64, b"\0"),
    text="phase_kernel",
)
NONE = Frame(Kind.KERNEL, code=1, text="CUPTI is not permitted")


def name(answers: dict[str, list[Frame] | Foul]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Ask variants, all but the solution in one process; returns kernels, who was asked or lost, flags."""
    asked: list[str] = []
    flags: list[str] = []
    processes = {variant: "mine" if variant == "solution" else "trusted" for variant in answers}

    def kernels(variant: str) -> list[Frame]:
        asked.append(variant)
        answer = answers[variant]
        if isinstance(answer, Foul):
            raise answer
        return answer

    company = SimpleNamespace(
        dismiss=lambda _: asked.append("lost: solution"), drop_trusted=lambda: asked.append("lost: trusted")
    )
    bench: Any = SimpleNamespace(seats={v: (p, 0) for v, p in processes.items()}, kernels=kernels)
    timing = Timing(company, None, None, flags)  # type: ignore[arg-type]
    return timing._kernels(bench, SOLUTION), asked, flags


def test_each_variant_has_its_kernels() -> None:
    named, asked, flags = name({"solution": [KERNEL, KERNEL], "cudnn": [NONE]})
    one = Kernel("phase_kernel", "triton", 2, 363.0, (50880, 1, 1), 128, 96, 26624)
    assert named == {"solution": (one, one), "cudnn": ()}
    assert asked == ["solution", "cudnn", "cudnn"]  # what comes back empty is asked for once more
    assert flags == []


def test_a_lost_process_is_asked_no_more() -> None:
    foul = Foul(Status.CRASH, "trace", "ended by SIGSEGV")
    named, asked, flags = name({"solution": [KERNEL], "cudnn": foul, "eager": [KERNEL]})
    assert list(named) == ["solution"]
    assert asked == ["solution", "cudnn", "lost: trusted"]
    assert flags == []
    named, asked, flags = name({"solution": foul, "cudnn": [KERNEL]})
    assert list(named) == ["cudnn"]
    assert asked == ["solution", "lost: solution", "cudnn"]
    assert flags == ["untraced"]


def test_a_solution_without_a_trace_says_so() -> None:
    assert name({"solution": [NONE]})[2] == ["untraced"]


@pytest.mark.parametrize(
    ("before", "after", "flags"), [(0, 0, []), (1, 0, ["other_processes"]), (0, 2, ["other_processes"])]
)
def test_a_stranger_is_seen_who_comes_before_the_rounds_or_during_them(
    before: int, after: int, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([before, "rounds", after])

    def strangers(ours: set[int]) -> object:
        assert ours == {os.getpid(), 41, 42}
        return next(looks)

    monkeypatch.setattr(measure, "measure", lambda *_, **__: next(looks))
    company = SimpleNamespace(limits=Limits(), pids=[41, 42])
    bench: Any = SimpleNamespace(machine=SimpleNamespace(strangers=strangers))
    timing = Timing(company, None, None, [])  # type: ignore[arg-type]
    assert timing._measure(bench, (), (), ()) == "rounds"  # type: ignore[comparison-overlap]
    assert timing.flags == flags
