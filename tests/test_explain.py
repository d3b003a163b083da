"""The report on launches: figures of the owner's kernel, of both solutions, and what tables make of them."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from runner import cli, explain, record
from runner.cards import load_card
from runner.commands import exits
from runner.explain_table import render
from runner.load import find_problem, find_solution
from runner.retarget import Compiled, Forward
from runner.schema import Cell, Launch, Record

PROBLEM = find_problem("convtranspose2d")
GATHER = find_solution("gather_gemm", "convtranspose2d")
RTX4090 = load_card("rtx4090")
MEMORY_LIMIT_KB = 1_500_000
DOCUMENTED = (
    "explain --problem convtranspose2d --solution gather_gemm --shapes 81 --card rtx4090 --format json"
)


def cell(sweep: str, label: str, dtype: str = "fp32", math: str = "tf32") -> Cell:
    return Cell(sweep, label, PROBLEM.sweeps(128)[sweep][label], dtype, math)


def recorded_launches(solution: str) -> dict[tuple[str, str], tuple[Launch, ...]]:
    """Return what ran on an H100, by cell and version of Triton."""
    records, _ = record.read(ROOT / "results" / "h100_sxm" / "convtranspose2d" / f"{solution}.jsonl")
    return {
        (each.cell.key, each.environment["triton"]): each.checked.launches
        for each in records
        if each.checked is not None
    }


def recorded_record(solution: str) -> Record:
    """Return some record that was checked."""
    records, _ = record.read(ROOT / "results" / "h100_sxm" / "convtranspose2d" / f"{solution}.jsonl")
    return next(each for each in records if each.checked is not None)


def test_the_documented_command_agrees_with_the_owners_measurement(tmp_path: Path) -> None:
    """A grid of 50721 and 16.67 % of the warps, where Nsight Compute has measured 50721 and 16.6 %."""
    with (tmp_path / "out").open("w+") as out:
        command = [sys.executable, "-m", "runner", *DOCUMENTED.split()]
        process = subprocess.Popen(command, stdout=out, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        (report,) = json.load(out)
    assert process.returncode == exits.EXIT_DONE
    assert usage.ru_maxrss < MEMORY_LIMIT_KB, "of the command or anything that it started"
    (launch,) = report["launches"]
    assert launch["grid"] == [50721, 1, 1]
    assert (launch["tile"], launch["num_warps"], launch["num_stages"]) == ("64x64x32", 4, 2)
    assert (launch["programs_per_sm"], launch["limiters"]) == (2, ["registers"])
    assert (launch["warps_per_sm"], launch["max_warps_per_sm"]) == (8, 48)
    assert launch["measured"]["launch__grid_size"] == launch["programs"]
    active_pct = launch["measured"]["sm__warps_active.avg.pct_of_peak_sustained_active"]
    assert active_pct == 16.6
    assert launch["occupancy_pct"] == pytest.approx(active_pct, abs=0.1)
    assert launch["waves"] == pytest.approx(50721 / (128 * 2))
    assert (launch["dot"], launch["spills"], launch["findings"]) == ("tf32", 0, [])
    assert report["flops"] == pytest.approx(4.757e9, rel=1e-3)
    assert report["memory_bytes"] == report["min_bytes"] == 847_863_808
    assert report["triton"]


@pytest.mark.parametrize("solution", ["gather_gemm", "phase_gemm"])
def test_predicted_launches_are_those_that_a_gpu_recorded(solution: str) -> None:
    """Grids and warps under any version; registers, spills and shared memory where Triton's is the same."""
    cells = [cell("layers", "unet-up2-b1"), cell("ragged", "odd-groups", "fp16")]
    recorded = recorded_launches(solution)
    h100 = load_card("h100_sxm")
    reports = explain.explain(PROBLEM, [find_solution(solution, "convtranspose2d")], cells, [h100], 60.0)
    compared = 0
    for one, report in zip(cells, reports, strict=True):
        assert "error" not in report
        for (key, version), launches in recorded.items():
            if key != one.key:
                continue
            compared += 1
            predicted = [(tuple(x["grid"]), x["num_warps"]) for x in report["launches"]]
            assert predicted == [(x.grid, x.num_warps) for x in launches]
            if version == report["triton"]:
                exact = [(x["registers"], x["spills"], x["shared_bytes"]) for x in report["launches"]]
                assert exact == [(x.registers, x.spills, x.shared_bytes) for x in launches]
    assert compared >= len(cells)


