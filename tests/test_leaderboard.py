"""Who gets which rank, and who none: boards from literal records, and the one that is committed."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import cli, leaderboard, load, record, standings, summary
from runner.cards import load_card
from runner.commands import exits
from runner.report import ABSENT
from runner.schema import (
    HIDDEN,
    PROTOCOL,
    SCHEMA,
    Cell,
    Checked,
    Comparison,
    Failed,
    Record,
    Samples,
    Status,
    Timed,
    Verdict,
    to_json,
)
from runner.waves import occupancy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PROBLEM = """
from typing import NamedTuple
class Shape(NamedTuple):
    size: int = 8
class Model: ...
def get_inputs(shape=Shape()): ...
def get_init_inputs(shape=Shape()): ...
SWEEPS = {
    "smoke": {"tiny": Shape(1)},
    "kernelbench": {"1": Shape()},
    "layers": {f"layer{n}": Shape(n) for n in range(2, 7)},
}
"""
SIZES = {"kernelbench/1": 8, **{f"layers/layer{n}": n for n in range(2, 7)}}
PLACES = list(SIZES)
ROUNDS = 24


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with one problem, which has six cells to cover, and two solutions."""
    for name, text in {
        "problems/add.py": PROBLEM,
        "solutions/add/quick.py": "class ModelNew: ...  # quick",
        "solutions/add/slow.py": "class ModelNew: ...  # slow",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def timed(speedup: float, baseline_us: float = 100.0) -> Timed:
    times = {"solution": baseline_us / speedup, "cudnn": baseline_us, "eager": 5 * baseline_us}
    samples = tuple(
        Samples(name, 1, (time_us,) * ROUNDS, (), 0.0, 0.0, 1.0, "cold") for name, time_us in times.items()
    )
    return Timed(samples, "cudnn", ROUNDS, 0, ROUNDS, 1.0, "claim")


def made(root: Path, solution: str, place: str, speedup: float = 2.0, **changes: Any) -> Record:
    """Make a record of the files under `root` as they are; `status` may say that it failed."""
    sweep, label = place.split("/")
    problem = load.find_problem("add", root)
    status = changes.pop("status", Status.PASS)
    passed = status is Status.PASS
    one = Record(
        schema=SCHEMA,
        protocol=PROTOCOL,
        time_utc="2026-01-02T00:00:00+00:00",
        problem="add",
        problem_digest=problem.digest,
        solution=solution,
        solution_digest=load.find_solution(solution, "add", root).digest,
        technique="",
        author="A. Contributor",
        runner_digest="",
        cell=Cell(sweep, label, {"size": SIZES.get(place, 3)}, "fp32", "tf32"),
        card="rtx4090",
        environment={"isolation": {"level": "full"}},
        entropy="",
        status=status,
        failed=None if passed else Failed(status, "check", "differs"),
        checked=Checked((), True, 1, ()) if passed else None,
        timed=timed(speedup) if passed else None,
        comparisons=(),
        roofline={"share_of_bound": 0.5} if passed else {},
        waves=(),
        flags=(),
    )
    return replace(one, **changes)


def boards(root: Path, records: Iterable[Record]) -> list[leaderboard.Board]:
    for one in records:
        record.append(record.results_path(root / "results", one.card, one.problem, one.solution), one)
    found, problems = leaderboard.read(root / "results", root)
    assert problems == []
    return found


def board(root: Path, records: Iterable[Record]) -> leaderboard.Board:
    (found,) = boards(root, records)
    return found


def ranks(found: leaderboard.Board) -> list[tuple[int | None, str, str]]:
    return [(rank, entry.solution, entry.unranked) for rank, entry in found.ranked]


def entry(found: leaderboard.Board, solution: str = "quick") -> leaderboard.Entry:
    (one,) = [entry for _, entry in found.ranked if entry.solution == solution]
    return one


def test_the_mean_is_geometric_over_the_committed_cells(root: Path) -> None:
    speedups = dict(zip(PLACES, (1.0, 4.0, 1.0, 4.0, 2.0, 2.0), strict=True))
    others = [
        made(root, "quick", place, 50.0) for place in ("smoke/tiny", "custom/size=3", f"{HIDDEN}/drawn")
    ]
    found = board(root, [*(made(root, "quick", p, s) for p, s in speedups.items()), *others])
    assert ranks(found) == [(1, "quick", "")]
    assert found.cells == len(PLACES)
    mean = entry(found).mean
    assert mean is not None
    assert mean.speedup == pytest.approx(2.0)
    # t with 5 degrees of freedom is 2.571; the logarithms are 0 and +-log 2
    reach = 2.571 * math.log(2) * math.sqrt(4 / 5) / math.sqrt(6)
    assert math.log(mean.high / 2) == pytest.approx(reach, rel=0.01)
    assert math.log(2 / mean.low) == pytest.approx(reach, rel=0.01)


def test_a_speedup_is_recomputed_from_the_samples_against_the_headline(root: Path) -> None:
    boast = (Comparison("cudnn", 99.0, 98.0, 100.0, Verdict.FASTER, ROUNDS),)
    found = board(root, [made(root, "quick", p, 3.0, comparisons=boast) for p in PLACES])
    for one in entry(found).compared.values():
        assert (one.baseline, one.speedup) == ("cudnn", pytest.approx(3.0, rel=1e-3))


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ([], "1 missing"),
        ([{"status": Status.WRONG}], "1 WRONG"),
        ([{"status": Status.NOT_COVERED}], "1 NOT_COVERED"),
        ([{"timed": None}], "1 not timed"),
        ([{"timed": replace(timed(2.0), headline="compile")}], "1 not comparable"),
        ([{"cell": Cell("layers", "layer6", {"size": 7}, "fp32", "tf32")}], "1 missing"),
    ],
)
def test_a_cell_without_a_speedup_costs_the_rank_but_not_the_place(
    root: Path, last: list[dict[str, Any]], why: str
) -> None:
    records = [made(root, "quick", p, 9.0) for p in PLACES[:-1]]
    records += [made(root, "quick", PLACES[-1], 9.0, **changes) for changes in last]
    found = board(root, [*records, *(made(root, "slow", p, 0.5) for p in PLACES)])
    assert ranks(found) == [(1, "slow", ""), (None, "quick", why)]
    assert list(entry(found).gaps) == [PLACES[-1]]
    table = standings.show([found])
    assert f"unranked: {why}" in table
    assert "5 of 6" in table
    assert f"quick has no rank: {PLACES[-1]} {why.removeprefix('1 ')}" in table
    assert "9.00 [" not in table


