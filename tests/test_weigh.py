"""What a record says of what ran: the class of its arithmetic, and whose kernels took the time."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import CHECKED, record, timed

from runner import analyse, cards, load, roofline, weigh
from runner.arithmetic import MISMATCH
from runner.plan import Job
from runner.schema import NOT_RANKED, Cell, Kernel, Launch, Record, Samples, Status, Timed, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS = load.find_problem("convtranspose2d")
FOREIGN = load.Problem("relu", Path("relu.py"), "class Model: ...")
H200 = cards.load_card("h200")
CELL = Cell("kernelbench", "81", OURS.sweeps(128)["kernelbench"]["81"], "fp32", "tf32")
#: What problem 81 moves, and the least time for it on this card.
MIN_BYTES = OURS.outline.min_bytes(OURS.shape(CELL.shape), 4)
FLOOR_US = roofline.floor_us(MIN_BYTES, 0, H200)


def ran(*kernels: tuple[str, float], arithmetic: str = "tf32", error: float = 3e-4) -> Record:
    """Weigh a timed answer of a TF32 cell whose kernels, by library, took these us."""
    traced = tuple(
        Kernel(f"k{i}", name, 1, us, (1, 1, 1), 128, 32, 0) for i, (name, us) in enumerate(kernels)
    )
    first = replace(CHECKED.errors[0], normwise=error)
    launches = (Launch("k0", (1, 1, 1), 4, 32, 0, 0, tuple(arithmetic.split())),)
    checked = replace(CHECKED, errors=(first, CHECKED.errors[1]), launches=launches)
    return weigh._witnessed(record(), OURS, checked, replace(timed(), kernels={"solution": traced}))


def arithmetic(made: Record) -> str:
    assert made.timed is not None
    return made.timed.arithmetic


def test_a_kernel_of_the_cells_class_is_not_flagged() -> None:
    made = ran(("triton", 90.0), ("pytorch", 10.0))
    assert (arithmetic(made), made.flags) == ("tf32", ())


def test_a_class_that_the_cell_does_not_admit_is_flagged_unless_the_error_denies_it() -> None:
    made = ran(("triton", 90.0), arithmetic="fp16 fp32")
    assert (arithmetic(made), made.flags) == ("fp16", (f"{NOT_RANKED}: {MISMATCH}",))
    made = ran(("triton", 90.0), arithmetic="fp16 fp32", error=1e-6)
    assert (arithmetic(made), made.flags) == ("fp32", ())


@pytest.mark.parametrize("library", ["cudnn", "inductor", "cutlass", ""])
def test_what_has_no_ptx_makes_the_class_unknown(library: str) -> None:
    assert arithmetic(ran(("triton", 90.0), (library, 1.0))) == "unknown"


@given(st.lists(st.tuples(st.sampled_from(["", "triton", "cudnn", "cuda"]), st.floats(0.1, 1e4)), min_size=1))
def test_libraries_are_flagged_from_half_of_the_time_on(kernels: list[tuple[str, float]]) -> None:
    library_us = sum(us for name, us in kernels if name in ("cudnn", "cuda"))
    more = library_us / sum(us for _, us in kernels) > 0.5
    assert ("library" in ran(*kernels).flags) is more


def test_a_problem_may_set_its_own_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "library" in ran(("cudnn", 60.0), ("triton", 40.0)).flags
    monkeypatch.setattr(OURS.outline, "LIBRARY_SHARE", 0.7, raising=False)
    assert "library" not in ran(("cudnn", 60.0), ("triton", 40.0)).flags


def test_without_a_trace_nobody_is_accused() -> None:
    assert ran().flags == ()


def weighed(
    *processes: list[float],
    problem: load.Problem = OURS,
    output_bytes: int = 0,
    environment: dict[str, Any] | None = None,
    flags: Sequence[str] = (),
) -> Record:
    """Weigh a solution with these times, in us, in each process; every baseline takes ten floors."""
    samples = tuple(
        Samples(variant, 1, tuple(times_us), (), 5.0, 0.1, 20.0, "cold", process=process)
        for process, mine_us in enumerate(processes)
        for variant, times_us in (("solution", mine_us), ("cudnn", [10 * FLOOR_US] * len(mine_us)))
    )
    rounds = len(samples[0].times_us)
    timed = Timed(samples, "cudnn", rounds, 0, 5, 9.0, "claim", len(processes))
    ruling: dict[str, Any] = {
        "checked": to_json(CHECKED),
        "timed": to_json(timed),
        "output_bytes": output_bytes,
        "flags": flags,
    }
    job = Job(load.Solution("x", Path("x.py"), '"""X."""'), CELL)
    described = {"device": "cuda:0", **(environment or {})}
    return weigh.make_record(problem, job, described, "h200", _plain(ruling), "00")


def _plain(value: Any) -> Any:
    """As JSON has it, which knows no tuples."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def spread(centre_us: float, share: float) -> list[float]:
    """Times evenly on both sides of a centre, in no order."""
    times_us = [centre_us * (1 + share * (i - 11.5) / 11.5) for i in range(24)]
    random.Random(0).shuffle(times_us)  # noqa: S311 - repeatable
    return times_us