FITTING = Compiled(0, "kernel", (128, 1, 1), "", 1, 1, {}, 4, 2, 1, 64, 0, 16384, "x", "64x64x32", "tf32")


def report_of(monkeypatch: pytest.MonkeyPatch, made: Compiled) -> dict[str, Any]:
    """Report one launch that was never compiled, on an RTX 4090."""
    forward = Forward(0, 0, "3.9.0", (made,), {"add": 2}, 25 * 2**30)
    monkeypatch.setattr(explain, "retarget", lambda *_: [forward])
    (report,) = explain.explain(PROBLEM, [GATHER], [cell("kernelbench", "57")], [RTX4090], 1.0)
    return report


def changed(**fields: Any) -> Compiled:
    return Compiled(**{**FITTING.__dict__, **fields})


@pytest.mark.parametrize(
    ("made", "finding"),
    [
        (changed(shared_bytes=101_377), "does not fit: 101377 bytes of shared memory, at most 101376"),
        (changed(num_warps=32, registers=128), "does not fit: no room for one program (registers)"),
        (
            changed(grid=(1, 65_536, 1), program_ids="xy"),
            "does not fit: 65536 programs along y, at most 65535",
        ),
        (changed(grid=(1, 4, 1)), "never asks for the program id along y, where the grid has 4"),
        (changed(grid=(0, 1, 1)), "an empty grid"),
        (changed(num_ctas=2), "clusters of 2, which the occupancy does not model"),
        (changed(registers=None, num_warps=None, error="no"), "cannot be compiled: no"),
    ],
)
def test_what_is_wrong_with_a_launch_is_said(
    monkeypatch: pytest.MonkeyPatch, made: Compiled, finding: str
) -> None:
    report = report_of(monkeypatch, made)
    assert report["launches"][0]["findings"] == [finding]
    for fmt in ("table", "github", "csv"):
        assert finding.split(",", 1)[0] in render([report], fmt)


def test_a_launch_without_fault_has_no_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(monkeypatch, FITTING)
    assert report["launches"][0]["findings"] == []
    assert report["launches"][0]["measured"] is None, "the profile is of another shape"
    assert not report["fits_memory"]
    assert (report["bound_by"], report["operators"]) == ("arithmetic", {"add": 2})


