"""Tables are tested on literal records: what is shown, what never is, and how wide it gets."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import report
from runner.cards import load_card
from runner.schema import (
    NOT_RANKED,
    PROTOCOL,
    SCHEMA,
    Cell,
    Checked,
    Comparison,
    Failed,
    Launch,
    PopulationError,
    Record,
    Samples,
    Status,
    Timed,
    Verdict,
    to_json,
)
from runner.waves import occupancy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CHECKED = Checked(
    errors=(
        PopulationError(
            "dense", normwise=1e-4, normwise_budget=7e-4, elementwise=1e-3, elementwise_budget=1e-2
        ),
        PopulationError(
            "structural", normwise=0.0, normwise_budget=0.0, elementwise=0.31, elementwise_budget=1.0
        ),
    ),
    kernelbench_close=True,
    calls=5,
    launches=(Launch("phase_kernel", (12, 4, 1), 4, 64, 0, 0),),
)
# Every time and every ratio of these is a number that nothing else in a table can show.
SECRET_US = {"solution": 7777.0, "cudnn": 8888.0, "eager": 9999.0}


def timed(times_us: dict[str, float] | None = None, headline: str = "cudnn", rounds: int = 24) -> Timed:
    """Make rounds in which each variant always takes the same time."""
    samples = tuple(
        Samples(
            variant=variant,
            calls=1,
            times_us=(time_us,) * rounds,
            claims_us=(),
            null_us=5.0,
            null_mad_us=0.1,
            issue_us=20.0,
            l2="cold",
            config={"benchmark": True},
        )
        for variant, time_us in (times_us or {"solution": 100.0, "cudnn": 183.0, "eager": 250.0}).items()
    )
    return Timed(samples, headline, rounds, 0, 5, 9.0, "claim")


def record(**changes: object) -> Record:
    """Make a passed and timed record on a GPU."""
    base = Record(
        schema=SCHEMA,
        protocol=PROTOCOL,
        time_utc="2025-01-02T03:04:05Z",
        problem="convtranspose2d",
        problem_digest="p",
        solution="phase_gemm",
        solution_digest="s",
        technique="one GEMM per phase",
        author="",
        runner_digest="r",
        cell=Cell("kernelbench", "81", {"batch": 16}, "fp32", "tf32"),
        card="h200",
        environment={},
        entropy="00",
        status=Status.PASS,
        failed=None,
        checked=CHECKED,
        timed=timed(),
        comparisons=(),
        roofline={"share_of_bound": 0.824},
        waves=(),
        flags=(),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def placed(*programs: int, kernel: str = "phase_kernel") -> tuple[dict[str, object], ...]:
    """Say of a record's launches how they fill an H200: two programs on each of 132 SMs."""
    h200 = load_card("h200")
    return tuple({"kernel": kernel, **to_json(occupancy(128, 184, 32768, (n,), h200))} for n in programs)


def failed(
    status: Status = Status.WRONG, reason: str = "values differ at [0, 1]", **changes: object
) -> Record:
    changes = {"checked": None, "timed": None, **changes}
    return record(status=status, failed=Failed(status, "check", reason), **changes)


def cpu(one: Record) -> Record:
    return replace(one, card="cpu", timed=None)


def cells(text: str, line: int) -> list[str]:
    """Split a line of a table: 0 is its first row."""
    return re.split(r" {2,}", text.splitlines()[4 + line].strip())


def test_a_gpu_row() -> None:
    text = report.table([record(flags=("clock",))])
    assert text.splitlines()[0] == f"convtranspose2d on h200, protocol {PROTOCOL}"
    columns = [
        "solution",
        "shape",
        "math",
        "status",
        "cold_us",
        "warm_us",
        "best",
        "speedup",
        "eager",
        "bound",
    ]
    assert cells(text, -2) == [*columns, "error", "flags"]
    assert cells(text, 0) == [
        *("phase_gemm", "kernelbench/81", "tf32", "PASS", "100.00", "-", "cudnn 183.00"),
        *("1.83 [1.83, 1.83] FASTER", "2.50x", "82%", "0.31", "clock"),
    ]