@pytest.mark.parametrize(
    ("processes", "valid"),
    [
        ([spread(1.001 * FLOOR_US, 0.0)], True),
        ([spread(0.999 * FLOOR_US, 0.0)], False),
        (
            [spread(0.999 * FLOOR_US, 0.02)],
            True,
        ),  # its interval reaches the floor, though its median does not
        ([spread(0.97 * FLOOR_US, 0.02)], False),
        ([[0.96 * FLOOR_US] * 24, [0.98 * FLOOR_US] * 24, [1.0 * FLOOR_US] * 24], True),
        ([[0.968 * FLOOR_US] * 24, [0.97 * FLOOR_US] * 24, [0.972 * FLOOR_US] * 24], False),
    ],
)
def test_a_time_is_invalid_if_all_of_its_interval_is_below_the_byte_floor(
    processes: list[list[float]], valid: bool
) -> None:
    made = weighed(*processes)
    assert (made.status, made.timed is not None) == (
        (Status.PASS, True) if valid else (Status.INVALID, False)
    )
    assert made.roofline["floor_us"] == FLOOR_US
    assert "near_floor" in made.flags
    if not valid:
        assert made.failed is not None
        assert "below the byte floor" in made.failed.reason
        assert made.comparisons == ()


@given(st.floats(0.1, 3.0))
def test_whoever_is_not_near_the_floor_is_not_looked_at_twice(share: float) -> None:
    made = weighed([share * FLOOR_US] * 24)
    assert ("near_floor" in made.flags) is (share < weigh.NEAR_FLOOR)
    assert (made.status == Status.INVALID) is (share * FLOOR_US < FLOOR_US)


@pytest.mark.parametrize(("share", "wide"), [(0.0, False), (0.02, False), (0.1, True)])
def test_an_interval_that_stayed_wide_is_told_and_older_records_need_no_new_run(
    share: float, wide: bool
) -> None:
    made = weighed(spread(2 * FLOOR_US, share))
    assert ("wide" in made.flags) is wide
    assert made.status == Status.PASS
    assert not any(flag.startswith(NOT_RANKED) for flag in made.flags)
    older = replace(made, flags=tuple(flag for flag in made.flags if flag != "wide"))
    assert analyse.flags_of(older) == analyse.flags_of(made) == made.flags
    assert analyse.flags_of(replace(older, timed=None)) == older.flags
    lone = replace(timed(), samples=timed().samples[:1])  # nothing to compare with
    assert analyse.flags_of(replace(older, timed=lone)) == older.flags


def test_a_stranger_is_told_once() -> None:
    environment = {"other_processes": [17]}
    assert weighed([2 * FLOOR_US] * 24, environment=environment).flags == ("other_processes",)
    flags = ["other_processes"]
    assert weighed([2 * FLOOR_US] * 24, environment=environment, flags=flags).flags == ("other_processes",)
    assert weighed([2 * FLOOR_US] * 24, flags=flags).flags == ("other_processes",)


def test_a_problem_by_path_must_at_least_write_its_outputs() -> None:
    output_bytes = 800_000_000
    floor_us = roofline.floor_us(output_bytes, 0, H200)
    honest = weighed([1.2 * floor_us] * 24, problem=FOREIGN, output_bytes=output_bytes)
    assert (honest.status, honest.flags) == (Status.PASS, ())
    assert honest.roofline == {"min_bytes": output_bytes, "floor_us": floor_us}
    fast = weighed([0.99 * floor_us] * 24, problem=FOREIGN, output_bytes=output_bytes)
    assert (fast.status, fast.roofline) == (Status.INVALID, honest.roofline)
    small = weighed([0.01] * 24, problem=FOREIGN, output_bytes=H200.l2_bytes)  # they may stay in L2
    assert (small.status, small.roofline["floor_us"]) == (Status.PASS, 0.0)


@pytest.mark.parametrize(("eager", "flags"), [(12.0, ("over_10x",)), (9.0, ())])
def test_ten_times_the_faster_baseline_wants_a_second_look(eager: float, flags: tuple[str, ...]) -> None:
    times_us = {"solution": 2 * FLOOR_US, "cudnn": 24 * FLOOR_US, "eager": 2 * eager * FLOOR_US}
    ruling = _plain({"timed": to_json(timed(times_us)), "checked": to_json(CHECKED)})
    job = Job(load.Solution("x", Path("x.py"), '"""X."""'), CELL)
    made = weigh.make_record(OURS, job, {}, "h200", ruling, "00")
    assert tuple(flag for flag in made.flags if flag == "over_10x") == flags
