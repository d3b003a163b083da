"""The command that tunes tiles: what an override launches, planned without a GPU, and what is refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from benchmarks import tiles
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import load, plan

if TYPE_CHECKING:
    from collections.abc import Callable

CONV2D = ["--problem", "conv2d", "--solution", "channels_last_gemm", "--shapes", "55"]
#: Problem, solution and a shape of KernelBench.
FAST = [
    ("conv1d", "channels_last_gemm", "76"),
    ("conv2d", "channels_last_gemm", "55"),
    ("conv3d", "channels_last_gemm", "60"),
    ("convtranspose1d", "phase_gemm", "64"),
    ("convtranspose2d", "phase_gemm", "81"),
    ("convtranspose3d", "phase_gemm", "61"),
    ("depthwise_conv2d", "register_patches", "82"),
    ("separable_conv2d", "fused_gemm", "86"),
]


def variant(problem: str, solution: str, shape: str, math: str = "tf32", **override: Any) -> tiles.Variant:
    found = load.find_problem(problem)
    path = load.find_solution(solution, problem).path
    (cell,) = plan.plan_cells(found, [shape], ["fp32"], [math], "cuda", sms=128)
    return tiles.Variant(str(found.path), str(path), cell, override)


def chosen(planned: tiles.Planned) -> dict[str, Any]:
    """Read a tile as `--plan` shows it."""
    return tiles.parse_override(planned.tile.replace(" ", ","))


@pytest.mark.parametrize("place", FAST, ids="-".join)
@pytest.mark.parametrize("math", ["tf32", "fp32"])
def test_what_a_solution_chooses_can_be_planned(place: tuple[str, str, str], math: str) -> None:
    (planned,) = tiles.plan_cell([variant(*place, math)])
    assert not planned.failure
    assert planned.variant.name == "as it is"
    assert chosen(planned).items() <= max((c for *_, c in planned.launches), key=len).items()


@settings(max_examples=25)
@given(place=st.sampled_from(FAST), math=st.sampled_from(["tf32", "fp32"]), data=st.data())
def test_an_override_by_what_is_chosen_anyway_changes_nothing(
    place: tuple[str, str, str], math: str, data: st.DataObject
) -> None:
    own = chosen(tiles.plan_variant(variant(*place, math)))
    names = data.draw(st.sets(st.sampled_from(sorted(own)), min_size=1))
    override = {name: own[name] for name in names}
    _, same = tiles.plan_cell([variant(*place, math), variant(*place, math, **override)])
    assert same.failure == "launches what 'as it is' does"


@settings(max_examples=25)
@given(place=st.sampled_from(FAST), num_warps=st.sampled_from([1, 2, 16, 32]), num_stages=st.integers(5, 9))
def test_an_override_reaches_the_launch_and_nothing_else_changes(
    place: tuple[str, str, str], num_warps: int, num_stages: int
) -> None:
    override = {"num_warps": num_warps, "num_stages": num_stages}
    plain, other = tiles.plan_cell([variant(*place), variant(*place, **override)])
    assert not other.failure
    assert chosen(other) == chosen(plain) | override
    assert [grid for _, grid, *_ in other.launches] == [grid for _, grid, *_ in plain.launches]


def test_grids_and_packed_weights_follow_an_override() -> None:
    plain, taller = map(tiles.plan_variant, (variant(*FAST[1]), variant(*FAST[1], BM=256)))
    (_, copies, *_), (_, programs, *_) = plain.launches
    assert [grid for _, grid, *_ in taller.launches] == [copies, (-(-programs[0] // 2), *programs[1:])]
    folded = tiles.plan_variant(variant(*FAST[5], FOLD=4))
    assert chosen(folded)["FOLD"] == 4


def test_a_solution_chooses_by_itself_again_after_an_override() -> None:
    plain = tiles.plan_variant(variant(*FAST[5]))
    tiles.plan_variant(variant(*FAST[5], FOLD=1, BM=64))
    with pytest.raises(load.BadInput):
        tiles.plan_variant(variant(*FAST[5], BX=1))
    assert tiles.plan_variant(variant(*FAST[5])) == plain


def test_where_there_is_a_gpu_tiles_are_planned_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problem 75 in TF32 has twice the values of q where a program may have 200 KB of shared memory."""
    place = "convtranspose2d", "phase_gemm", "75"
    assert chosen(tiles.plan_variant(variant(*place)))["BM"] == 128
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tiles, "ask_gpu", lambda *_: 227 * 1024)
    assert chosen(tiles.plan_variant(variant(*place)))["BM"] == 256


