"""Exports are theirs in names, units and kinds; where it is there, their own code reads it back."""

from __future__ import annotations

import ast
import json
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_record import failed, passed, records

from runner import cli, export, export_kernelbench, export_trace, record
from runner.commands import exits
from runner.schema import HIDDEN, NOT_RANKED, PROTOCOL, Cell, PopulationError, Record, Samples, Status, Timed

ROOT = Path(__file__).parents[1]
NUMBER = (int, float)
#: flashinfer-bench's `docs/flashinfer-trace/trace.mdx`: name -> what its value is an instance of.
TRACE = {"definition": str, "workload": dict, "solution": str, "evaluation": dict}
WORKLOAD = {"axes": dict, "inputs": dict, "uuid": str}
NOTHING = type(None)
EVALUATION = {
    "status": str,
    "log": str,
    "timestamp": str,
    "environment": dict,
    "correctness": (dict, NOTHING),
    "performance": (dict, NOTHING),
}
# a text where there is no number: "NaN"
CORRECTNESS = {"max_relative_error": (*NUMBER, str), "max_absolute_error": (*NUMBER, str), "extra": dict}
PERFORMANCE = dict.fromkeys(("latency_ms", "reference_latency_ms", "speedup_factor"), float)
#: Which of the last two a status has, and that it has no other than these.
PARTS = {
    "PASSED": (True, True),
    "INCORRECT_NUMERICAL": (True, False),
    "INCORRECT_SHAPE": (False, False),
    "INCORRECT_DTYPE": (False, False),
    "RUNTIME_ERROR": (False, False),
    "COMPILE_ERROR": (False, False),
    "TIMEOUT": (False, False),
}
#: KernelBench's `KernelExecResult`, and what `get_timing_stats` gives.
RESULT = {
    "compiled": bool,
    "correctness": bool,
    "metadata": dict,
    "runtime": float,
    "runtime_stats": dict,
    "ref_runtime": float,
    "ref_runtime_stats": dict,
}
STATS = {"mean": float, "std": float, "min": float, "max": float, "num_trials": int}
STATUSES = pytest.mark.parametrize("status", Status)


def hold(value: dict[str, Any], kinds: dict[str, Any]) -> None:
    """Fail unless a JSON object has these names and kinds of values, and no others."""
    assert {name: isinstance(each, kinds[name]) for name, each in value.items()} == dict.fromkeys(kinds, True)


def timed_beside_eager(**changes: Any) -> Record:
    """Make a PASS of 100, 101 and 102 us beside an eager of 200, 202 and 204 us."""
    one = passed(**changes)
    assert one.timed is not None
    samples = tuple(
        replace(each, variant="eager") if each.variant == "cudnn" else each for each in one.timed.samples
    )
    return replace(one, timed=replace(one.timed, samples=samples))


def of_status(status: Status, **changes: Any) -> Record:
    return timed_beside_eager(**changes) if status is Status.PASS else failed(status, **changes)


@STATUSES
def test_every_status_has_its_word_or_is_left_out_by_name(status: Status) -> None:
    one = of_status(status)
    silent = status in (Status.UNSUPPORTED, Status.NOT_COVERED, Status.ERROR)
    for outcome in (export_trace.trace(one), export_kernelbench.eval_result(one)):
        assert (outcome == status) is silent
    assert (export_trace.STATUS[status] == "PASSED") is (status is Status.PASS)
    words = export_kernelbench.STATUS[status]
    if words is not None:
        assert (words.correctness, words.reason == "") == (status is Status.PASS,) * 2
        assert words.compiled or not words.correctness


@given(records(), st.text(min_size=1, max_size=5))
@settings(max_examples=200)
def test_any_record_is_a_trace_as_documented_or_a_reason(one: Record, time_utc: str) -> None:
    assert isinstance(export_trace.trace(replace(one, protocol=PROTOCOL - 1)), str)
    made = export_trace.trace(replace(one, time_utc=time_utc, protocol=PROTOCOL))
    if isinstance(made, str):
        assert one.status in (Status.PASS, Status.UNSUPPORTED, Status.NOT_COVERED, Status.ERROR)
        return
    made = json.loads(json.dumps(made, allow_nan=False))
    hold(made, TRACE)
    hold(made["workload"], WORKLOAD)
    UUID(made["workload"]["uuid"])
    assert all(type(size) is int and size >= 0 for size in made["workload"]["axes"].values())
    evaluation = made["evaluation"]
    hold(evaluation, EVALUATION)
    assert (bool(evaluation["correctness"]), bool(evaluation["performance"])) == PARTS[evaluation["status"]]
    for name, kinds in (("correctness", CORRECTNESS), ("performance", PERFORMANCE)):
        if evaluation[name] is not None:
            hold(evaluation[name], kinds)
    hold(evaluation["environment"], {"hardware": str, "libs": dict})
    assert all(isinstance(version, str) for version in evaluation["environment"]["libs"].values())