def test_a_tail_is_computed_unless_the_kernel_is_persistent(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 registers and 16 KB leave 5 programs on an SM: 640 slots."""
    for programs, loop, persistent in ((640, True, True), (641, True, False), (640, False, False)):
        made = changed(grid=(programs, 1, 1), tile_loop=loop)
        (launch,) = report_of(monkeypatch, made)["launches"]
        assert launch["persistent"] is persistent
        assert (launch["eta_slot"] is None) is persistent
    assert launch["eta_slot"] == 1.0


WHILE = """
import triton
import triton.language as tl

@triton.jit
def kernel(x, tiles, PROGRAMS: tl.constexpr):
    i = tl.program_id(0)
    count = tl.num_programs(0)
    while i < tiles:
        tl.store(x + i, i)
        i += STEP
"""


@pytest.mark.parametrize(
    ("step", "persistent"),
    [("PROGRAMS", True), ("count", True), ("tl.num_programs(0)", True), ("1", False), ("tiles", False)],
)
def test_a_while_that_strides_over_the_grid_is_seen(step: str, persistent: bool) -> None:
    made = changed(constants={"PROGRAMS": 128})
    assert explain.strides_by_while(WHILE.replace("STEP", step), made) is persistent
    assert not explain.strides_by_while(WHILE.replace("STEP", step), changed(kernel="another"))


def test_a_stride_that_is_not_the_grid_is_no_loop_over_tiles() -> None:
    assert not explain.strides_by_while(WHILE.replace("STEP", "PROGRAMS"), changed(constants={"PROGRAMS": 8}))


def test_tiles_of_the_sweep_stand_beside_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "retarget", lambda *_: [Forward(0, 0, "3.9.0", (FITTING,), {}, 0)])
    over = cell("waves", "128x128@2w-over")
    (report,) = explain.explain(PROBLEM, [GATHER], [over], [RTX4090], 1.0)
    assert report["canonical"] == {"tile": "128x128", "role": "over", "tiles": 260, "waves": 260 / 128}
    assert "260 of 128x128, 2.03w" in render([report], "table")
    assert "canonical" not in render([report_of(monkeypatch, FITTING)], "table")


@pytest.mark.parametrize(
    ("version", "ran"), [("3.9.0", [False, True, False]), ("3.6.0", [False, True, True])]
)
def test_a_record_tells_which_configuration_ran(
    monkeypatch: pytest.MonkeyPatch, version: str, ran: list[bool]
) -> None:
    """Registers tell two of the same grid and warps apart, but only of one version of Triton."""
    known = recorded_record("gather_gemm")
    shape = cell("kernelbench", "81")
    seen = Launch("kernel", (128, 1, 1), 4, 64, 0, 16384)
    assert known.checked is not None
    one = replace(
        known,
        problem_digest=PROBLEM.digest,
        solution_digest=GATHER.digest,
        cell=shape,
        card="rtx4090",
        environment={"triton": version},
        checked=replace(known.checked, launches=(seen,)),
    )
    configurations = [
        changed(choice=1, choices=3, num_warps=8),
        changed(choice=2, choices=3),
        changed(choice=3, choices=3, registers=96),
    ]
    forward = Forward(0, 0, "3.9.0", tuple(configurations), {}, 0)
    monkeypatch.setattr(explain, "retarget", lambda *_: [forward])
    for records, expected in (([one], ran), ([], [None] * 3), ([replace(one, card="h200")], [None] * 3)):
        (report,) = explain.explain(PROBLEM, [GATHER], [shape], [RTX4090], 1.0, records)
        assert [launch["ran"] for launch in report["launches"]] == expected
    (report,) = explain.explain(PROBLEM, [GATHER], [shape], [RTX4090], 1.0, [one])
    assert "kernel (1 of 3, did not run)" in render([report], "table")
    assert "kernel (2 of 3, ran)" in render([report], "table")


def test_an_undeclared_cell_is_skipped_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        explain, "retarget", lambda _, __, cells, *___: [] if cells == [] else pytest.fail("asked")
    )
    declared = type(GATHER)("only_fp16", GATHER.path, 'DTYPES = ("fp16",)\n' + GATHER.source)
    (report,) = explain.explain(PROBLEM, [declared], [cell("kernelbench", "81")], [RTX4090], 1.0)
    assert report["skipped"] == "the solution does not declare tf32"


def test_a_name_cannot_break_out_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(monkeypatch, changed(kernel="a\n\x1b[2J|<b>" + "c" * 1000))
    table, github = render([report], "table"), render([report], "github")
    assert "\x1b" not in table + github
    assert r"a??[2J\|&lt;b>" in github
    assert "c" * 500 not in table
    (row,) = csv.DictReader(io.StringIO(render([report], "csv")))
    assert row["grid"] == "[128, 1, 1]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--card", "rtx409"], "rtx4090"),
        (["--solution", "gather"], "gather_gemm"),
        (["--shapes", "kernelbenhc"], "kernelbench"),
        (["--dtype", "fp8"], "fp32 or fp16"),
        (["--timeout", "0"], "not a positive number"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--problem", "convtranspose2d", *arguments]) == exits.EXIT_USAGE
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
