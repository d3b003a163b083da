"""Staircases from literal records: where edges lie, what a step past one costs, when that is unknown."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import cli, load, record, staircase, staircase_svg
from runner.cards import load_card
from runner.commands import exits
from runner.schema import PROTOCOL, SCHEMA, Cell, Checked, Failed, Record, Samples, Status, Timed, to_json
from runner.waves import Occupancy, efficiency, occupancy, role

if TYPE_CHECKING:
    from pathlib import Path

PROBLEM = """
from typing import NamedTuple
class Shape(NamedTuple):
    size: int = 8
class Model: ...
def get_inputs(shape=Shape()): ...
def get_init_inputs(shape=Shape()): ...
def tiles(shape, block_m, block_n): return shape.size
SWEEPS = {"kernelbench": {"1": Shape()}}
def waves(sms):
    return {f"64x64@1w-{role}": Shape(sms + n) for role, n in (("over", 1), ("full", 0), ("under", -1))}
"""
SIZES = {"under": 127, "full": 128, "over": 129}
ROUNDS = 24
SMS = {"rtx4090": 128, "h100_sxm": 132}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with a problem and a solution."""
    for name, text in {"problems/add.py": PROBLEM, "solutions/add/quick.py": "class ModelNew: ..."}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def fill(programs: int, sms: int, per_sm: int = 1) -> Occupancy:
    """Fill a card with programs that leave no room for more than `per_sm` on an SM."""
    slots = sms * per_sm
    limits = {"warps": per_sm}
    eta_slot, eta_sm = efficiency(programs, slots), efficiency(programs, sms)
    return Occupancy(programs, per_sm, 4 * per_sm, limits, ("warps",), programs / slots, eta_slot, eta_sm)


def made(root: Path, name: str, time_us: float, **changes: Any) -> Record:
    """Make a record of a role that fills a card with one program per tile."""
    problem, card = load.find_problem("add", root), changes.pop("card", "rtx4090")
    size = changes.pop("size", SIZES[name])
    noise = changes.pop("noise", 0.001)
    times_us = tuple(time_us * (1 + noise * (n % 3 - 1)) for n in range(ROUNDS))
    samples = (Samples("solution", 1, times_us, (), 0.0, 0.0, 1.0, "cold"),)
    status = changes.pop("status", Status.PASS)
    passed = status is Status.PASS
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "time_utc": "2026-01-02T00:00:00+00:00",
        "problem": "add",
        "problem_digest": problem.digest,
        "solution": "quick",
        "solution_digest": load.find_solution("quick", "add", root).digest,
        "technique": "",
        "author": "",
        "runner_digest": "",
        "cell": Cell("waves", f"64x64@1w-{name}", {"size": size}, "fp32", "tf32"),
        "card": card,
        "environment": {},
        "entropy": "",
        "status": status,
        "failed": None if passed else Failed(status, "check", "differs"),
        "checked": Checked((), True, 1, ()) if passed else None,
        "timed": Timed(samples, "cudnn", ROUNDS, 0, 0, 1.0, "claim") if passed else None,
        "comparisons": (),
        "roofline": {"flops": 1000 * size},
        "waves": ({"kernel": "k", **to_json(fill(size, SMS[card]))},),
        "flags": (),
    }
    return Record(**fields | changes)


def keep(root: Path, *records: Record) -> list[staircase.Staircase]:
    for one in records:
        record.append(record.results_path(root / "results", one.card, one.problem, one.solution), one)
    solutions = [load.find_solution("quick", "add", root)]
    return staircase.read(root / "results", load.find_problem("add", root), solutions)


def verdicts(root: Path, over_us: float, **changes: Any) -> dict[str, str]:
    times_us = {"under": 100.0, "full": 100.0, "over": over_us}
    (stairs,) = keep(root, *(made(root, name, time_us, **changes) for name, time_us in times_us.items()))
    return {step.role.name: stairs.verdict(step) for step in stairs.steps}


def test_steps_stand_in_the_order_of_their_work_beside_the_canonical_tiles(root: Path) -> None:
    (stairs,) = keep(root, *(made(root, name, 100.0) for name in ("over", "under", "full")))
    assert (stairs.name, stairs.sms, stairs.arithmetic) == ("64x64@1w", 128, "tf32")
    assert [(step.role.name, step.tiles, step.filled.programs) for step in stairs.steps] == [
        ("under", 127, 127),
        ("full", 128, 128),
        ("over", 129, 129),
    ]