def test_a_trace_has_milliseconds_and_the_speedup_over_eager() -> None:
    made = export_trace.trace(timed_beside_eager())
    assert isinstance(made, dict)
    assert made["evaluation"]["performance"] == pytest.approx(
        {"latency_ms": 0.101, "reference_latency_ms": 0.202, "speedup_factor": 2.0}
    )
    assert made["definition"] == "convtranspose2d_tf32"
    assert made["solution"] == f"phase_gemm-{'s' * 12}"
    assert made["evaluation"]["environment"]["libs"] == {"torch": "2.11", "triton": "3.6", "cudnn": "9.1"}


@pytest.mark.parametrize(
    ("card", "hardware"),
    [
        ("h100_sxm", "NVIDIA H100 80GB HBM3"),
        ("h100_sxm-128sm", "NVIDIA H100 80GB HBM3 (128 of 132 SMs)"),
        ("nvidia-new-132sm", "NVIDIA H100 80GB HBM3"),
        ("nvidia-new-132sm-64sm", "NVIDIA H100 80GB HBM3 (64 of 132 SMs)"),
    ],
)
def test_a_part_of_a_card_is_other_hardware(card: str, hardware: str) -> None:
    environment = {"gpu": "NVIDIA H100 80GB HBM3", "sms": 132}
    made = export_trace.trace(timed_beside_eager(card=card, environment=environment))
    assert isinstance(made, dict)
    assert made["evaluation"]["environment"]["hardware"] == hardware


def test_times_that_are_not_ranked_are_no_trace() -> None:
    flag = f"{NOT_RANKED}: batch_gain"
    made = export_trace.lines([timed_beside_eager(flags=("wide", flag)), timed_beside_eager(flags=("wide",))])
    assert (made.records, made.left_out) == (1, {flag: 1})


def test_a_shape_is_spread_over_axes_and_scalars() -> None:
    shape = {"batch": 16, "stride": (5, 3), "bias": False, "offset": -1, "none": ()}
    made = export_trace.trace(timed_beside_eager(cell=Cell("ragged", "odd", shape, "fp16", "tf32")))
    assert isinstance(made, dict)
    assert made["workload"]["axes"] == {"batch": 16, "stride_0": 5, "stride_1": 3}
    assert made["workload"]["inputs"] == {
        "bias": {"type": "scalar", "value": False},
        "offset": {"type": "scalar", "value": -1},
    }


def test_shapes_and_arithmetics_are_told_apart_and_texts_too() -> None:
    cell = passed().cell
    cells = (cell, replace(cell, math="fp32"), replace(cell, dtype="fp16"), replace(cell, shape={"batch": 1}))
    made = [export_trace.trace(timed_beside_eager(cell=each)) for each in cells]
    assert len({one["workload"]["uuid"] for one in made if isinstance(one, dict)}) == len(cells)
    assert len({one["definition"] for one in made if isinstance(one, dict)}) == 3
    other = export_trace.trace(timed_beside_eager(solution_digest="t" * 64))
    assert isinstance(other, dict)
    assert other["solution"] != made[0]["solution"]
    assert other["workload"] == made[0]["workload"]


def test_errors_are_the_largest_of_what_has_one_unit() -> None:
    errors = (
        PopulationError("reached", 1e-4, 7e-4, 2e-3, 1e-2),
        PopulationError("few", 3e-4, 7e-4, 1e-3, 1e-2),
        PopulationError("structural", 0.0, 1.0, 0.9, 1.0),
    )
    one = timed_beside_eager()
    assert one.checked is not None
    made = export_trace.trace(replace(one, checked=replace(one.checked, errors=errors)))
    assert isinstance(made, dict)
    correctness = made["evaluation"]["correctness"]
    assert (correctness["max_relative_error"], correctness["max_absolute_error"]) == (3e-4, 2e-3)
    assert [each["population"] for each in correctness["extra"]["errors"]] == ["reached", "few", "structural"]


