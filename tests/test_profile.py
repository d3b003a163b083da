"""Profiles: what ncu prints, what is made of it, and what is left without it; ncu is a stand-in here."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runner import agreement, cli, devices, load, ncu, observe, profiled, profiling, record, stages
from runner.cards import MAX_REGISTERS_PER_THREAD, WARP_THREADS, load_card
from runner.channel import Frame, Kind
from runner.commands import exits
from runner.profile_table import differences, table
from runner.schema import Cell, Launch
from runner.waves import occupancy

ROOT = Path(__file__).parents[1]
PROBLEM = load.find_problem("convtranspose2d")
GATHER = load.find_solution("gather_gemm", "convtranspose2d")
H200 = load_card("h200")
DEAD = "smsp__warp_issue_stalled_memory_dependency_per_warp_active.pct"
RANGES = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
IDENTITY = ("ID", "Process ID", "Process Name", "Host Name", RANGES, "Kernel Name", "Block Size", "Grid Size")
UNITS = {
    profiling.DURATION: "ns",
    profiling.REGISTERS: "register/thread",
    profiling.SHARED: "byte/block",
    profiling.OCCUPANCY: "%",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "%",
}
#: An implicit GEMM on an H200 with free clocks.
VALUES: dict[str, float | str] = {
    profiling.DURATION: 7461152,
    "launch__grid_size": 50721,
    profiling.REGISTERS: 184,
    profiling.SHARED: 32768,
    profiling.STATIC: 0,
    profiling.OCCUPANCY: 12.5,
    **dict.fromkeys(profiling.LIMITS.values(), 16),
    profiling.LIMITS["registers"]: 2,
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": 60.4,
    "sm__warps_active.avg.pct_of_peak_sustained_active": 12.45,
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": 2.3,
    "lts__t_sector_hit_rate.pct": 98.9,
}
OWNED = profiling.OWNER_METRICS
PERMISSION = (
    "==PROF== Connected to process 7\n"
    "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access GPU Performance Counters\n"
    "==PROF== Disconnected from process 7\n"
)


def cell(label: str = "81", dtype: str = "fp32") -> Cell:
    return Cell("kernelbench", label, PROBLEM.sweeps(128)["kernelbench"][label], dtype, "tf32")


def row(
    kernel: str = "gather", number: int = 0, grid: str = "(50721, 1, 1)", **values: Any
) -> dict[str, Any]:
    ranges = "".join(
        f'"<default domain>:{name}:none:none:none:none:none:none" '
        for name in ("kernelwave", f"cell-{number}")
    )
    place = {
        RANGES: f"13416  {ranges}",
        "Kernel Name": kernel,
        "Block Size": "(128, 1, 1)",
        "Grid Size": grid,
    }
    return {"ID": "0", **place, **VALUES, **values}


def page(*rows: dict[str, Any], other_columns: int = 200) -> str:
    """Write a raw page as ncu does: words before and after, units below the names, commas in numbers."""
    named = [name for one in rows for name in one if name not in IDENTITY]
    columns = list(
        dict.fromkeys([*IDENTITY, *(f"device__attribute_{n}" for n in range(other_columns)), *named])
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, quoting=csv.QUOTE_ALL, lineterminator="\n", restval="1")
    writer.writeheader()
    writer.writerow({name: UNITS.get(name, "") for name in columns})
    for one in rows:
        writer.writerow({k: f"{v:,}" if isinstance(v, int | float) else v for k, v in one.items()})
    before = '==PROF== Connected to process 7\n==PROF== Profiling "gather": 0%....100% - 9 passes\n'
    return f"{before}{text.getvalue()}==PROF== Disconnected from process 7\n"


@given(st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_a_number_is_read_with_and_without_separators(value: float, separated: bool) -> None:
    assert ncu.number(f"{value:,}" if separated else f"{value}") == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["", "n/a", "nan", "inf", "-inf", "CachePreferNone", "no data", ","])
def test_what_is_no_number_is_none(text: str) -> None:
    assert ncu.number(text) is None


def test_a_page_is_read_by_name() -> None:
    found = ncu.read(page(row(), row("fill", 3, "(1,024, 2, 1)")), [*OWNED, profiling.DURATION])
    first, second = found.launches
    assert (first.kernel, first.cell, first.grid, first.block) == ("gather", 0, (50721, 1, 1), (128, 1, 1))
    assert (second.kernel, second.cell, second.grid) == ("fill", 3, (1024, 2, 1))
    assert first.values == {name: VALUES[name] for name in (*OWNED, profiling.DURATION)}
    assert found.units[profiling.DURATION] == "ns"
    assert found.units[OWNED[0]] == "%"


def test_what_the_page_lacks_is_left_out() -> None:
    found = ncu.read(page(row(**{OWNED[0]: "n/a"})), [OWNED[0], "none__such.sum", OWNED[1]])
    assert found.launches[0].values == {OWNED[1]: 50721}
    assert "none__such.sum" not in found.units


def test_a_page_without_launches_or_ranges() -> None:
    assert ncu.read("==WARNING== No kernels were profiled.\n", OWNED).launches == ()
    with pytest.raises(ncu.NoCounters, match="NVTX range of gather"):
        ncu.read(page({**row(), RANGES: ""}), OWNED)


def test_the_command_profiles_the_range_alone(tmp_path: Path) -> None:
    words = ncu.command_line(Path("/x/ncu"), OWNED, "none", "all", tmp_path / "log", ["python", "child"])
    options = dict(pairwise(words[1:-2]))
    assert words[0] == "/x/ncu"
    assert words[-2:] == ["python", "child"]
    assert options["--nvtx-include"] == "kernelwave/", "without the slash it would be a range of another kind"
    assert (options["--clock-control"], options["--cache-control"]) == ("none", "all")
    assert (options["--page"], options["--print-units"]) == ("raw", "base")
    assert options["--metrics"].split(",") == list(OWNED)
    assert {"--nvtx", "--csv"} <= set(words)


def test_the_newest_ncu_is_found_beside_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for release in ("2024.3.2", "2025.10.0", "2025.9.1"):
        tool = tmp_path / release / "ncu"
        tool.parent.mkdir()
        tool.touch(0o755)
    (tmp_path / "2030.1.0").mkdir()
    (tmp_path / "2030.1.0" / "ncu").touch(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ncu, "PLACES", (f"{tmp_path}/*/ncu",))
    assert ncu.find() == tmp_path / "2025.10.0" / "ncu"
    monkeypatch.setenv("PATH", str(tmp_path / "2024.3.2"))
    assert ncu.find() == tmp_path / "2024.3.2" / "ncu"


@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        ("", 0, ""),
        (PERMISSION, 0, "RestrictProfilingToAdminUsers"),
        (PERMISSION, 1, "ERR_NVGPUCTRPERM"),
        (
            "==PROF== a\n==ERROR== LibraryNotLoaded\n==ERROR== b\n",
            9,
            "ncu ended with code 9: LibraryNotLoaded",
        ),
        ("", 11, "ncu ended with code 11: it does not say why"),
    ],
)
def test_a_failure_of_ncu_is_one_line(log: str, code: int, reason: str) -> None:
    said = ncu.complaint(log, code)
    assert reason in said
    assert bool(said) == bool(reason)
    assert "\n" not in said


def test_the_owners_metrics_are_asked_for_first_and_once() -> None:
    recorded = json.loads((ROOT / "runner" / "stages" / "owner_profile.json").read_text())["metrics"]
    assert set(OWNED) == set(*recorded.values())
    assert profiling.wanted([OWNED[1], "dram__bytes.sum"], ["dram__bytes.sum"]) == (*OWNED, "dram__bytes.sum")
    for name in stages.stage_names():
        of_stage = [one.name for one in stages.load_stage(name).metrics]
        assert DEAD not in profiling.wanted(of_stage, [])
        assert set(of_stage) <= set(profiling.wanted(of_stage, []))


@pytest.mark.parametrize(
    ("name", "part"),
    [(DEAD, "ask for smsp__warp_issue_stalled_long_scoreboard_per_warp_active.pct"), ("speed", "no metric")],
)
def test_a_metric_that_cannot_be_is_answered(name: str, part: str) -> None:
    with pytest.raises(load.BadInput, match=part):
        profiling.wanted([], [name])


# The stand-ins: ncu answers from files beside it, and both it and a process alone leave the child's report.
TOOL = """#!{python}
import json, pathlib, sys
here, words = pathlib.Path(__file__).parent, sys.argv[1:]
if words in (["--version"], ["--query-metrics"]):
    print((here / words[0]).read_text())
    sys.exit()