def test_a_failure_on_a_hidden_shape_costs_the_rank_and_a_harness_error_there_does_not(root: Path) -> None:
    passed = [made(root, "quick", p) for p in PLACES]
    error = made(root, "quick", f"{HIDDEN}/drawn", status=Status.ERROR)
    assert ranks(board(root, [*passed, error])) == [(1, "quick", "")]
    wrong = made(root, "quick", f"{HIDDEN}/drawn", status=Status.WRONG)
    assert ranks(board(root, [wrong])) == [(None, "quick", "1 WRONG")]


def test_the_newest_record_of_a_cell_counts(root: Path) -> None:
    passed = [made(root, "quick", p) for p in PLACES]
    later = {"time_utc": "2026-02-01T00:00:00+00:00", "environment": {"driver": "new"}}
    found = board(root, [made(root, "quick", PLACES[0], status=Status.CRASH, **later), *passed])
    assert ranks(found) == [(None, "quick", "1 CRASH")]
    assert entry(found).date == "2026-02-01"


def test_a_pass_does_not_outlive_a_later_failure_of_the_same_texts(root: Path) -> None:
    passed = [made(root, "quick", p) for p in PLACES]
    later = made(root, "quick", PLACES[0], status=Status.WRONG, time_utc="2026-02-01T00:00:00+00:00")
    assert ranks(board(root, [*passed, later])) == [(None, "quick", "1 WRONG")]


OTHER_SHAPE = Cell("layers", "layer6", {"size": 7}, "fp32", "tf32")