def test_launches_stand_below_the_rows_of_a_gpu() -> None:
    times, launches = report.table([record(waves=placed(265, 132, 132)), record(solution="other")]).split(
        "\n\n"
    )[1:]
    assert "other" in times
    header, _, *lines = launches.splitlines()
    columns = ["solution", "shape", "arithmetic", "kernel", "grid", "per SM", "limited by", "waves", "tail"]
    assert re.split(r" {2,}", header) == columns
    assert [re.split(r" {2,}", line)[3:] for line in lines] == [
        ["phase_kernel", "265", "2", "registers", "1.00", "50-67%"],
        ["2x phase_kernel", "132", "2", "registers", "0.50", "50-100%"],
    ]


def test_the_summary_names_the_worst_tail_of_what_is_not_launch_bound() -> None:
    small = Cell("layers", "small", {}, "fp32", "tf32")
    many = [
        record(waves=placed(263)),
        record(waves=placed(5, 265), cell=small),
        record(waves=placed(1), flags=("launch_bound",)),
    ]
    assert summary_cells(many)[0][-2:] == ["50-67% layers/small", "-"]


def test_json_has_the_launches_and_their_waves_in_full() -> None:
    launch = {"kernel": "phase_kernel", "grid": [12, 4, 1], "num_warps": 4}
    waves = placed(265)
    for one in (record(waves=waves), cpu(record())):
        (row,) = json.loads(report.table([one], "json"))
        assert launch.items() <= row["launch_facts"][0].items()
        assert row["waves"] == json.loads(json.dumps(one.waves))
    (row,) = csv.DictReader(io.StringIO(report.table([record(waves=waves)], "csv")))
    assert json.loads(row["waves"])[0]["eta_slot"] == 265 / 528


def test_a_cpu_row() -> None:
    text = report.table([cpu(record())])
    columns = ["solution", "shape", "math", "status", "error", "KernelBench", "launches", "flags"]
    assert cells(text, -2) == columns
    assert cells(text, 0) == [
        *("phase_gemm", "kernelbench/81", "tf32", "PASS"),
        *("0.31 of budget", "yes", "phase_kernel 12x4 (4 warps)", "-"),
    ]


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PASS])
def test_a_failure_has_a_reason_in_place_of_numbers(status: Status) -> None:
    gpu = cells(report.table([failed(status, checked=CHECKED)]), 0)
    assert gpu[3:] == [status, "-", "-", "-", "values differ at [0, 1]", "-", "-", "-", "-"]
    on_cpu = cells(report.table([cpu(failed(status, checked=CHECKED))]), 0)
    assert on_cpu[3:] == [status, "values differ at [0, 1]", "-", "-", "-"]


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (failed(reason=""), "failed in check"),
        (failed(reason="x" * 100), "x" * 100),
        (record(checked=None), "not checked"),
        (record(timed=None), "not timed"),
        (record(timed=timed(headline="other")), "no comparison: 'other'"),
        (record(timed=timed({"cudnn": 1.0})), "no comparison: 'solution'"),
        (record(timed=timed(rounds=0)), "no comparison: times must"),
        (record(timed=timed({"solution": 0.0, "cudnn": 1.0})), "no comparison: a time"),
    ],
)
def test_whatever_has_no_speedup_says_why(one: Record, reason: str) -> None:
    assert report.row(one).keys().isdisjoint({"time_us", "speedup", "best_us", "share_of_bound"})
    assert cells(report.table([one]), 0)[7].startswith(reason)


def test_the_speedup_comes_from_the_samples_and_not_from_the_stored_comparison() -> None:
    stored = Comparison("cudnn", 99.0, 98.0, 99.5, Verdict.FASTER, 24)
    assert report.table([record(comparisons=(stored,))]) == report.table([record()])


@pytest.mark.parametrize(
    ("errors", "share"),
    [
        ((), 0.0),
        ((PopulationError("a", 1.0, 4.0, 1.0, 2.0),), 0.5),
        ((PopulationError("a", 3.0, 4.0, 1.0, 2.0),), 0.75),
        ((PopulationError("a", 1.0, 4.0, 1.0, 2.0), PopulationError("b", 8.0, 4.0, 0.0, 0.0)), 2.0),
        ((PopulationError("a", 0.0, 0.0, 1e-9, 0.0),), report.LARGEST_SHARE),
        ((PopulationError("a", float("nan"), 1.0, 0.5, 1.0),), report.LARGEST_SHARE),
    ],
)
def test_the_worst_error_counts(errors: tuple[PopulationError, ...], share: float) -> None:
    assert report.row(record(checked=replace(CHECKED, errors=errors)))["error_of_budget"] == share