def test_a_failure_says_why() -> None:
    one = failed(Status.WRONG, "first line\nlast line", flags=("library",))
    made, result = export_trace.trace(one), export_kernelbench.eval_result(one)
    assert isinstance(made, dict)
    assert isinstance(result, dict)
    why = "WRONG in check: values differ\nfirst line\nlast line"
    assert made["evaluation"]["log"] == f"kernelbench/81 tf32, flags: library\n{why}"
    assert made["evaluation"]["correctness"]["max_relative_error"] == "NaN"
    assert result["metadata"]["correctness_issue"] == why


@pytest.mark.parametrize("times_us", [None, (), (0.0, 1.0, 1.0), (-1.0, 9.0, 9.0)])
def test_what_has_no_times_beside_eager_gets_none(times_us: tuple[float, ...] | None) -> None:
    one = timed_beside_eager()
    if times_us is None:
        one = replace(one, timed=None)
    else:
        mine = Samples("solution", 1, times_us, (), 0.0, 0.0, 1.0, "cold")
        eager = Samples("eager", 1, (1.0, 1.0, 1.0), (), 0.0, 0.0, 1.0, "cold")
        one = replace(one, timed=Timed((mine, eager), "eager", 3, 0, 3, 1.0))
    assert export_trace.trace(one) == "PASS without times of eager"
    result = export_kernelbench.eval_result(one)
    assert isinstance(result, dict)
    assert (result["correctness"], result["runtime"], result["runtime_stats"]) == (True, -1.0, {})


@STATUSES
def test_a_result_has_kernelbenchs_fields_in_milliseconds(status: Status) -> None:
    result = export_kernelbench.eval_result(of_status(status))
    if isinstance(result, str):
        return
    hold(result, RESULT)
    if status is not Status.PASS:
        assert (result["runtime"], result["ref_runtime"]) == (-1.0, -1.0)
        return
    hold(result["runtime_stats"], STATS)
    hold(result["ref_runtime_stats"], STATS)
    assert result["runtime"] == pytest.approx(0.101)
    assert result["ref_runtime"] == pytest.approx(0.202)
    assert result["runtime_stats"]["std"] == pytest.approx(statistics.pstdev([0.100, 0.101, 0.102]))
    assert result["runtime_stats"]["num_trials"] == 3


def test_samples_are_numbered_by_name_within_a_problem_and_the_rest_is_counted() -> None:
    cell = passed().cell
    given_records = [
        timed_beside_eager(label="100", solution="b"),
        timed_beside_eager(label="81", solution="b"),
        timed_beside_eager(label="81", solution="a"),
        failed(Status.WRONG, label="81", solution="b", time_utc="2026", environment={"driver": "new"}),
        timed_beside_eager(cell=replace(cell, dtype="fp16")),
        timed_beside_eager(label="7_gated_linear"),  # of a file by path: its level is not known
        timed_beside_eager(cell=replace(cell, sweep="layers")),
        timed_beside_eager(cell=replace(cell, sweep=HIDDEN, label="drawn")),
        timed_beside_eager(protocol=PROTOCOL + 1),
        failed(Status.ERROR),
    ]
    made = export_kernelbench.eval_results(given_records)
    file = json.loads(made.text)
    assert list(file) == ["81", "100"]
    assert [(one["sample_id"], one["metadata"]["solution"]) for one in file["81"]] == [(0, "a"), (1, "b")]
    assert [one["correctness"] for one in file["81"]] == [True, False]
    assert [one["sample_id"] for one in file["100"]] == [0]
    assert made.records == 3
    assert made.left_out == {
        "measured again later": 1,
        "not tf32": 1,
        "no problem of KernelBench": 3,
        f"not of protocol {PROTOCOL}": 1,
        "ERROR": 1,
    }
    assert made.records + sum(made.left_out.values()) == len(given_records)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return a results folder of two cards, and the CPU's, which nothing is exported of."""
    for one in (
        timed_beside_eager(),
        timed_beside_eager(label="57", solution="gather_gemm"),
        timed_beside_eager(card="rtx4090"),
        passed(card="cpu", timed=None, solution="slow"),
    ):
        path = record.results_path(tmp_path / "results", one.card, one.problem, one.solution)
        record.append(path, one)
    return tmp_path / "results"