def test_a_failure_on_another_cards_shape_of_the_same_label_is_not_hidden_by_a_pass(root: Path) -> None:
    wrong = made(root, "quick", "layers/layer6", status=Status.WRONG, cell=OTHER_SHAPE)
    found = board(root, [wrong, *(made(root, "quick", p) for p in PLACES)])
    assert ranks(found) == [(None, "quick", "1 WRONG")]
    (place,) = entry(found).gaps
    assert place.startswith("layers/layer6 (")


@pytest.mark.parametrize(
    "cell", [OTHER_SHAPE, Cell("custom", "size=3", {"size": 3}, "fp32", "tf32")], ids=["label", "custom"]
)
def test_the_newest_record_counts_on_shapes_outside_the_sweeps_too(root: Path, cell: Cell) -> None:
    wrong = made(root, "quick", PLACES[0], status=Status.WRONG, cell=cell)
    later = {"time_utc": "2026-02-01T00:00:00+00:00", "environment": {"driver": "new"}}
    passed = [made(root, "quick", PLACES[0], cell=cell, **later), *(made(root, "quick", p) for p in PLACES)]
    assert ranks(board(root, [wrong, *passed])) == [(1, "quick", "")]


def test_what_the_card_cannot_hold_keeps_nobody_from_a_rank(root: Path) -> None:
    unsupported = Failed(Status.UNSUPPORTED, "plan", "needs about 30000 MiB")
    large = made(root, "quick", PLACES[-1], status=Status.UNSUPPORTED, failed=unsupported)
    found = board(root, [large, *(made(root, one, p) for one in ("quick", "slow") for p in PLACES[:-1])])
    assert ranks(found) == [(1, "quick", ""), (1, "slow", "")]
    assert (found.cells, found.sweeps) == (5, {"kernelbench": 1, "layers": 4})


def test_what_a_machine_could_not_run_is_a_gap(root: Path) -> None:
    lacking = Failed(Status.UNSUPPORTED, "isolation", "a ranked run needs full isolation")
    unsupported = made(root, "quick", PLACES[-1], status=Status.UNSUPPORTED, failed=lacking)
    found = board(root, [unsupported, *(made(root, "quick", p) for p in PLACES[:-1])])
    assert ranks(found) == [(None, "quick", "1 UNSUPPORTED")]


def test_a_stale_entry_of_the_same_text_does_not_hide_a_rank(root: Path) -> None:
    stale = made(root, "quick", PLACES[0], problem_digest="0" * 64)
    found = boards(root, [stale, *(made(root, "quick", p) for p in PLACES)])
    table = standings.show(found, "table", by="dtype")
    assert "1: 2.00 [" in table
    assert "stale" not in table


@pytest.mark.parametrize("driver", ["", "new"])
def test_an_error_of_the_harness_does_not_hide_an_earlier_verdict(root: Path, driver: str) -> None:
    passed = [made(root, "quick", p) for p in PLACES]
    later = {"time_utc": "2026-02-01T00:00:00+00:00", "environment": {"driver": driver} if driver else {}}
    found = board(root, [*passed, made(root, "quick", PLACES[0], status=Status.ERROR, **later)])
    assert ranks(found) == [(1, "quick", "")]
    assert entry(found).date == "2026-01-02"


@pytest.mark.parametrize("share", ["0.9", True, None, [0.9], {}, -1.0, 0, math.inf])
def test_a_share_of_the_bound_that_is_none_is_not_shown(root: Path, share: object) -> None:
    records = [made(root, "quick", p, roofline={"share_of_bound": 0.5}) for p in PLACES]
    records[0] = replace(records[0], roofline={"share_of_bound": share})
    one = leaderboard._entry(records, None, {}, root)
    assert one.bound_shares == (0.5,) * (len(PLACES) - 1)