@pytest.mark.parametrize(
    ("grids", "text"),
    [
        ([(1, 1, 1)], "k 1 (4 warps)"),
        ([(12, 1, 1)], "k 12 (4 warps)"),
        ([(11, 21, 1)], "k 11x21 (4 warps)"),
        ([(1, 1, 2)], "k 1x1x2 (4 warps)"),
        ([(3, 1, 1), (5, 1, 1), (3, 1, 1)], "2x k 3 (4 warps), k 5 (4 warps)"),
        ([], ""),
    ],
)
def test_launches_are_named_once(grids: list[tuple[int, int, int]], text: str) -> None:
    launches = tuple(Launch("k", grid, 4, None, None, None) for grid in grids)
    assert report.row(record(checked=replace(CHECKED, launches=launches)))["launches"] == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (1.834, "1.83"), (0.31, "0.31"), (0.0213, "0.021"), (123.456, "123.46"), (1e9, "1e+09")],
)
def test_figures(value: float, text: str) -> None:
    assert report.figures(value) == text


def test_cards_problems_and_protocols_never_share_a_table() -> None:
    others = [record(card="rtx4090"), record(problem="conv2d"), record(protocol=PROTOCOL + 1), cpu(record())]
    text = report.table([record(), *others, record(solution="last")])
    titles = [line for line in text.splitlines() if "protocol" in line]
    assert titles == [
        f"convtranspose2d on h200, protocol {PROTOCOL}",
        f"convtranspose2d on rtx4090, protocol {PROTOCOL}",
        f"conv2d on h200, protocol {PROTOCOL}",
        f"convtranspose2d on h200, protocol {PROTOCOL + 1}",
        f"convtranspose2d on cpu, protocol {PROTOCOL}",
    ]
    assert cells(text, 1)[0] == "last"


def test_json_rows_have_numbers_in_full() -> None:
    good, bad = json.loads(
        report.table([record(timed=timed({"solution": 3.0, "cudnn": 1.0})), failed()], "json")
    )
    assert good["speedup"] == pytest.approx(1 / 3, rel=1e-12)
    assert good["verdict"] == "SLOWER"
    assert good["best_config"] == {"benchmark": True}
    assert good["flags"] == []
    assert "speedup_eager" not in good
    assert bad["reason"] == "values differ at [0, 1]"
    assert bad.keys().isdisjoint({"time_us", "best_us", "speedup", "low", "high", "error_of_budget"})


def test_what_was_asked_to_run_beside_the_baselines_has_a_column_where_it_ran() -> None:
    times_us = {"solution": 100.0, "cudnn": 183.0, "eager": 250.0, "fill": 70.0}
    text = report.table([record(timed=timed(times_us)), record(solution="other"), failed()], "github")
    column = [line.split("|")[-5].strip() for line in text.splitlines() if line.startswith("| ")][:4]
    assert column == ["beside", "fill 0.70x", "-", "-"]
    assert "beside" not in report.table([record(), failed()])
    (row,) = json.loads(report.table([record(timed=timed(times_us))], "json"))
    assert (row["speedup_fill"], row["speedup_eager"]) == pytest.approx((0.7, 2.5))


def test_the_best_baseline_is_the_fastest_of_all_rounds_though_the_pilot_chose_another() -> None:
    times_us = {"solution": 100.0, "cudnn": 183.0, "eager": 150.0}
    (row,) = json.loads(report.table([record(timed=timed(times_us, headline="cudnn"))], "json"))
    assert (row["best"], row["best_us"]) == ("eager", 150.0)
    assert (row["speedup"], row["speedup_cudnn"], row["speedup_eager"]) == pytest.approx((1.5, 1.83, 1.5))


def test_a_hidden_shape_that_failed_can_be_asked_for_again() -> None:
    shape = {"batch": 3, "kernel_size": (3, 5), "bias": True}
    one = failed(cell=Cell("hidden", "drawn", shape, "fp32", "tf32"))
    (row,) = json.loads(report.table([one], "json"))
    assert row["reason"] == "values differ at [0, 1] (--shapes batch=3,kernel_size=3x5,bias=True)"
    (row,) = json.loads(report.table([failed()], "json"))
    assert row["reason"] == "values differ at [0, 1]"


