"""The report on launches: figures of the owner's kernel, of both solutions, and what tables make of them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from runner import cli, explain, plan, record
from runner.cards import load_card
from runner.commands import exits
from runner.explain_table import render
from runner.load import Problem, find_problem, find_solution
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


def recorded(solution: str, card: str) -> list[Record]:
    """Return what ran on a card: the checked cells of a solution."""
    records, _ = record.read(ROOT / "results" / card / "convtranspose2d" / f"{solution}.jsonl")
    return [each for each in records if each.checked is not None]


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


#: Every so many of a solution's cells are compared where Triton is of the version that compiled them.
STRIDE = 18


@pytest.mark.parametrize(
    ("name", "card"),
    [("gather_gemm", "h100_sxm"), ("phase_gemm", "h200"), ("channels_last_gemm", "h200")],
)
def test_predicted_launches_are_those_that_a_gpu_recorded(name: str, card: str) -> None:
    """All that a record holds where Triton's version is the same; grids and warps of two cells elsewhere."""
    solution = find_solution(name, "convtranspose2d")
    current = [one for one in recorded(name, card) if one.solution_digest == solution.digest]
    if not current:
        pytest.xfail(f"{name} has changed since its records of {card}")
    here = metadata.version("triton")
    same = sorted((one for one in current if one.environment["triton"] == here), key=lambda one: one.cell.key)
    few = (("75", "tf32"), ("unet-up1-b1", "fp32"))
    chosen = same[::STRIDE] or [one for one in current if (one.cell.label, one.cell.arithmetic) in few]
    assert len(chosen) >= len(few)
    cells = [one.cell for one in chosen]
    reports = explain.explain(PROBLEM, [solution], cells, [load_card(card)], 60.0)
    names = ("kernel", "grid", "num_warps", *(("registers", "spills", "shared_bytes") if same else ()))
    for one, report in zip(chosen, reports, strict=True):
        assert "error" not in report
        assert one.checked is not None
        predicted = [[found[name] for name in names] for found in report["launches"]]
        assert predicted == [[getattr(launch, name) for name in names] for launch in one.checked.launches]


@pytest.mark.parametrize(
    ("name", "label", "constant", "values"),
    [
        ("conv2d", "56", "BM", [128, 256]),
        ("conv2d", "50", "num_warps", [8, 4]),
        ("convtranspose2d", "75", "BM", [128, 256]),
    ],
)
def test_what_a_card_has_no_room_for_is_left_to_a_larger_one(
    name: str, label: str, constant: str, values: list[int]
) -> None:
    """256 rows in four stages take 192 KB of shared memory, and 128 sums a thread leave Ada no registers."""
    problem = find_problem(name)
    solution = find_solution("phase_gemm" if "transpose" in name else "channels_last_gemm", name)
    shape = problem.sweeps(128)["kernelbench"][label]
    cells = [Cell("kernelbench", label, shape, "fp32", "tf32")]
    targets = [load_card(card) for card in ("rtx4090", "h100_sxm")]
    reports = explain.explain(problem, [solution], cells, targets, 120.0)
    launches = [one for report in reports for one in report["launches"] if "gemm_kernel" in one["kernel"]]
    assert [one["constants"].get(constant, one.get(constant)) for one in launches] == values
    assert [finding for one in launches for finding in one["findings"] if "not fit" in finding] == []


#: Up to 256 columns of w come in two parts; more are split in the kernel.
WIDE = {
    "convtranspose1d": "batch=8,in_channels=64,out_channels=4,length=256,kernel_size={0},stride={0}",
    "convtranspose2d": "batch=1,in_channels=256,out_channels=4,height=8,width=32,kernel_size=1x{0},"
    "stride=1x{0},dilation=1,padding=0",
    "convtranspose3d": "batch=1,in_channels=64,out_channels=4,depth=4,height=4,width=32,kernel_size=3x3x{0},"
    "stride=1x1x{0}",
}


@pytest.mark.parametrize("stride", [256, 300])
@pytest.mark.parametrize("name", WIDE)
def test_the_phases_of_wide_strides_fit_the_target_in_three_products(name: str, stride: int) -> None:
    """With weights in two parts the columns of hundreds of phases took 128 KB and more."""
    problem, solution = find_problem(name), find_solution("phase_gemm", name)
    cells = plan.plan_cells(problem, [WIDE[name].format(stride)], ["fp32"], ["fp32"], "cpu", 128)
    (report,) = explain.explain(problem, [solution], cells, [RTX4090], 120.0)
    assert [finding for one in report["launches"] for finding in one["findings"]] == []


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


@pytest.mark.parametrize(
    ("launches", "code"),
    [
        ((FITTING, changed(call=1, shared_bytes=101_377)), exits.EXIT_FAILED),
        ((changed(registers=None, num_warps=None, error="no"),), exits.EXIT_FAILED),
        ((changed(choices=2), changed(choices=2, choice=2, shared_bytes=101_377)), exits.EXIT_DONE),
        ((changed(grid=(0, 1, 1)),), exits.EXIT_DONE),
    ],
)
def test_a_launch_that_no_configuration_makes_possible_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, launches: tuple[Compiled, ...], code: int
) -> None:
    monkeypatch.setattr(explain, "retarget", lambda *_: [Forward(0, 0, "3.9.0", launches)])
    words = ["--problem", "convtranspose2d", "--solution", "gather_gemm", "--shapes", "81", "--math", "tf32"]
    assert cli.main(["explain", *words]) == code