def test_launch_bound_cells_stand_apart_from_the_mean(root: Path) -> None:
    records = [made(root, "quick", p, 2.0) for p in PLACES[:4]]
    records += [made(root, "quick", p, 8.0, flags=("launch_bound", "unsettled")) for p in PLACES[4:]]
    found = board(root, records)
    one = entry(found)
    assert one.mean is not None
    assert one.mean.speedup == pytest.approx(2.0, rel=1e-3)
    assert sorted(one.launch_bound) == PLACES[4:]
    assert one.flags == {"unsettled": 2}
    table = standings.show([found])
    assert "2 at 8.00" in table
    assert "6 of 6" in table
    all_bound = board(root, [made(root, "slow", p, flags=("launch_bound",)) for p in PLACES])
    assert ranks(all_bound)[-1] == (None, "slow", "all launch-bound")


def test_cards_arithmetic_and_protocols_never_mix_and_the_cpu_has_no_board(root: Path) -> None:
    fp16 = Cell("kernelbench", "1", {"size": 8}, "fp16", "tf32")
    records = [
        made(root, "quick", PLACES[0]),
        made(root, "quick", PLACES[0], card="h200"),
        made(root, "quick", PLACES[0], card="cpu", timed=None),
        made(root, "quick", PLACES[0], cell=fp16),
        made(root, "quick", PLACES[0], protocol=PROTOCOL - 1),
    ]
    found = [(b.card, b.protocol, b.arithmetic, len(b.ranked)) for b in boards(root, records)]
    assert found == [
        ("h200", PROTOCOL, "tf32", 1),
        ("rtx4090", PROTOCOL, "fp16", 1),
        ("rtx4090", PROTOCOL, "tf32", 1),
        ("rtx4090", PROTOCOL - 1, "tf32", 1),
    ]


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("solutions/add/quick.py", "class ModelNew: ...", "stale, its file has changed"),
        ("solutions/add/quick.py", None, "stale, its file is gone"),
        ("problems/add.py", f"{PROBLEM}# changed", "stale, the problem has changed"),
        ("problems/add.py", None, "stale, its problem is gone"),
    ],
)
def test_records_of_other_files_are_stale(root: Path, file: str, text: str | None, why: str) -> None:
    records = [made(root, "quick", p) for p in PLACES]
    (root / file).unlink() if text is None else (root / file).write_text(text)
    assert ranks(board(root, records)) == [(None, "quick", why)]


def test_an_older_protocol_is_stale_and_a_new_text_has_its_own_entry(root: Path) -> None:
    old = [made(root, "quick", p, 9.0, protocol=PROTOCOL - 1) for p in PLACES]
    assert ranks(board(root, old)) == [(None, "quick", f"stale, the protocol is now {PROTOCOL}")]
    before = [made(root, "quick", p, 9.0) for p in PLACES]
    (root / "solutions/add/quick.py").write_text("class ModelNew: ...  # another text")
    now = [made(root, "quick", p, 2.0) for p in PLACES]
    found = boards(root, [*before, *now])[0]
    assert ranks(found) == [(1, "quick", ""), (None, "quick", "stale, its file has changed")]
    table = standings.show([found], "table")
    assert "stale" not in table
    assert table.endswith("\n\nTexts before these, on record too: 1 of quick")
    rows = json.loads(standings.show([found], "json"))
    assert [row["unranked"] for row in rows] == ["", "stale, its file has changed"]


def compared(*speedups: float, spread: float = 1.001) -> dict[str, Comparison]:
    return {
        f"s/{n}": Comparison("cudnn", s, s / spread, s * spread, Verdict.FASTER, ROUNDS)
        for n, s in enumerate(speedups)
    }


def an_entry(name: str, cells: dict[str, Comparison]) -> leaderboard.Entry:
    return leaderboard.Entry(name, "0" * 64, "", "2026-01-01", cells, {}, {}, (), {}, "")


def test_ties_inside_the_noise_share_a_rank() -> None:
    first = an_entry("a", compared(1.0, 2.0, 4.0, 8.0, 16.0))
    close = an_entry("b", compared(1.1, 1.9, 4.1, 7.6, 15.0))
    behind = an_entry("c", compared(0.9, 1.8, 3.6, 7.2, 14.4))
    assert [(rank, one.solution) for rank, one in leaderboard.rank([behind, close, first])] == [
        (1, "a"),
        (1, "b"),
        # ten per cent in every cell is no noise, however far the cells lie apart
        (3, "c"),
    ]