@pytest.mark.parametrize(("call_ms", "calls"), [(0.005, 10 + 59), (30.0, 10)])
def test_a_time_is_a_median_and_does_not_take_long(
    monkeypatch: pytest.MonkeyPatch, call_ms: float, calls: int
) -> None:
    # the first call of all says how many there are to be, and is slower than those
    times_ms = iter([call_ms, *([call_ms / 2] * 100)])
    monkeypatch.setattr(tiles, "clock_once", lambda *_: next(times_ms))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert tiles.clock(lambda: None) == call_ms / 2
    assert len(list(times_ms)) == 100 - calls


def test_a_step_that_cuts_an_extent_is_not_to_be_timed() -> None:
    assert tiles.plan_variant(variant(*FAST[1], BK=128)).failure == "BK=128 does not divide DEPTH=64"


def test_a_plan_has_a_line_for_every_variant_of_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--plan", "--shapes", "62", "--math", "tf32", "--math", "fp32", "--try", "num_stages=4,BM=64"]
    assert tiles.main([*CONV2D, *words]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    cells = [f"kernelbench/{label} {math}" for label in ("55", "62") for math in ("tf32", "fp32")]
    assert [re.split(r"  +", line)[:2] for line in lines] == [
        [cell, name] for cell in cells for name in ("as it is", "num_stages=4,BM=64")
    ]
    assert all("BM=64" in line and "num_stages=4" in line for line in lines[1::2])


@pytest.fixture
def complain(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command line, demands exit code 2 and one line, and returns the line."""

    def run(*words: str) -> str:
        assert tiles.main(words) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert re.fullmatch(r"error: [^\n]+\n", said.err)
        return said.err

    return run


def test_an_unknown_constant_is_named_with_those_there_are(complain: Callable[..., str]) -> None:
    line = complain(*CONV2D, "--plan", "--try", "BX=64")
    assert "'BX'" in line
    assert "BK, BM, BN, COPY, DEPTH, PARTS, PATCH, SWAP, maxnreg, num_stages, num_warps" in line


@pytest.mark.parametrize("text", ["BM", "BM=", "BM=wide", "BM=64,", "BM=64;BN=64", "=4", "BM=-1", ""])
def test_what_is_no_override_is_named(complain: Callable[..., str], text: str) -> None:
    assert f"--try '{text}'" in complain(*CONV2D, "--plan", "--try", text)


def test_a_fold_is_unknown_where_nothing_folds(complain: Callable[..., str]) -> None:
    assert "unknown constant 'FOLD'" in complain(*CONV2D, "--plan", "--try", "FOLD=2")


def test_a_solution_without_tiles_says_so(complain: Callable[..., str]) -> None:
    words = ["--problem", "convtranspose2d", "--solution", "gather_gemm", "--shapes", "81", "--plan"]
    assert "no function tiles" in complain(*words, "--try", "BM=64")
    assert tiles.main(words) == 0


def test_without_a_gpu_nothing_is_timed(
    complain: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--plan" in complain(*CONV2D)


def test_means_are_geometric_and_of_each_variant_and_arithmetic() -> None:
    found = {
        ("tf32", "as it is"): [0.5, 2.0, 8.0],
        ("fp32", "as it is"): [3.0],
        ("tf32", "BM=64"): [4.0, 1.0],
    }
    lines = [line.split() for line in tiles.means(found).splitlines()[2:]]
    assert lines == [
        ["tf32", "as", "it", "is", "3", "2.00"],
        ["fp32", "as", "it", "is", "1", "3.00"],
        ["tf32", "BM=64", "2", "2.00"],
    ]


def test_a_table_ranks_and_keeps_failures() -> None:
    rows = [
        {"variant": "cudnn", "ms": 3.0, "error": 1e-7},
        {"variant": "fill", "ms": 0.5},
        {"variant": "channels_last", "ms": 2.0, "error": 1e-7},
        {"variant": "as it is", "ms": 1.5, "error": 3e-4, "tile": "BM=64"},
        {"variant": "BM=512", "failure": "OutOfResources"},
        {"variant": "BM=128", "ms": 1.0, "error": 3e-4, "tile": "BM=128"},
    ]
    lines = [line.split() for line in tiles.table(rows).splitlines()[2:]]
    assert [line[0] for line in lines] == ["fill", "BM=128", "as", "channels_last", "cudnn", "BM=512"]
    assert lines[1] == ["BM=128", "1.0000", "2.00", "2.00", "3.0e-04", "BM=128"]
    assert lines[-1] == ["BM=512", "-", "-", "-", "-", "OutOfResources"]