(here / "asked").write_text(json.dumps(words))
if "--log-file" in words:
    pathlib.Path(words[words.index("--log-file") + 1]).write_text((here / "log").read_text())
pathlib.Path(words[-1]).write_text((here / "report").read_text())
sys.exit(int((here / "code").read_text()) if "--log-file" in words else 0)
"""
LAUNCH = Launch("gather", (50721, 1, 1), 4, 184, 0, 32768)


class Tool:
    """An ncu of a test's own: what it prints and leaves, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "ncu"
        self.path.write_text(TOOL.format(python=sys.executable))
        self.path.chmod(0o755)
        self.says("--version", "NVIDIA (R) Nsight Compute\nVersion 2025.3.1.0 (build 1) (public-release)\n")
        known = sorted({name.partition(".")[0] for name in VALUES if "." in name} | {"dram__bytes"})
        self.says("--query-metrics", "Device NVIDIA H200\n" + "".join(f"{name}  Counter\n" for name in known))
        self.says("code", "0")
        self.reports({"launches": [LAUNCH.__dict__]})

    def says(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def reports(self, *lines: dict[str, Any], sms: int = H200.sms) -> None:
        device = {"name": H200.driver_names[0], "sms": sms, "triton": "3.6.0"}
        self.says("report", "".join(json.dumps(line) + "\n" for line in (device, *lines)))

    def asked(self, option: str) -> str:
        words: list[str] = json.loads((self.folder / "asked").read_text())
        return words[words.index(option) + 1] if option in words else ""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    folder = tmp_path / "tool"
    folder.mkdir()
    made = Tool(folder)
    made.says("log", page(row()))
    monkeypatch.setattr(devices, "count", lambda: 1)
    monkeypatch.setattr(observe, "CHILD", (str(made.path),))
    monkeypatch.setattr(ncu, "PLACES", ())
    monkeypatch.setenv("PATH", str(folder))
    return made


def profile(*words: str | Path, problem: str = "convtranspose2d", code: int = 0) -> None:
    selected = ("--problem", problem, "--solution", "gather_gemm", "--shapes", "81")
    assert cli.main(["profile", *selected, *map(str, words)]) == code


def prompted(file: Path, stage: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the page that `prompt` writes with a profile."""
    words = ["--problem", "convtranspose2d", "--solution", "gather_gemm", "--shapes", "81", "--no-run"]
    words += ["--card", "h200", "--stage", stage, "--profile", str(file)]
    assert cli.main(["prompt", *words]) == exits.EXIT_DONE
    return capsys.readouterr().out


def test_a_profile_has_the_owners_shape_and_a_prompt_takes_it(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile("--format", "json", "-o", tmp_path / "profile.json", "--stage", "tiling")
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert "unconfined" in said.err
    assert report == json.loads((tmp_path / "profile.json").read_text())
    assert {name: report["metrics"]["gather"][name] for name in OWNED} == {
        name: VALUES[name] for name in OWNED
    }
    assert report["metrics"]["gather"]["launch__occupancy_limit_registers"] == 2
    tensor = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"
    assert report["missing"] == [tensor]
    assert tensor not in tool.asked("--metrics"), "the chip of this test lacks it"
    assert report["units"][OWNED[0]] == "%"
    assert (report["card"], report["ncu"], report["dtype"]) == ("h200", "2025.3.1.0", "fp32")
    (launch,) = report["launches"]
    assert (launch["grid"], launch["block"], launch["registers"]) == ([50721, 1, 1], [128, 1, 1], 184)
    assert launch["duration_us"] == pytest.approx(7461.152)
    assert (launch["programs_per_sm"], launch["ncu_limits"]["registers"]) == (2, 2)
    assert launch["occupancy_pct"] == launch["ncu_occupancy_pct"] == 12.5
    assert launch["waves"] == pytest.approx(50721 / (132 * 2))
    written = prompted(tmp_path / "profile.json", "tiling", capsys)
    assert json.dumps(report["metrics"], indent=2) in written
    assert '"launch__grid_size": 50721' in written
    assert f"{tensor}: not measured" in written


def test_a_table_shows_the_same(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    profile("--metrics", "dram__bytes.sum,sm__inst_executed.sum")
    shown = capsys.readouterr().out
    for part in ("gather_gemm on convtranspose2d kernelbench/81", "2025.3.1.0", "50,721", "98.9", "7461.15"):
        assert part in shown
    assert "not measured: dram__bytes.sum, sm__inst_executed.sum" in shown
    assert "dram__bytes.sum" in tool.asked("--metrics")
    assert "sm__inst_executed.sum" not in tool.asked("--metrics")


@pytest.mark.usefixtures("tool")
def test_every_format_of_a_table_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    profile("--format", "csv")
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (line["solution"], line["shape"]) == ("gather_gemm", "kernelbench/81")
    assert (line["kernel"], line["grid"], line["registers"]) == ("gather", "[50721, 1, 1]", "184")
    assert float(line["duration_us"]) == pytest.approx(7461.152)
    profile("--format", "json")
    report = json.loads(capsys.readouterr().out)
    ((_, metrics),) = report["metrics"].items()
    units = {name: f" ({unit})" if unit else "" for name, unit in report["units"].items()}
    assert {name: float(line[name + units.get(name, "")]) for name in metrics} == metrics
    profile("--format", "github")
    assert "| gather " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        (None, 0, "Nsight Compute is not installed: it comes with the CUDA toolkit; put ncu on PATH"),
        (PERMISSION, 1, "the driver keeps counters from this user (ERR_NVGPUCTRPERM): be root"),
        ("==WARNING== No kernels were profiled.\n", 0, "ncu saw no kernel in the profiled call"),
        ("==ERROR== LibraryNotLoaded\n", 5, "ncu ended with code 5: LibraryNotLoaded"),
    ],
)
def test_without_counters_there_are_launches_and_the_reason(
    log: str | None,
    code: int,
    reason: str,
    tool: Tool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if log is None:
        monkeypatch.setenv("PATH", "")
    else:
        tool.says("log", log)
        tool.says("code", str(code))
    profile("-o", tmp_path / "profile.json")
    assert f"- no counters: {reason}" in capsys.readouterr().out
    report = json.loads((tmp_path / "profile.json").read_text())
    assert report["metrics"] == {"gather": {"launch__grid_size": 50721}}
    assert '"launch__grid_size": 50721' in prompted(tmp_path / "profile.json", "grid", capsys)
    assert report["missing"] == [name for name in OWNED if name != "launch__grid_size"]
    (launch,) = report["launches"]
    assert (launch["grid"], launch["registers"], launch["programs_per_sm"]) == ([50721, 1, 1], 184, 2)
    assert report["bound_us"] > 0
    assert "duration_us" not in launch


@pytest.mark.usefixtures("tool")
def test_the_judges_time_stands_beside_the_counters(tmp_path: Path) -> None:
    """A record of the same files, cell and card; here one from an H100 that is told to be of an H200."""
    folder = ROOT / "results" / "h100_sxm" / "convtranspose2d"
    records, _ = record.read(folder / "gather_gemm.jsonl")
    one = next(
        each for each in records if each.timed and each.cell.label == "81" and each.cell.arithmetic == "tf32"
    )
    same = replace(one, card="h200", problem_digest=PROBLEM.digest, solution_digest=GATHER.digest)
    path = record.results_path(tmp_path / "results", "h200", "convtranspose2d", "gather_gemm")
    for recorded, there in ((same, True), (replace(same, solution_digest="another"), False)):
        path.unlink(missing_ok=True)
        record.append(path, recorded)
        settings = observe.Settings(OWNED)
        (report,) = profiling.profile(PROBLEM, GATHER, [one.cell], settings, tmp_path / "results")
        assert ("recorded_us" in report) is there


def test_the_longest_launch_of_a_kernel_speaks_for_it(tool: Tool, tmp_path: Path) -> None:
    tool.says(
        "log",
        page(
            row(**{profiling.DURATION: 5, OWNED[0]: 1.0}),
            row(**{profiling.DURATION: 1_000_000, OWNED[0]: 2.0}),
            row(**{profiling.DURATION: 7, OWNED[0]: 3.0}),
            row("fill", **{OWNED[0]: 4.0}),
            row("gather", 1, **{OWNED[0]: 5.0}),
        ),
    )
    tool.reports({"launches": []}, {"launches": []})
    cells = [cell("81"), cell("57")]
    first, second = profiling.profile(PROBLEM, GATHER, cells, observe.Settings(OWNED), tmp_path)
    assert {kernel: values[OWNED[0]] for kernel, values in first["metrics"].items()} == {
        "gather": 2.0,
        "fill": 4.0,
    }
    assert [one["duration_us"] for one in first["launches"]][:3] == [0.005, 1000.0, 0.007]
    assert second["metrics"]["gather"][OWNED[0]] == 5.0
    assert [first["shape"], second["shape"]] == ["kernelbench/81", "kernelbench/57"]


def test_errors_and_undeclared_cells_have_no_metrics(tool: Tool, tmp_path: Path) -> None:
    declared = replace(GATHER, source=GATHER.source + '\nDTYPES = ("fp32",)\n')
    tool.reports({"error": "RuntimeError: no (line 3: y)"})
    cells = [cell("81", "fp16"), cell("81"), cell("57")]
    reports = profiling.profile(PROBLEM, declared, cells, observe.Settings(OWNED), tmp_path)
    assert reports[0]["skipped"] == "the solution does not declare fp16"
    assert reports[1]["error"] == "RuntimeError: no (line 3: y)"
    assert reports[2]["error"].startswith("the process ended with code 0"), "it never came to this cell"
    assert not any("metrics" in one for one in reports)
    for part in ("does not declare fp16", "RuntimeError: no", "ended with code 0"):
        assert part in table(reports)


def test_a_solution_that_fails_exits_with_1(tool: Tool) -> None:
    tool.reports({"error": "OutOfMemoryError"})
    profile(code=exits.EXIT_FAILED)


def test_a_process_that_takes_too_long_is_ended(tool: Tool) -> None:
    tool.path.write_text(f"#!{sys.executable}\nimport time, sys\nif len(sys.argv) > 2: time.sleep(60)\n")
    begun = time.monotonic()
    with pytest.raises(ncu.NoCounters, match=r"did not end within 0\.3 s: raise --timeout"):
        observe.counted(PROBLEM, GATHER, [cell()], observe.Settings(OWNED, timeout_s=0.3))
    assert time.monotonic() - begun < 30


@pytest.mark.usefixtures("tool")
def test_a_process_that_does_not_begin_is_the_harnesss_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real child, where PyTorch finds no GPU though the driver names one."""
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    monkeypatch.setattr(observe, "CHILD", ("-m", "runner.profiled"))
    monkeypatch.setenv("PATH", "")
    profile(code=exits.EXIT_HARNESS)
    assert "the process to be profiled failed: " in capsys.readouterr().err


def test_without_a_gpu_explain_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "count", lambda: 0)
    profile(code=exits.EXIT_DEVICE)
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "`python -m runner explain`" in said.err


def test_an_output_that_cannot_be_is_refused_before_anything_runs(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text("precious")
    for path in (tmp_path, tmp_path / "kernel.py"):
        profile("-o", path, code=exits.EXIT_USAGE)
    assert not (tool.folder / "asked").exists()


SOURCE = """
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self, size: int, pair: tuple):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))
        self.calls = []
    def prepare(self):
        self.calls.append("prepare")
    def forward(self, x):
        self.calls.append(x.dtype)
        return x * self.weight
class ModelNew(Model):
    made = []
    def __init__(self, size, pair):
        super().__init__(size, pair)
        ModelNew.made.append(self)
def get_init_inputs(): return [3, (1, 2)]
def get_inputs(): return [torch.rand(2, 3)]
"""


def child_of(source: str, tmp_path: Path) -> dict[str, Any]:
    """Run the child's part on a CPU: one cell in fp16."""
    module = types.ModuleType("problem")
    exec(SOURCE, module.__dict__)  # noqa: S102 - the reference of this test
    request = {
        "source": source,
        "name": "x",
        "digest": "d",
        "cells": [{"shape": {}, "dtype": "fp16", "math": "tf32"}],
    }
    return profiled.observe(module, request, 0, modules := {}, tmp_path, torch.device("cpu")) | {
        "modules": modules
    }


def test_the_child_warms_up_before_the_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Range:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            told.append(f"{self.name} after {len(made().calls)}")

        def __exit__(self, *_: object) -> None:
            told.append(f"{self.name} until {len(made().calls)}")

    def made() -> Any:
        (solution,) = sys.modules["solution_x"].ModelNew.made
        return solution

    monkeypatch.setattr(profiled.nvtx, "range", Range)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: told.append("synchronized"))
    assert child_of(SOURCE, tmp_path)["launches"] == []
    assert made().calls == ["prepare", *[torch.float16] * 4]
    inside = ["kernelwave after 4", "cell-0 after 4", "synchronized", "cell-0 until 5", "kernelwave until 5"]
    assert told == ["synchronized", *inside]


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("class ModelNew", "class Other", "the source defines no ModelNew"),
        ("torch.rand(size)", "torch.rand(size + 1)", "parameters do not match"),
        ("x * self.weight", "x * None", "TypeError"),
    ],
)
def test_what_stops_a_solution_is_its_error(old: str, new: str, part: str, tmp_path: Path) -> None:
    assert part in child_of(SOURCE.replace(old, new), tmp_path)["error"]