def test_a_few_cells_tie_by_the_noise_of_both() -> None:
    entries = [
        an_entry("a", compared(1.02, 2.04, spread=1.015)),
        an_entry("b", compared(1.0, 2.0, spread=1.015)),
    ]
    assert [rank for rank, _ in leaderboard.rank(entries)] == [1, 1]
    entries = [an_entry("a", compared(1.04, 2.08, spread=1.015)), entries[1]]
    assert [rank for rank, _ in leaderboard.rank(entries)] == [1, 2]


@pytest.mark.parametrize(("share", "places"), [(1.0, [1, 1]), (1.05, [2, 1])], ids=["equal", "faster"])
def test_a_rank_is_of_common_cells(share: float, places: list[int]) -> None:
    """Launch-bound cells differ: the lower mean may be as fast, or faster, where both were compared."""
    many = an_entry("many", compared(2.0, 2.0, 2.0, 2.0, 9.0, 9.0, 9.0))
    few = an_entry("few", compared(*[2.0 * share] * 4))
    found = {one.solution: rank for rank, one in leaderboard.rank([few, many])}
    assert [found["many"], found["few"]] == places


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=60))
def test_the_mean_lies_in_its_interval(speedups: list[float]) -> None:
    mean = leaderboard.geometric_mean(compared(*speedups).values())
    assert mean.low <= mean.speedup * (1 + 1e-9)
    assert mean.speedup <= mean.high * (1 + 1e-9)
    assert min(speedups) * 0.999 <= mean.speedup <= max(speedups) * 1.001


@given(st.permutations([1.0, 1.004, 1.2, 3.0, 0.5]))
def test_ranks_do_not_depend_on_the_order_of_entries(speedups: list[float]) -> None:
    entries = [an_entry(f"{s}", compared(*(s * n for n in range(1, 9)))) for s in speedups]
    found = [(rank, one.solution) for rank, one in leaderboard.rank(entries)]
    assert found == [(1, "3.0"), (2, "1.2"), (3, "1.004"), (4, "1.0"), (5, "0.5")]


def test_a_few_cells_have_the_interval_of_their_own_bounds() -> None:
    mean = leaderboard.geometric_mean(compared(2.0, 8.0, spread=1.1).values())
    assert (mean.speedup, mean.low, mean.high) == pytest.approx((4.0, 4.0 / 1.1, 4.0 * 1.1))


def test_fast_1_counts_lower_bounds(root: Path) -> None:
    near = (*(100.0,) * 13, *(99.0,) * 11)
    samples = (
        Samples("solution", 1, (99.5,) * ROUNDS, (), 0.0, 0.0, 1.0, "cold"),
        Samples("cudnn", 1, near, (), 0.0, 0.0, 1.0, "cold"),
    )
    records = [made(root, "quick", p, 2.0) for p in PLACES[:-1]]
    timed = Timed(samples, "cudnn", ROUNDS, 0, ROUNDS, 1.0, "claim")
    records.append(made(root, "quick", PLACES[-1], timed=timed))
    found = board(root, records)
    assert entry(found).compared[PLACES[-1]].speedup > 1
    (row,) = json.loads(standings.show([found], "json"))
    assert row["fast_1"] == len(PLACES) - 1
    assert row["worst"] == PLACES[-1]
    assert row["share_of_bound"] == 0.5