def test_csv_has_a_header_and_an_empty_field_where_nothing_is() -> None:
    rows = list(csv.DictReader(io.StringIO(report.table([record(), failed(), cpu(record())], "csv"))))
    assert [one["status"] for one in rows] == ["PASS", "WRONG", "PASS"]
    assert float(rows[0]["speedup"]) == pytest.approx(1.83)
    assert [rows[1]["speedup"], rows[2]["time_us"]] == ["", ""]
    (one,) = csv.DictReader(io.StringIO(report.table([record(flags=("clock", "unsettled"))], "csv")))
    assert (one["flags"], one["kernelbench_close"]) == ("clock;unsettled", "true")


def test_github_escapes_what_would_break_the_table() -> None:
    text = report.table([failed(reason="a | b <script>")], "github")
    assert r"a \| b &lt;script>" in text
    lines = text.splitlines()[2:]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {13}


def test_terminal_codes_are_disarmed() -> None:
    for fmt in report.FORMATS:
        text = report.table([failed(reason="\x1b[2Jgone\nPASS\ud800")], fmt)
        assert "\x1b" not in text
        assert "\nPASS" not in text
        text.encode()


@pytest.mark.parametrize("fmt", ["table", "github", "json", "csv"])
def test_no_records(fmt: str) -> None:
    assert report.table([], fmt).strip() == {"json": "[]", "csv": ""}.get(fmt, "no records")
    assert report.summary([]) == "no records"


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'html'.*table, github, json, csv"):
        report.table([], "html")