def test_a_launch_goes_up_as_the_schema_has_it() -> None:
    frame = Frame(Kind.LAUNCH, args=(7, 2, 1, 4, 184, -1, 32768), text="gather")
    assert profiled._launch(frame) == {
        "kernel": "gather",
        "grid": [7, 2, 1],
        "num_warps": 4,
        "registers": 184,
        "spills": None,
        "shared_bytes": 32768,
    }


sizes = st.integers(1, 10_000)


@st.composite
def predictions(draw: Callable[..., Any]) -> dict[str, Any]:
    """Draw what `explain` says of one launch that fits an H200."""
    warps, registers = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(8, MAX_REGISTERS_PER_THREAD))
    shared, grid = draw(st.integers(0, 100_000)), (draw(sizes), draw(sizes), 1)
    placed = occupancy(warps * WARP_THREADS, registers, shared, grid, H200)
    return {
        "call": 0,
        "kernel": "gather",
        "grid": list(grid),
        "num_warps": warps,
        "registers": registers,
        "shared_bytes": shared,
        "programs_per_sm": placed.programs_per_sm,
        "occupancy_pct": 100 * placed.warps_per_sm / H200.max_warps_per_sm,
    }


def reported(prediction: dict[str, Any], **changes: Any) -> ncu.Launched:
    """Say what ncu prints of a predicted launch, in two decimals and with part of its memory static."""
    facts = {**prediction, **changes}
    values = {
        profiling.REGISTERS: max(facts["registers"], 16),
        profiling.SHARED: facts["shared_bytes"] // 2,
        profiling.STATIC: facts["shared_bytes"] - facts["shared_bytes"] // 2,
        profiling.OCCUPANCY: round(facts["occupancy_pct"], 2),
        **dict.fromkeys(profiling.LIMITS.values(), facts["programs_per_sm"]),
        profiling.LIMITS["blocks"]: 32,
    }
    return ncu.Launched(0, facts["kernel"], tuple(facts["grid"]), (facts["num_warps"] * 32, 1, 1), values)