def test_the_worst_tail_is_that_of_a_cell_in_the_mean(root: Path) -> None:
    card = load_card("rtx4090")
    programs = dict(zip(PLACES, (256, 300, 257, 1, 10_000, 128), strict=True))
    grids = {
        place: ({"kernel": "k", **to_json(occupancy(128, 196, 16384, (n,), card))},)
        for place, n in programs.items()
    }
    tiny = min(programs, key=lambda place: programs[place])
    found = board(
        root,
        [
            made(root, "quick", place, waves=grids[place], flags=("launch_bound",) * (place == tiny))
            for place in PLACES
        ],
    )
    one = entry(found)
    assert one.worst_tail == PLACES[5]
    assert one.grids.keys() == set(PLACES)
    assert "50-100%" in standings.show([found])
    (row,) = json.loads(standings.show([found], "json"))
    assert (row["worst_tail"], row["worst_tail_grid"]["eta_slot"]) == (PLACES[5], 0.5)
    cells = {row["shape"]: row for row in json.loads(standings.show([found], "json", "shape"))}
    assert {place: row["programs"] for place, row in cells.items()} == programs
    assert all(row["waves"] == programs[place] / 256 for place, row in cells.items())


@pytest.mark.parametrize("environment", [{}, {"isolation": None}, {"isolation": {"level": "partial"}}])
def test_a_strangers_times_below_full_isolation_are_shown_and_not_ranked(
    root: Path, environment: dict[str, Any]
) -> None:
    level = "partial" if environment.get("isolation") else "unknown"
    found = board(root, [made(root, "quick", p, environment=environment) for p in PLACES])
    assert ranks(found) == [(None, "quick", f"6 not_ranked: isolation {level}")]
    assert entry(found).flags == {f"not_ranked: isolation {level}": len(PLACES)}
    assert summary.rows([found])[0]["speedup"] is None
    own = board(root, [made(root, "slow", p, environment=environment, author="") for p in PLACES])
    assert (1, "slow", "") in ranks(own)


ODD = "transposed-convolution-of-eighty-one-channels-by-five"


def test_no_name_is_cut_and_a_narrow_terminal_goes_without_the_least_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = {f"layers/{ODD}": Comparison("cudnn", 0.25, 0.2, 0.3, Verdict.SLOWER, ROUNDS)}
    one = replace(
        an_entry("a_name_of_forty_eight_letters_is_the_longest_ther", compared), author="A. N. Other"
    )
    one = replace(one, flags={"autocorrelated": 7, "claim_mismatch": 12, "unsettled": 3})
    found = leaderboard.Board("h200", "add", PROTOCOL, "tf32", {"layers": 1}, leaderboard.rank([one]))
    whole = standings.show([found])
    assert all(
        text in whole for text in ("7 autocorrelated, 12 claim_mismatch, 3 unsettled", one.digest[:12])
    )
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for chars in (400, 220, 160, 80, 20):
        monkeypatch.setenv("COLUMNS", str(chars))
        text = standings.show([found])
        assert one.solution in text
        assert f"0.25 layers/{ODD}" in text
        assert ("too narrow for: flags" in text) is (chars < 400)
        assert chars < 160 or max(map(len, text.splitlines())) <= chars
    assert "too narrow" not in standings.show([found], "github")


def test_flags_are_counted_by_their_first_sentence() -> None:
    lost = [f"no_baseline: cudnn: CUDA out of memory. Tried to allocate {gib} GiB. See" for gib in (4, 8)]
    one = replace(an_entry("quick", {}), flags={lost[0]: 2, lost[1]: 1, "wide": 5})
    assert standings.flags(one) == "3 no_baseline: cudnn: CUDA out of memory, 5 wide"
    assert standings.flags(replace(one, flags={})) == ABSENT


def test_every_format_shows_every_entry(root: Path) -> None:
    found = board(root, [*(made(root, "quick", p) for p in PLACES), made(root, "slow", PLACES[0])])
    digests = [one.digest for _, one in found.ranked]
    for fmt in ("table", "github"):
        assert all(digest[:12] in standings.show([found], fmt) for digest in digests)
        assert "A. Contributor" in standings.show([found], fmt)
    rows = list(csv.DictReader(io.StringIO(standings.show([found], "csv"))))
    assert [row["digest"] for row in rows] == digests
    assert [row["rank"] for row in rows] == ["1", ""]
    cells = json.loads(standings.show([found], "json", "shape"))
    assert sorted(row["shape"] for row in cells if row["solution"] == "slow") == sorted(PLACES)
    timed = [row["shape"] for row in cells if row["speedup"] is not None and row["solution"] == "slow"]
    assert timed == PLACES[:1]
    by_shape = standings.show([found], "table", "shape")
    assert all(place in by_shape for place in PLACES)
    assert by_shape.count("missing") == len(PLACES) - 1
    assert "1: 2.00" in standings.show([found], "github", "dtype")
    assert standings.show([]) == "no records"