words = st.text(max_size=80)
launches = st.builds(
    Launch,
    kernel=words,
    grid=st.tuples(*[st.integers(1, 60_000)] * 3),
    num_warps=st.integers(1, 32),
    registers=st.none(),
    spills=st.none(),
    shared_bytes=st.none(),
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Draw records with awkward texts, half of them on the CPU with times that they should not have."""
    changes: dict[str, object] = {
        "solution": draw(words),
        "card": draw(st.sampled_from(["cpu", "h200"])),
        "cell": Cell(
            draw(words), draw(words), {}, *draw(st.sampled_from([("fp32", "tf32"), ("bf16", "fp32")]))
        ),
        "checked": replace(CHECKED, launches=tuple(draw(st.lists(launches, max_size=3)))),
        "flags": tuple(draw(st.lists(words, max_size=3))),
        "timed": timed(SECRET_US),
        "comparisons": (Comparison("cudnn", 8888 / 7777, 1.1, 1.2, Verdict.FASTER, 24),),
        "roofline": {"bound_us": 6666.0, "share_of_bound": 6666.0 / 7777.0},
    }
    if changes["card"] != "cpu":
        changes["waves"] = placed(*draw(st.lists(st.integers(1, 2**40), max_size=3)), kernel=draw(words))
    if draw(st.booleans()):
        return failed(draw(st.sampled_from([Status.WRONG, Status.NOT_COVERED])), draw(words), **changes)
    return record(**changes)


def test_a_narrow_terminal_loses_flags_before_numbers_and_never_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = Cell("waves", "128x64@1w-under", {}, "fp32", "tf32")
    flags = ("launches_dropped", "samples_thinned", "power_capped")
    one = record(cell=cell, flags=flags)
    whole = report.table([one])
    assert cells(whole, 0)[-1] == " ".join(flags)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for chars, left_out in (
        (200, ""),
        (150, "flags"),
        (135, "flags, bound"),
        (40, "flags, bound, warm_us, eager"),
    ):
        monkeypatch.setenv("COLUMNS", str(chars))
        text = report.table([one])
        assert cells(text, 0)[:2] == ["phase_gemm", "waves/128x64@1w-under"]
        assert text.endswith(f"\n(too narrow for: {left_out})") if left_out else text == whole


def test_a_reason_is_cut_on_a_terminal_that_is_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    assert cells(report.table([failed(reason="x" * 100)]), 0)[7] == "x" * 18 + "..." + "x" * 19


@given(st.lists(records(), min_size=1, max_size=4), st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_names_are_whole_and_a_terminals_line_fits_where_it_can(many: list[Record], chars: int) -> None:
    lines = report._lines([report.row(one) for one in many if one.card == many[0].card])
    shown, left_out = report._fit(lines, chars)
    assert [(one["solution"], one["shape"]) for one in shown] == [
        (one["solution"], one["shape"]) for one in lines
    ]
    assert set(left_out) <= set(report.DISPENSABLE)
    widths = [sum(len(text) + 2 for text in one.values()) - 2 for one in shown]
    assert max(widths) <= chars or not set(shown[0]) & set(report.DISPENSABLE)


digitless = st.text(st.characters(blacklist_categories=["N"]), max_size=10).filter(
    lambda text: "us" not in text
)


@given(records(), digitless, st.sampled_from(report.FORMATS))
@settings(max_examples=100, deadline=None)
def test_a_cpu_record_never_shows_a_time_or_a_speedup(one: Record, name: str, fmt: str) -> None:
    cell = replace(one.cell, sweep=name, label=name)
    one = replace(one, card="cpu", solution=name, cell=cell, flags=(), checked=CHECKED, waves=())
    if one.failed:
        one = replace(one, failed=replace(one.failed, reason=name))
    for text in (report.table([one], fmt), report.summary([one], "github" if fmt == "github" else "table")):
        assert not re.search(r"7777|8888|9999|6666|1\.1|0\.86|_us\b", text)
        assert not re.search("speed|faster|best|eager|bound|rounds", text.replace(name, "").lower())


def summary_cells(many: Sequence[Record]) -> list[list[str]]:
    text = report.summary(many)
    return [cells(text, line) for line in range(len(text.splitlines()) - 4)]


def test_a_hidden_shape_is_no_part_of_the_mean() -> None:
    hidden = record(cell=Cell("hidden", "drawn", {}, "fp32", "tf32"), timed=None, comparisons=())
    (line,) = (row for row in summary_cells([record(), hidden]) if row[0] == "phase_gemm")
    assert "1.83 (1 of 1)" in line


def test_what_has_no_rank_is_in_no_mean() -> None:
    fast = timed({"solution": 1.0, "cudnn": 1000.0})
    flags = (f"{NOT_RANKED}: arithmetic_mismatch",)
    assert "1.83 (1 of 1)" in summary_cells([record()])[0]
    assert "unranked: 1 of 2 compared" in summary_cells([record(), record(timed=fast, flags=flags)])[0]


def test_the_summary_ranks_only_what_passed_everywhere() -> None:
    def half(status: Status) -> Callable[..., Record]:
        return lambda **changes: record(**changes) if status is Status.PASS else failed(status, **changes)

    two, eight = timed({"solution": 1.0, "cudnn": 2.0}), timed({"solution": 1.0, "cudnn": 8.0})
    fp16 = Cell("kernelbench", "81", {}, "fp16", "tf32")
    many = [
        record(timed=two),
        record(timed=eight),
        record(timed=eight, cell=fp16),
        half(Status.WRONG)(cell=fp16),
        half(Status.TIMEOUT)(cell=fp16),
        record(solution="check_only", timed=None),
        record(solution="small", timed=two),
        record(solution="small", timed=eight, flags=("launch_bound",)),
        record(solution="tiny", timed=eight, flags=("launch_bound",)),
    ]
    assert summary_cells(many) == [
        ["phase_gemm", "tf32", "2", "2", "4.00 (2 of 2)", "-", "-"],
        ["phase_gemm", "fp16", "3", "1", "unranked: 2 of 3 did not pass", "-", "1 WRONG, 1 TIMEOUT"],
        ["check_only", "tf32", "1", "1", "unranked: 0 of 1 compared", "-", "-"],
        ["small", "tf32", "2", "2", "2.00 (1 of 1, 1 launch-bound apart)", "-", "-"],
        ["tiny", "tf32", "1", "1", "unranked: 0 of 0 compared, 1 launch-bound apart", "-", "-"],
    ]


@pytest.mark.parametrize("reason", ["=HYPERLINK(1)", "+1", "@SUM(1)"])
def test_a_spreadsheet_takes_no_formula_from_a_solution(reason: str) -> None:
    one = failed(Status.CRASH, reason)
    (row,) = csv.DictReader(io.StringIO(report.table([one], "csv")))
    assert row["reason"] == f"'{reason}"


def test_flags_are_explained_once_and_without_any_nothing_is_said() -> None:
    flags = ("launch_bound", f"{NOT_RANKED}: batch_gain")
    names = [line.split(":")[0] for line in report.explain_flags([record(flags=flags)] * 2).splitlines()]
    assert {"launch_bound", NOT_RANKED, "batch_gain"} <= set(names)
    assert len(names) == len(set(names))
    assert report.explain_flags([cpu(failed(Status.CRASH))]) == ""


def test_the_summary_of_a_cpu_run_counts_only() -> None:
    many = [cpu(record()), cpu(failed(Status.CRASH)), cpu(failed(Status.CRASH))]
    assert summary_cells(many) == [["phase_gemm", "tf32", "3", "1", "2 CRASH"]]