CHANGES = {
    "grid": ("grid", lambda grid: [grid[0] + 1, *grid[1:]]),
    "num_warps": ("threads", lambda warps: warps + 1),
    "registers": ("registers", lambda registers: max(registers, 16) + 1),
    "shared_bytes": ("shared_bytes", lambda shared: shared + 1),
    "programs_per_sm": ("programs_per_sm", lambda programs: programs - 1),
    "occupancy_pct": ("occupancy_pct", lambda pct: pct + 0.02),
}


@given(predictions(), st.sampled_from(sorted(CHANGES)))
def test_a_difference_is_found_where_there_is_one(prediction: dict[str, Any], name: str) -> None:
    assert agreement._differences([[prediction]], [reported(prediction)]) == []
    quantity, change = CHANGES[name]
    (found,) = agreement._differences(
        [[prediction]], [reported(prediction, **{name: change(prediction[name])})]
    )
    assert (found["launch"], found["kernel"], found["quantity"]) == (0, "gather", quantity)
    assert found["predicted"] != found["measured"]


@given(st.lists(predictions(), min_size=1, max_size=4), st.integers(0, 3))
def test_an_autotuned_launch_may_be_any_of_its_configurations(
    choices: Sequence[dict[str, Any]], ran: int
) -> None:
    assert agreement._differences([choices], [reported(choices[ran % len(choices)])]) == []