def test_a_program_too_many_costs_a_wave(root: Path) -> None:
    assert verdicts(root, 200.0) == {"under": "", "full": "", "over": "loses"}


def test_a_time_that_follows_the_work_loses_nothing(root: Path) -> None:
    assert verdicts(root, 100.0 * 129 / 128)["over"] == "loses nothing"


def test_a_loss_inside_the_noise_is_unresolved(root: Path) -> None:
    assert verdicts(root, 103.0, noise=0.05)["over"] == "unresolved"


def test_a_launch_bound_step_says_nothing(root: Path) -> None:
    assert verdicts(root, 200.0, flags=("launch_bound", "syncs"))["over"] == "launch-bound"
    assert verdicts(root, 200.0, flags=("launch_bound",))["over"] == "loses"


def test_a_time_is_that_of_all_processes(root: Path) -> None:
    """The first process is the fastest; Student's t over five of them is 2.776."""
    one = made(root, "full", 100.0, noise=0.0)
    assert one.timed is not None
    samples = [
        replace(each, process=n, times_us=(100.0 if n == 0 else 105.0,) * ROUNDS)
        for n in range(5)
        for each in one.timed.samples
    ]
    timed = replace(one.timed, samples=tuple(samples), processes=5)
    (stairs,) = keep(root, replace(one, timed=timed))
    (step,) = stairs.steps
    reach = 2.776 * math.log(1.05) / math.sqrt(5) / math.sqrt(5)
    assert step.time_us.value == pytest.approx(105.0)
    mean = (4 * math.log(105) + math.log(100)) / 5
    assert mean - math.log(step.time_us.low) == pytest.approx(reach, rel=0.01)


def test_a_time_of_nothing_is_none(root: Path) -> None:
    assert keep(root, made(root, "full", 0.0)) == []


def test_an_edge_of_another_card_is_marked_and_not_judged(root: Path) -> None:
    """129 programs pass an edge of 128 SMs and none of 132."""
    assert set(verdicts(root, 200.0, card="h100_sxm").values()) == {""}
    (stairs,) = keep(root)
    assert stairs.sms == 132
    assert {sms: stairs.edges(stairs.steps[-1], sms) for sms in (132, 128)} == {132: [], 128: ["wave", "SM"]}
    shown = staircase.show([stairs], "table")
    assert "wave of 128, SM of 128" in shown
    assert "no step passes an edge of 132 SMs" in shown


def test_the_penalty_is_time_over_work(root: Path) -> None:
    (stairs,) = keep(root, made(root, "full", 100.0), made(root, "over", 150.0))
    full, over = stairs.steps
    penalty = stairs.penalty(over)
    assert penalty is not None
    assert penalty.value == pytest.approx(1.5 * 128 / 129)
    assert penalty.low < penalty.value < penalty.high
    even = stairs.penalty(full)
    assert even is not None
    assert even.value == 1.0


def test_without_the_full_step_nothing_is_judged(root: Path) -> None:
    (stairs,) = keep(root, made(root, "over", 200.0))
    assert (stairs.penalty(stairs.steps[0]), stairs.verdict(stairs.steps[0])) == (None, "")
    assert "no step passes" in staircase.show([stairs], "github")


@pytest.mark.parametrize(
    "changes",
    [
        {"status": Status.WRONG},
        {"timed": None},
        {"waves": ()},
        {"waves": ({"kernel": "k"},)},
        {"roofline": {}},
        {"roofline": {"flops": "many"}},
        {"roofline": {"flops": 0}},
        {"protocol": PROTOCOL - 1},
        {"problem_digest": "another"},
        {"solution_digest": "another"},
        {"size": 133},
    ],
    ids=str,
)
def test_a_record_that_cannot_count_is_no_step(root: Path, changes: dict[str, Any]) -> None:
    assert keep(root, made(root, "over", 200.0, **changes)) == []