def test_the_command_writes_what_is_chosen_and_counts_the_rest(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "--format", "trace", "--results", str(results)]) == exits.EXIT_DONE
    said = capsys.readouterr()
    assert len([json.loads(line) for line in said.out.splitlines()]) == 3
    assert said.err == "3 records exported; left out: none\n"

    file = tmp_path / "eval_results.json"
    words = ["--format", "kernelbench", "--card", "h200", "-o", str(file), "--arithmetic"]
    assert cli.main(["export", *words, "fp32", "--results", str(results)]) == exits.EXIT_USAGE
    assert not file.exists()
    assert capsys.readouterr() == ("", "error: nothing to export; left out: 2 not fp32\n")
    assert cli.main(["export", *words, "tf32", "--results", str(results)]) == exits.EXIT_DONE
    assert len(json.loads(file.read_text())) == 2
    assert capsys.readouterr() == ("", "2 records exported; left out: none\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "kernelbench"], "one card, not h200, rtx4090: name it with --card"),
        (["--format", "trace", "--card", "h100"], "unknown card with records 'h100': did you mean h200"),
        (["--format", "trace", "--solution", "slow"], "unknown solution with records 'slow'"),
        (["--format", "trace", "--problem", "conv2d"], "unknown problem with records 'conv2d'"),
        (["--format", "csv"], "invalid choice: 'csv'"),
        (["--format", "trace", "-o", "/proc/file"], "cannot write '/proc/file': No such file"),
        (["--format", "trace", "--results", "/nowhere"], "'/nowhere' has no records of a GPU"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [] if "--results" in words else ["--results", str(results)]
    assert cli.main(["export", *place, *words]) == exits.EXIT_USAGE
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert said in line


def committed() -> list[Record]:
    """Return the records of the repository, those of an older protocol as if they were of the present one."""
    found, problems = export.read(ROOT / "results")
    assert problems == []
    return [replace(one, protocol=PROTOCOL) for one in found]


def test_flashinfer_bench_reads_every_committed_record(tmp_path: Path) -> None:
    theirs = pytest.importorskip("flashinfer_bench.data", reason="flashinfer-bench is not installed")
    made = export_trace.lines([*committed(), *(failed(status) for status in Status if status != "PASS")])
    export.write(tmp_path / "traces.jsonl", made)
    traces = theirs.load_jsonl_file(theirs.Trace, tmp_path / "traces.jsonl")
    assert len(traces) == made.records > 0
    by_definition: dict[str, list[Any]] = {}
    for one in traces:
        by_definition.setdefault(one.definition, []).append(one)
    for name in by_definition:
        best = theirs.TraceSet(traces=by_definition).get_best_trace(name)
        assert best.evaluation.performance.speedup_factor > 1


@pytest.mark.skipif("KERNELBENCH_ROOT" not in os.environ, reason="KERNELBENCH_ROOT names no checkout")
def test_kernelbenchs_own_class_takes_every_committed_sample() -> None:
    pydantic = pytest.importorskip("pydantic", reason="KernelBench's classes are pydantic's")
    # the class alone: its module also imports clients of model vendors
    source = Path(os.environ["KERNELBENCH_ROOT"], "src/kernelbench/eval.py").read_text()
    (node,) = (each for each in ast.parse(source).body if getattr(each, "name", "") == "KernelExecResult")
    names: dict[str, Any] = {"BaseModel": pydantic.BaseModel}
    exec(compile(ast.Module([node], []), "eval.py", "exec"), names)  # noqa: S102 - theirs
    assert set(names["KernelExecResult"].model_fields) == set(RESULT)
    made = export_kernelbench.eval_results([one for one in committed() if one.card == "h100_sxm"])
    assert made.records > 0
    for samples in json.loads(made.text).values():
        for number, sample in enumerate(samples):
            assert sample.pop("sample_id") == number
            assert names["KernelExecResult"](**sample).model_dump() == sample