def test_an_error_keeps_the_compilers_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "retarget", lambda *_: [Forward(0, 0, "3.9.0", error="no")])
    (report,) = explain.explain(PROBLEM, [GATHER], [cell("kernelbench", "57")], [RTX4090], 1.0)
    title = "gather_gemm on convtranspose2d in tf32"
    assert render([report], "table").startswith(f"{title}, compiled by Triton 3.9.0\n")
    monkeypatch.setattr(explain, "retarget", lambda *_: [Forward(0, 0, "", error="ended without an answer")])
    reports = explain.explain(PROBLEM, [GATHER], [cell("kernelbench", "57")], [RTX4090], 1.0)
    assert render(reports, "table").startswith(f"{title}\n")


def test_equal_launches_share_a_line_and_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kernels that take turns, one of them three times as often, and a grid of its own at the end."""
    other = changed(kernel="other")
    turns = (FITTING, other, other, other) * 20 + (changed(grid=(7, 1, 1)),)
    forward = Forward(0, 0, "3.9.0", tuple(replace(one, call=n) for n, one in enumerate(turns)))
    monkeypatch.setattr(explain, "retarget", lambda *_: [forward])
    reports = explain.explain(PROBLEM, [GATHER], [cell("kernelbench", "57")], [RTX4090], 1.0)
    lines = [line for line in render(reports, "table").splitlines() if "kernel " in line or "other " in line]
    assert [re.findall(r"(\d+x)? *(kernel|other)  +(\d+)", line) for line in lines[1:]] == [
        [("20x", "kernel", "128")],
        [("60x", "other", "128")],
        [("", "kernel", "7")],
    ]
    assert [len(one["launches"]) for one in json.loads(render(reports, "json"))] == [81]
    text = render(reports, "csv")
    assert len(list(csv.DictReader(io.StringIO(text)))) == 81
    assert not text.endswith("\n")


FOREIGN = Problem("foreign", Path("foreign.py"), "class Model: ...")


def test_without_a_count_of_flops_the_traffic_gives_a_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1 GB the L2 of 72 MiB may hold a part; 0.95 x the rest at 1008 GB/s."""
    only = Cell("kernelbench", "foreign", {}, "fp32", "tf32")
    monkeypatch.setattr(explain, "retarget", lambda *_: [Forward(0, 0, "3.9.0", traffic_bytes=10**9)])
    (report,) = explain.explain(FOREIGN, [GATHER], [only], [RTX4090], 1.0)
    assert (report["min_bytes"], report["flops"]) == (10**9, None)
    assert report["floor_us"] == pytest.approx(0.95 * (1e9 - 72 * 2**20) / 1008e3)
    text = render([report], "table")
    assert "1000.0" in text
    assert f"{report['floor_us']:.2f}" in text
    assert "- FLOPs are unknown, for the problem has no `flops`" in text
    monkeypatch.setattr(explain, "retarget", lambda *_: [Forward(0, 0, "3.9.0")])
    (report,) = explain.explain(FOREIGN, [GATHER], [only], [RTX4090], 1.0)
    assert "- bytes and FLOPs are unknown" in render([report], "table")


@pytest.mark.parametrize(
    "line",
    ["f = torch.compile(abs)", "@torch.compile\ndef f(x): ...", "from torch import compile as c\nf = c(abs)"],
)
def test_what_inductor_would_write_is_said_to_be_out_of_sight(
    monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(explain, "retarget", lambda *_: [Forward(0, 0, "3.9.0", (FITTING,))])
    solution = replace(GATHER, source=f"import torch\n{line}\n")
    (report,) = explain.explain(PROBLEM, [solution], [cell("kernelbench", "57")], [RTX4090], 1.0)
    (note,) = report["notes"]
    assert "Inductor writes their kernels on a GPU alone" in note
    assert f"- {note}" in render([report], "table")


def test_a_text_that_is_no_python_fails_in_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        explain, "retarget", lambda *_: [Forward(0, 0, "3.9.0", error="'(' was never closed")]
    )
    solution = replace(GATHER, source="def (\n")
    (report,) = explain.explain(PROBLEM, [solution], [cell("kernelbench", "57")], [RTX4090], 1.0)
    assert report["notes"] == []
    assert "never closed" in render([report], "table")


def test_a_problem_without_the_sweep_kernelbench_is_explained_on_its_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explain, "retarget", lambda _, __, cells, *___: [Forward(0, 0, "3")] * len(cells))
    folder = ROOT / "tests" / "honest"
    words = ["--problem", str(folder / "problem.py"), "--solution", str(folder / "gpu/keeps_a_workspace.py")]
    assert cli.main(["explain", *words]) == exits.EXIT_DONE
    said = capsys.readouterr().out
    assert "smoke/square" in said
    assert "smoke/odd" in said


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
    known = recorded("gather_gemm", "h100_sxm")[0]
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


def test_a_csv_has_fields_as_those_of_records_do(monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(monkeypatch, changed(registers=None, num_warps=None, error="no"))
    (launch,) = report["launches"]
    whole = report | {"launches": [launch | {"persistent": True, "findings": ["one", "another"]}]}
    (row,) = csv.DictReader(io.StringIO(render([whole], "csv")))
    assert (row["registers"], row["persistent"], row["findings"]) == ("", "true", "one;another")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--card", "rtx409"], "rtx4090"),
        (["--card", "NVIDIA GeForce RTX 4090"], "did you mean rtx4090?"),
        (["--card", "NVIDIA A100-SXM4-40GB"], "did you mean a100_40gb?"),
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