def test_the_newest_record_of_a_cell_counts(root: Path) -> None:
    newer = {"time_utc": "2026-02-02T00:00:00+00:00", "environment": {"driver": "new"}}
    (stairs,) = keep(root, made(root, "full", 50.0, **newer), made(root, "full", 100.0))
    assert stairs.steps[0].time_us.value == pytest.approx(50.0, rel=0.01)


def test_cards_and_arithmetics_have_stairs_of_their_own(root: Path) -> None:
    fp16 = Cell("waves", "64x64@1w-full", {"size": 128}, "fp16", "tf32")
    records = [made(root, "full", 100.0, **change) for change in ({}, {"card": "h100_sxm"}, {"cell": fp16})]
    found = [(one.card, one.arithmetic) for one in keep(root, *records)]
    assert found == [("h100_sxm", "tf32"), ("rtx4090", "fp16"), ("rtx4090", "tf32")]


@given(
    full=st.integers(1, 5000), more=st.integers(1, 500), per_sm=st.integers(1, 32), sms=st.integers(1, 200)
)
def test_an_edge_lies_where_an_efficiency_falls(full: int, more: int, per_sm: int, sms: int) -> None:
    """With more programs an efficiency grows up to an edge; it can only fall past one."""
    before, after = fill(full, sms, per_sm), fill(full + more, sms, per_sm)
    steps = [
        staircase.Step(
            known, None, filled, filled.programs, staircase.Spread(1.0, 1.0, 1.0), launch_bound=False
        )
        for name, filled in (("full", before), ("over", after))
        if (known := role(f"64x64@1w-{name}"))
    ]
    edges = staircase.Staircase("card", "p", "s", "tf32", tuple(steps)).edges(steps[1], sms)
    for kind, slots in (("wave", sms * per_sm), ("SM", sms)):
        low, high = efficiency(full, slots), efficiency(full + more, slots)
        # an efficiency is the programs over the slots of all rounds that were begun
        begun = round((full + more) / high / slots) - round(full / low / slots)
        assert (kind in edges) == (begun > 0)
        assert kind in edges or high > low
    # whoever waits for a wave shares an SM with more than before
    assert "wave" not in edges or "SM" in edges


def test_every_format_has_every_step_and_fits_the_terminal(root: Path) -> None:
    found = keep(
        root, *(made(root, name, us) for name, us in (("under", 99.0), ("full", 100.0), ("over", 190.0)))
    )
    text = staircase.show(found, "table")
    assert "quick on add, rtx4090, tf32" in text
    assert "steps past an edge of 128 SMs: 1 loses; at most 1.89 [1.88, 1.89]" in text
    assert max(map(len, text.splitlines())) <= 160
    rows = json.loads(staircase.show(found, "json"))
    assert [(row["role"], row["tiles"], row["past"]) for row in rows] == [
        ("under", 127, {"128": []}),
        ("full", 128, {"128": []}),
        ("over", 129, {"128": ["wave", "SM"]}),
    ]
    assert rows[2]["waves_at"] == {"128": 129 / 128}
    assert rows[2]["penalty"]["value"] == pytest.approx(1.9 * 128 / 129)
    assert rows[2]["limiters"] == ["warps"]
    assert [row["verdict"] for row in csv.DictReader(io.StringIO(staircase.show(found, "csv")))][
        -1
    ] == "loses"


def stairs_of(per_sm: int, sms: int, *programs: int) -> staircase.Staircase:
    """Return stairs of 64x64 tiles whose times follow their work."""
    steps = [
        staircase.Step(one, None, fill(count, sms, per_sm), count, spread, launch_bound=False)
        for count in programs
        if (one := role("64x64@1w-full" if count == programs[0] else "64x64@1w-over"))
        and (spread := staircase.Spread(count, count - 0.5, count + 0.5))
    ]
    return staircase.Staircase("card", "p", "s", "tf32", tuple(steps))


@pytest.mark.parametrize(
    ("per_sm", "sms", "programs", "expected"),
    [
        (2, 132, (248, 264), [(264, "wave", "card"), (256, "wave", "target")]),
        (2, 132, (120, 136), [(132, "SM", "card"), (128, "SM", "target")]),
        (1, 132, (130, 264), [(132, "wave", "card"), (264, "wave", "card"), (256, "wave", "target")]),
        (1, 128, (128, 129), [(128, "wave", "card")]),
        (1, 132, (1, 2), []),
    ],
)
def test_the_picture_marks_the_edges_of_card_and_target(
    per_sm: int, sms: int, programs: tuple[int, ...], expected: list[tuple[int, str, str]]
) -> None:
    found = staircase_svg.edges(stairs_of(per_sm, sms, *programs))
    assert [(one.programs, one.kind, one.owner) for one in found] == expected


SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_stands_alone_and_says_what_it_shows(root: Path) -> None:
    steps = (("under", 99.0), ("full", 100.0), ("over", 190.0))
    elsewhere = made(root, "full", 9.0, card="h100_sxm")
    found = keep(root, *(made(root, name, us) for name, us in steps), elsewhere)
    text = staircase_svg.draw(found)
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    svg = ET.fromstring(text)  # noqa: S314 - made here
    assert {one.get("id") for one in svg if one.get("id")} == {"title", "about"}
    assert "over 129 programs 190.0 us" in (svg.findtext(f"{SVG}desc") or "")
    assert "prefers-color-scheme: dark" in (svg.findtext(f"{SVG}style") or "")
    h100, rtx4090 = svg.findall(f"{SVG}g")
    assert len(rtx4090.findall(f".//{SVG}circle")) == 3
    (lost,) = rtx4090.findall(f".//{SVG}circle[@class='step loses']")
    assert lost.findtext(f"{SVG}title") == "over 129 programs 190.0 us; 1.01 waves of 128 SMs; loses"
    assert [one.get("class") for one in h100.findall(f"{SVG}line") if "edge" in one.get("class", "")] == [
        "edge wave target"
    ]
    assert {"time, \N{MICRO SIGN}s", "programs"} <= {one.text for one in rtx4090.iter(f"{SVG}text")}


@given(count=st.integers(1, 10**6), more=st.integers(0, 10**6), sms=st.integers(1, 200))
def test_any_stairs_are_drawn_inside_their_panel(count: int, more: int, sms: int) -> None:
    svg = ET.fromstring(staircase_svg.draw([stairs_of(1, sms, count, count + more)]))  # noqa: S314
    for one in svg.iter(f"{SVG}circle"):
        assert staircase_svg.LEFT <= float(one.get("cx", "nan")) <= staircase_svg.RIGHT
        assert staircase_svg.TOP <= float(one.get("cy", "nan")) <= staircase_svg.BOTTOM


def test_a_name_cannot_break_out_of_the_picture() -> None:
    odd = replace(stairs_of(1, 128, 128), arithmetic="</desc><script>\x1b\0")
    svg = ET.fromstring(staircase_svg.draw([odd]))  # noqa: S314
    assert not list(svg.iter(f"{SVG}script"))


def test_the_picture_goes_to_a_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(root, made(root, "full", 100.0))
    assert run(root, "--format", "svg", "-o", str(root / "stairs.svg")) == exits.EXIT_DONE
    assert capsys.readouterr().out == ""
    assert (root / "stairs.svg").read_text().startswith("<svg")
    assert run(root, "--format", "svg", "-o", "/proc/stairs.svg") == exits.EXIT_USAGE
    assert "cannot write" in capsys.readouterr().err


def run(root: Path, *words: str) -> int:
    problem, solution = root / "problems/add.py", root / "solutions/add/quick.py"
    named = ["--problem", str(problem), "--solution", str(solution)]
    named += [] if "--results" in words else ["--results", str(root / "results")]
    return cli.main(["staircase", *named, *words])


def test_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(root, made(root, "full", 100.0), made(root, "full", 100.0, card="h100_sxm"))
    assert run(root, "--card", "rtx4090", "--format", "json") == exits.EXIT_DONE
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["card"], row["stairs"]) == ("rtx4090", "64x64@1w")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--card", "rtx409"], "rtx4090"),
        (["--results", "/nowhere"], "does not exist"),
        (["--results", "."], "--shapes waves"),
    ],
)
def test_bad_input_is_one_line(
    root: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(root, made(root, "full", 100.0))
    assert run(root, *words) == exits.EXIT_USAGE
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert said in line


def test_a_full_wave_of_the_target_is_a_whole_number_of_waves() -> None:
    filled = occupancy(128, 255, 0, (256,), load_card("rtx4090"))
    assert (filled.sms, filled.waves) == (128, 1.0)