@pytest.mark.parametrize("by", [None, "shape", "sweep"])
def test_columns_for_programs_are_the_same_whoever_is_ranked(root: Path, by: str | None) -> None:
    grids = ({"kernel": "k", **to_json(occupancy(128, 196, 16384, (9,), load_card("rtx4090")))},)
    full = board(root, [made(root, "quick", p, waves=grids) for p in PLACES])
    empty = board(root, [made(root, "slow", PLACES[0], status=Status.WRONG)])
    empty = replace(empty, ranked=empty.ranked[-1:])
    columns = []
    for one in (full, empty):
        rows = json.loads(standings.show([one], "json", by))
        table = list(csv.DictReader(io.StringIO(standings.show([one], "csv", by))))
        assert {tuple(row) for row in (*rows, *table)} == {tuple(rows[0])}
        assert [row["solution"] for row in table] == [row["solution"] for row in rows]
        for line, row in zip(table, rows, strict=True):
            assert {name for name, text in line.items() if not text} == {
                name for name, value in row.items() if value in (None, "", [])
            }
        columns.append(tuple(rows[0]))
        assert {row["speedup"] is None for row in rows} == {one is empty}
    assert columns[0] == columns[1]


def test_lists_are_joined_in_csv_and_arrays_in_json(root: Path) -> None:
    grid = to_json(occupancy(128, 128, 51200, (9,), load_card("rtx4090")))
    limiters = ["registers", "shared"]
    waves = ({"kernel": "k", **grid, "limiters": limiters},)
    found = board(root, [made(root, "quick", PLACES[0], waves=waves)])
    row, *_ = json.loads(standings.show([found], "json", "shape"))
    assert (row["limiters"], row["launch_bound"]) == (limiters, False)
    line, *_ = csv.DictReader(io.StringIO(standings.show([found], "csv", "shape")))
    assert (line["limiters"], line["launch_bound"], line["reason"]) == ("registers;shared", "false", "")


def test_a_time_is_told_in_fills_where_a_fill_was_timed(root: Path) -> None:
    plain = timed(2.0)
    fill = Samples("fill", 1, (20.0,) * ROUNDS, (), 0.0, 0.0, 1.0, "cold")
    filled = replace(plain, samples=(*plain.samples, fill))
    found = board(root, [made(root, "quick", p, timed=filled if p == PLACES[1] else plain) for p in PLACES])
    cells = {row["shape"]: row["times_fill"] for row in json.loads(standings.show([found], "json", "shape"))}
    assert cells == {place: pytest.approx(2.5) if place == PLACES[1] else None for place in PLACES}
    shown = standings.show([found], "table", "shape")
    assert (shown.count("x fill"), "] 2.50 x fill" in shown) == (1, True)


def run(*arguments: str | Path) -> int:
    return cli.main(["leaderboard", *map(str, arguments)])