PREDICTED = {
    "call": 0,
    "kernel": "gather",
    "grid": [50721, 1, 1],
    "num_warps": 4,
    "registers": 184,
    "shared_bytes": 32768,
    "programs_per_sm": 2,
    "occupancy_pct": 12.5,
}
COMPARISON = ("--against-explain", "--format", "json")


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let `explain` predict the launches of this list for each cell."""
    launches = [dict(PREDICTED)]

    def explain(problem: Any, solutions: Any, cells: Any, cards: Any, _: float) -> list[dict[str, Any]]:
        (solution,), (card,) = solutions, cards
        return [
            {"problem": problem.name, "solution": solution.name, "shape": f"{one.sweep}/{one.label}"}
            | {"arithmetic": one.arithmetic, "card": card.name, "triton": "3.6.0", "launches": launches}
            for one in cells
        ]

    monkeypatch.setattr(agreement, "explain", explain)
    return launches


def test_agreement_is_silent_but_for_a_count(
    tool: Tool, predicted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    del predicted
    tool.says("log", page(row(), row("vectorized_elementwise_kernel")))
    profile(*COMPARISON)
    report = json.loads(capsys.readouterr().out)
    assert (report["launches"], report["differences"]) == (1, [])
    assert report["not_predicted"] == ["vectorized_elementwise_kernel"]
    assert (tool.asked("--cache-control"), "gpu__" in tool.asked("--metrics")) == ("none", False)
    assert differences([report]).endswith(
        "1 launches in 1 cells: 0 differences (Triton 3.6.0 predicted, 3.6.0 ran)"
    )


@pytest.mark.usefixtures("tool")
def test_differences_are_listed_one_by_one(
    predicted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    predicted[0] |= {"registers": 255, "programs_per_sm": 1}
    predicted.append(PREDICTED | {"call": 1})
    profile("--against-explain", code=exits.EXIT_FAILED)
    shown = capsys.readouterr().out
    assert "1 launches in 1 cells: 3 differences" in shown
    lines = [line.split()[-3:] for line in shown.splitlines()[2:5]]
    told = [["launches", "2", "1"], ["registers", "255", "184"], ["programs_per_sm", "1", "2"]]
    assert lines == told
    profile("--against-explain", "--format", "csv", code=exits.EXIT_FAILED)
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [[row[name] for name in ("quantity", "predicted", "measured")] for row in rows] == told


REPORT = {"problem": "p", "solution": "s", "arithmetic": "tf32", "card": "h200", "predicted_by": "3.6.0"}
REPORT |= {"ran": "3.6.0", "ncu": "2025.3", "solution_digest": "d", "time_utc": "2026-01-02T00:00:00+00:00"}
UNEQUAL = {"launch": 0, "kernel": "k", "quantity": "registers", "predicted": 10, "measured": 16}


def test_totals_count_each_solution_in_each_arithmetic_and_keep_what_differs() -> None:
    equal = REPORT | {"shape": "a", "launches": 2, "not_predicted": [], "differences": []}
    unequal = equal | {"shape": "b", "launches": 1, "differences": [UNEQUAL]}
    failed = REPORT | {"shape": "c", "error": f"no room{' left' * 100}"}
    first, other = agreement.totals([equal, unequal, failed, equal | {"arithmetic": "fp16"}])
    sums = {"cells": 1, "launches": 2, "differences": [], "failed": {}}
    assert other == {**REPORT, "arithmetic": "fp16"} | sums
    assert (first["cells"], first["launches"]) == (2, 3)
    assert first["differences"] == [{"shape": "b"} | UNEQUAL]
    assert {shape: reason[:12] for shape, reason in first["failed"].items()} == {"c": "no room left"}
    assert len(first["failed"]["c"]) == agreement.REASON_CHARS


def test_totals_are_appended(
    tool: Tool, predicted: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del predicted
    tool.says("log", page(row()))
    for _ in range(2):
        profile("--against-explain", "-o", str(tmp_path / "sums.jsonl"))
    lines = (tmp_path / "sums.jsonl").read_text().splitlines()
    assert [json.loads(line)["launches"] for line in lines] == [1, 1]
    assert "0 differences" in capsys.readouterr().out


def test_what_could_not_run_is_not_compared(
    tool: Tool, predicted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    del predicted
    tool.reports({"error": "OutOfMemoryError: no room"})
    tool.says("log", "==WARNING== No kernels were profiled.\n")
    profile("--against-explain", code=exits.EXIT_FAILED)
    shown = capsys.readouterr().out
    assert "gather_gemm kernelbench/81 tf32: OutOfMemoryError: no room" in shown
    assert "0 launches in 1 cells: 0 differences" in shown


def test_a_comparison_needs_ncu_and_a_known_card(
    tool: Tool,
    predicted: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del predicted
    tool.reports({"launches": []}, sms=100)
    profile(*COMPARISON, code=exits.EXIT_DEVICE)
    assert "no card is a NVIDIA H200 with 100 SMs" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    profile(*COMPARISON, code=exits.EXIT_DEVICE)
    assert "Nsight Compute is not installed" in capsys.readouterr().err