def test_write_keeps_what_stands_around_the_boards(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = root / "results" / "README.md"
    board(root, [made(root, "quick", p) for p in PLACES])
    readme.write_text(f"By hand.\n\n{standings.BEGIN}\nold\n{standings.END}\nBelow.\n")
    assert run("--results", root / "results", "--check") == exits.EXIT_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert "leaderboard --write" in line
    assert run("--results", root / "results", "--write") == exits.EXIT_DONE
    text = readme.read_text()
    assert text.startswith(f"By hand.\n\n{standings.BEGIN}\n\n### add on rtx4090")
    assert text.endswith(f"{standings.END}\nBelow.\n")
    assert "old" not in text
    assert run("--results", root / "results", "--check") == exits.EXIT_DONE


def test_write_makes_the_readme_that_is_not_there(root: Path) -> None:
    results = root / "results"
    board(root, [made(root, "quick", p) for p in PLACES])
    assert run("--results", results, "--check") == exits.EXIT_USAGE
    assert run("--results", results, "--write") == exits.EXIT_DONE
    assert run("--results", results, "--check") == exits.EXIT_DONE
    assert "### add on rtx4090" in (results / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--check",), "lacks the lines"),
        (("--check", "--by", "shape"), "leave --card, --problem and --by out"),
        (("--check", "--write"), "not allowed with"),
        (("--card", "rtx4080"), "did you mean rtx4090"),
        (("--problem", "ad"), "did you mean add"),
    ],
)
def test_bad_input_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    board(root, [made(root, "quick", PLACES[0])])
    (root / "results" / "README.md").write_text("By hand.\n")
    assert run("--results", root / "results", *arguments) == exits.EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_lines_that_are_no_records_are_named_and_the_rest_is_shown(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board(root, [made(root, "quick", PLACES[0])])
    with (root / "results/rtx4090/add/quick.jsonl").open("a") as file:
        file.write("no record\n")
    assert run("--results", root / "results") == exits.EXIT_DONE
    said = capsys.readouterr()
    assert "quick.jsonl:2" in said.err
    assert "quick" in said.out


def test_the_committed_leaderboard_is_what_its_records_give() -> None:
    assert run("--check") == exits.EXIT_DONE, "python -m runner leaderboard --write"


def test_by_sweep_means_are_of_all_cells_and_families_of_the_best(root: Path) -> None:
    """Launch-bound cells count, gaps are told, and a family takes the faster solution of each problem."""
    records = [made(root, "quick", place, 4.0, flags=("launch_bound",)) for place in PLACES[1:4]]
    records += [made(root, "quick", PLACES[4], 1.0), made(root, "quick", PLACES[5], 0.25)]
    records += [made(root, "slow", place, 2.0) for place in PLACES]
    found = board(root, records)
    lines = {line["solution"]: line for line in summary.tables([found]).popitem()[1]}
    assert lines["quick"]["layers"] == "1.74 (5)"  # (4 * 4 * 4 * 1 / 4) ** (1 / 5)
    assert lines["quick"]["kernelbench"] == "-"
    assert lines["slow"] == {
        "problem": "add",
        "solution": "slow",
        "kernelbench": "2.00 (1)",
        "layers": "2.00 (5)",
    }
    (table,) = summary.tables([found, replace(found, problem="convtranspose9d")]).values()
    (family,) = [line for line in table if line["problem"] == "2 problems on record"]
    assert family == {
        "problem": "2 problems on record",
        "solution": summary.BEST,
        "kernelbench": "2.00 (2)",
        "layers": "2.00 (10)",
    }
    assert not [line for line in table if "transposed" in line["problem"]]
    assert "2.00 (5)" in standings.show([found], "table", "sweep")
    rows = json.loads(standings.show([found], "json", "sweep"))
    means = {(row["solution"], row["sweep"]): (row["speedup"], row["cells"], row["of"]) for row in rows}
    assert means["quick", "layers"] == (pytest.approx(16 ** (1 / 5), rel=1e-3), 5, 5)
    assert means["quick", "kernelbench"] == (None, 0, 1)
    assert means["slow", "layers"] == (pytest.approx(2.0, rel=1e-3), 5, 5)
    table = csv.DictReader(io.StringIO(standings.show([found], "csv", "sweep")))
    assert [float(line["speedup"] or 0) for line in table] == [row["speedup"] or 0 for row in rows]


def test_stale_entries_have_no_means_by_sweep(root: Path) -> None:
    found = board(root, [made(root, "quick", PLACES[0], protocol=PROTOCOL - 1)])
    assert summary.tables([found]) == {}


def test_a_board_is_the_same_alone_and_among_all(root: Path) -> None:
    among = boards(root, [made(root, "quick", PLACES[0]), made(root, "quick", PLACES[0], card="h200")])
    alone, _ = leaderboard.read(root / "results", root, card="h200", problem="add")
    assert alone == [board for board in among if board.card == "h200"]
    assert len(among) == 2
