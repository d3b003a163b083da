"""The page of the leaderboard: one sound file, the leaderboard's numbers, and nobody's script but ours."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import cli, leaderboard, load, page, page_data, page_html, record, standings, summary
from runner.cards import load_card
from runner.commands import exits
from runner.schema import PROTOCOL, SCHEMA, Cell, Checked, Failed, Record, Samples, Status, Timed, to_json
from runner.waves import occupancy

if TYPE_CHECKING:
    from pathlib import Path

PROBLEM = """
from typing import NamedTuple
class Shape(NamedTuple):
    size: int = 8
class Model: ...
def get_inputs(shape=Shape()): ...
def get_init_inputs(shape=Shape()): ...
SWEEPS = {"kernelbench": {"1": Shape()}, "layers": {f"layer{n}": Shape(n) for n in range(2, 7)}}
def waves(sms):
    return {f"64x64@1w-{role}": Shape(sms + n) for n, role in enumerate(("full", "over"))}
"""
SIZES = {
    "kernelbench/1": 8,
    **{f"layers/layer{n}": n for n in range(2, 7)},
    "waves/64x64@1w-full": 128,
    "waves/64x64@1w-over": 129,
}
QUICK = '"""Does it at once."""\nclass ModelNew: ...\n'
SLOW = '"""Waits first."""\nimport time\nclass ModelNew: ...\n'
ROUNDS = 24
DIGEST = rf"\b[0-9a-f]{{{standings.DIGEST_CHARS}}}"
VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = (
    "<!--<script></script></style></pre><script>alert(1)</script><img src=x onerror='f()' title=\"&lt;\u202e"
)


class Document(HTMLParser):
    """A page as a parser sees it; what is not well-formed fails the test."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> says something twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all(self, name: str) -> list[str]:
        """Return the values of an attribute, wherever it stands."""
        return [str(attributes[name]) for _, attributes in self.tags if name in attributes]

    def text(self, tag: str, index: int = 0) -> str:
        return [data for inside, data in self.texts if inside == tag][index]

    @property
    def visible(self) -> str:
        return "\n".join(data for tag, data in self.texts if tag not in ("script", "style"))

    @property
    def skeleton(self) -> list[tuple[str, list[str]]]:
        """The elements with the names of their attributes, whatever they say."""
        return [(tag, sorted(attributes)) for tag, attributes in self.tags]


def around(time_us: float, noise: float) -> tuple[float, ...]:
    """Return samples with the median `time_us`."""
    return tuple(time_us * (1 + noise * (n % 3 - 1)) for n in range(ROUNDS))


def grid_of(programs: int) -> dict[str, Any]:
    """Fill an RTX 4090 with programs that leave no room for a second one on an SM."""
    filled = occupancy(128, 32, 99 * 1024, (programs,), load_card("rtx4090"))
    return {"kernel": "add_kernel", **to_json(filled)}


def made(root: Path, solution: str, place: str, speedup: float, **changes: Any) -> Record:
    """Make a record of the files under `root` as they are; `status` may say that it failed."""
    sweep, label = place.split("/")
    status = changes.pop("status", Status.PASS)
    passed = status is Status.PASS
    baseline = changes.pop("baseline", "cudnn")
    times_us = {"solution": 100 / speedup, baseline: 100.0}
    samples = [
        Samples(name, 1, around(us, 0.01 if name == baseline else -0.01), (), 0.0, 0.0, 1.0, "cold")
        for name, us in times_us.items()
    ]
    size = SIZES.get(place, 1)
    one = Record(
        schema=SCHEMA,
        protocol=PROTOCOL,
        time_utc="2026-01-02T00:00:00+00:00",
        problem="add",
        problem_digest=load.find_problem("add", root).digest,
        solution=solution,
        solution_digest=load.find_solution(solution, "add", root).digest,
        technique="",
        author="A. Contributor",
        runner_digest="",
        cell=Cell(sweep, label, {"size": size}, "fp32", "tf32"),
        card="rtx4090",
        environment={"isolation": {"level": "full"}},
        entropy="",
        status=status,
        failed=None if passed else Failed(status, "check", "differs"),
        checked=Checked((), True, 1, ()) if passed else None,
        timed=Timed(tuple(samples), baseline, ROUNDS, 0, ROUNDS, 1.0, "claim") if passed else None,
        comparisons=(),
        roofline={"share_of_bound": speedup / 10, "flops": size * 10**6, "min_bytes": 10**5},
        waves=(grid_of(size),),
        flags=("launch_bound",) if place.endswith("layer2") else (),
    )
    return replace(one, **changes)


def keep(root: Path, *records: Record) -> None:
    for one in records:
        record.append(record.results_path(root / "results", one.card, one.problem, one.solution), one)


def make_root(folder: Path) -> Path:
    """Fill a folder with a problem, two solutions and records of two boards, one of them incomplete."""
    for name, text in {
        "problems/add.py": PROBLEM,
        "solutions/add/quick.py": QUICK,
        "solutions/add/slow.py": SLOW,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for number, place in enumerate(SIZES):
        keep(folder, made(folder, "quick", place, 1.5 + number / 10), made(folder, "slow", place, 0.5))
        half = Cell(*place.split("/"), {"size": SIZES[place]}, "fp16", "tf32")
        keep(folder, made(folder, "slow", place, 2.5, cell=half))
    keep(
        folder,
        made(folder, "quick", "kernelbench/1", 1.0, status=Status.WRONG, cell=replace(half, sweep="hidden")),
    )
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def boards_of(root: Path) -> list[leaderboard.Board]:
    boards, problems = leaderboard.read(root / "results", root)
    assert problems == []
    return boards


def rendered(root: Path) -> str:
    return page.render(boards_of(root), page_data.newest(leaderboard.read_records(root / "results")[0]), root)


def test_the_page_is_sound_and_names_what_it_refers_to(root: Path) -> None:
    document = Document(rendered(root))
    ids = document.all("id")
    assert len(ids) == len(set(ids))
    assert {target.removeprefix("#") for target in document.all("href")} <= set(ids)
    assert set(document.all("aria-labelledby")) <= set(ids)
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in document.tags if tag == "th")
    tags = [tag for tag, _ in document.tags]
    assert tags.count("table") == tags.count("caption") == 6
    assert tags.count("details") == tags.count("summary")
    assert all(attributes.get("type") == "button" for tag, attributes in document.tags if tag == "button")


def test_a_boards_flags_are_explained(root: Path) -> None:
    text = rendered(root)
    assert text.count("What the flags mean") == 2
    assert "<li>wide: the interval is wider" in text
    assert "<li>library: " not in text


def test_the_page_loads_nothing(root: Path) -> None:
    document = Document(rendered(root))
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, _ in document.tags
    }
    assert not document.all("src")
    assert all(target.startswith("#") for target in document.all("href"))
    assert not re.search(r"url\(|@import", document.text("style"))
    assert not re.search(r"fetch|XMLHttp|WebSocket|import\(|innerHTML|eval", document.text("script", 1))


def test_the_policy_allows_this_style_and_this_script_alone(root: Path) -> None:
    document = Document(rendered(root))
    (policy,) = (a["content"] for _, a in document.tags if a.get("http-equiv") == "Content-Security-Policy")
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (document.text("style"), document.text("script", 1))
    ]
    assert policy == f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'"
    assert not [name for _, attributes in document.tags for name in attributes if name.startswith("on")]
    assert "style" not in {name for _, attributes in document.tags for name in attributes}


def test_the_tables_are_those_of_the_command_line(root: Path) -> None:
    """Texts that a solution had before have a line in neither."""
    keep(root, made(root, "quick", next(iter(SIZES)), 9.0, solution_digest="0" * 64))
    boards = boards_of(root)
    assert [board.superseded["quick"] for board in boards] == [0, 1]
    means, shown = summary.tables(boards), Document(rendered(root)).tables
    for lines, table in zip(means.values(), shown, strict=False):
        assert table == [list(lines[0]), *(list(line.values()) for line in lines)]
    shown = shown[len(means) :: 2]
    assert len(shown) == len(boards) == 2
    for board, table in zip(boards, shown, strict=True):
        lines = [line for line in standings.show([board], "github").splitlines() if line.startswith("|")]
        printed = [[field.strip() for field in line.strip("|").split("|")] for line in lines]
        assert table == [printed[0], *printed[2:]]


def test_every_cell_has_the_leaderboards_numbers(root: Path) -> None:
    document = Document(rendered(root))
    data = json.loads(document.text("script"))
    for board, drawn, table in zip(boards_of(root), data, document.tables[3::2], strict=True):
        expected = {
            (row["solution"], row["shape"]): row
            for row in json.loads(standings.show([board], "json", "shape"))
        }
        cells = {(one["name"], cell["shape"]): cell for one in drawn["solutions"] for cell in one["cells"]}
        assert cells.keys() == {key for key in expected if not key[1].startswith("hidden/")}
        for key, cell in cells.items():
            same = {name: value for name, value in cell.items() if name in expected[key]}
            assert same.items() <= expected[key].items()
            assert ("speedup" in same) == (expected[key]["speedup"] is not None)
        figures = [[row[0], row[1], row[2].partition(" ")[0]] for row in table[1:]]
        assert figures == [
            [shape, name, f"{cell['speedup']:.2f}" if "speedup" in cell else "-"]
            for (name, shape), cell in cells.items()
        ]


def test_a_point_has_its_time_its_place_under_the_roof_and_its_waves(root: Path) -> None:
    (_, tf32) = json.loads(Document(rendered(root)).text("script"))
    (quick, _) = tf32["solutions"]
    cell = next(cell for cell in quick["cells"] if cell["label"] == "64x64@1w-over")
    assert cell["time_us"] == pytest.approx(100 / cell["speedup"])
    assert (cell["flops"], cell["min_bytes"], cell["share_of_bound"]) == (129e6, 1e5, pytest.approx(0.22))
    assert (cell["programs"], cell["programs_per_sm"], cell["waves"]) == (129, 1, 129 / 128)
    assert cell["sms"] == tf32["target_sms"] == 128
    assert (cell["limiters"], cell["tail"]) == (["shared"], "50%")
    assert tf32["roof"] == {"gb_per_s": 1008.0, "tflops": pytest.approx(82.6, rel=0.01)}


def test_a_sweep_placed_for_another_card_does_not_lend_its_times(root: Path) -> None:
    before = rendered(root)
    elsewhere = Cell("waves", "64x64@1w-full", {"size": 132}, "fp32", "tf32")
    late = "2026-01-03T00:00:00+00:00"
    keep(root, made(root, "quick", "waves/64x64@1w-full", 9.0, cell=elsewhere, time_utc=late))
    assert rendered(root).replace("2026-01-03", "2026-01-02") == before


def test_the_newest_record_of_a_cell_is_drawn(root: Path) -> None:
    place = "kernelbench/1"
    for year, speedup in (("2027", 4.0), ("2025", 9.0)):
        driver = {"driver": year, "isolation": {"level": "full"}}  # under another driver a cell is run again
        when = f"{year}-01-02T00:00:00+00:00"
        keep(root, made(root, "slow", place, speedup, time_utc=when, environment=driver))
    (_, slow) = json.loads(Document(rendered(root)).text("script"))[1]["solutions"]
    (cell,) = (cell for cell in slow["cells"] if cell["shape"] == place)
    assert cell["time_us"] == pytest.approx(25)
    assert cell["speedup"] == pytest.approx(4)


@pytest.mark.parametrize("junk", [None, "many", float("nan"), float("inf"), -1, 0, [3]])
def test_a_record_may_say_anything_of_roof_and_waves(root: Path, junk: Any) -> None:
    place = "kernelbench/1"
    odd = made(root, "slow", place, 2.0, time_utc="2026-01-03T00:00:00+00:00")
    roofline = {"share_of_bound": 0.1, "flops": junk, "min_bytes": 1}
    grid = grid_of(7) | {"programs": junk}
    odd = replace(odd, roofline=roofline, waves=(grid, {}))
    records = page_data.newest(leaderboard.read_records(root / "results")[0])
    data = page.render(boards_of(root), {**records, page_data._key(odd): odd}, root)
    (cell,) = (
        c
        for c in json.loads(Document(data).text("script"))[1]["solutions"][1]["cells"]
        if c["shape"] == place
    )
    assert cell["time_us"] == 50
    assert not {"flops", "programs"} & cell.keys()


def test_what_strangers_write_stays_text(root: Path) -> None:
    file = root / "solutions/add/quick.py"

    def with_text(text: str) -> Document:
        file.write_text(f'"""{text}"""\n')
        mine = [made(root, "quick", place, 2.0, author=text, flags=(text,), baseline=text) for place in SIZES]
        hidden = replace(mine[0].cell, sweep="hidden", label=text)
        (root / "results/rtx4090/add/quick.jsonl").unlink()
        keep(root, *mine, made(root, "quick", "layers/layer2", 1.0, status=Status.WRONG, cell=hidden))
        foreign = replace(mine[0], problem=text, card=text, solution=text)
        (root / "results/rtx4090/add/foreign.jsonl").write_text(record.to_line(foreign) + "\n")
        return Document(rendered(root))

    harmless, hostile = with_text("harmless"), with_text(HOSTILE)
    assert hostile.skeleton == harmless.skeleton
    spelled = HOSTILE.replace("\u202e", "\\u202e")
    expected, shown = (re.sub(DIGEST, "digest", one.visible) for one in (harmless, hostile))
    assert shown.replace(spelled, "harmless") == expected
    drawn = json.loads(hostile.text("script"))[-1]["solutions"]
    assert HOSTILE in {cell["baseline"] for one in drawn for cell in one["cells"]}


@given(st.text(st.characters(exclude_categories=())))
def test_a_safe_text_is_read_back_as_it_is_spelled(text: str) -> None:
    document = Document(f'<p title="{page_html.safe(text)}">{page_html.safe(text)}</p>')
    spelled = "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in text)
    assert document.tags == [("p", {"title": spelled})]
    assert "".join(data for _, data in document.texts) == spelled


def test_the_same_records_give_the_same_page(root: Path) -> None:
    records = page_data.newest(leaderboard.read_records(root / "results")[0])
    boards = boards_of(root)
    assert page.render(boards, records, root) == page.render(boards, dict(reversed(records.items())), root)


def test_sources_and_their_difference_are_shown(root: Path) -> None:
    document = Document(rendered(root))
    assert [data for tag, data in document.texts if tag == "code"][:2] == [QUICK, SLOW]
    assert [data for tag, data in document.texts if tag == "ins"] == ['+"""Waits first."""', "+import time"]
    assert [data for tag, data in document.texts if tag == "del"] == ['-"""Does it at once."""']
    assert ("span", "+2 −1 lines") in document.texts  # noqa: RUF001 - the page's minus


def test_a_solution_that_has_changed_is_listed_without_a_source(root: Path) -> None:
    (root / "solutions/add/quick.py").write_text(QUICK + "# edited\n")
    document = Document(rendered(root))
    (_, tf32) = json.loads(document.text("script"))
    assert [one["name"] for one in tf32["solutions"]] == ["slow"]
    assert QUICK not in [data for _, data in document.texts]
    assert "unranked: stale, its file has changed" in {row[2] for row in document.tables[4]}


def test_the_overview_names_the_first_or_who_has_come_furthest(root: Path) -> None:
    def overview() -> list[str]:
        texts = [data for tag, data in Document(rendered(root)).texts if tag == "span"]
        return [one for one in texts if one.startswith(("first: ", "unranked: ", "nobody "))]

    keep(root, *(made(root, who, "kernelbench/1", 2.0, card="h200") for who in ("quick", "slow")))
    keep(root, made(root, "slow", "layers/layer2", 2.0, card="h200"))
    assert "unranked: slow, 2.00 on 2 of 8 cells" in overview()
    assert any(one.startswith("first: quick, ") for one in overview())
    first, *others = SIZES
    keep(root, *(made(root, "slow", place, 9.0) for place in others))
    keep(root, made(root, "slow", first, 9.0, status=Status.WRONG))
    assert any("first: quick, " in one and "; unranked and faster: slow, " in one for one in overview())
    for name in ("quick", "slow"):
        (root / f"solutions/add/{name}.py").write_text(QUICK + "# edited\n")
    assert set(overview()) == {"nobody is ranked"}


def test_a_page_without_records_says_so(tmp_path: Path) -> None:
    assert "no records" in Document(page.render([], {}, tmp_path)).text("li")


def test_the_command_writes_one_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["leaderboard", "--results", str(root / "results"), "--format", "html", "-o", str(root / "a/b")]
    assert cli.main(words) == exits.EXIT_DONE
    assert [path.name for path in (root / "a/b").iterdir()] == ["index.html"]
    assert capsys.readouterr().out == f"{root / 'a/b/index.html'}\n"
    Document((root / "a/b/index.html").read_text())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "html"], "-o DIR"),
        (["-o", "folder"], "--format html"),
        (["--format", "html", "-o", "folder", "--by", "shape"], "--by"),
        (["--format", "html", "-o", "folder", "--write"], "not allowed with"),
        (["--format", "html", "-o", "/dev/null"], "cannot write '/dev/null/index.html'"),
    ],
)
def test_bad_usage_is_one_line(
    root: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["leaderboard", "--results", str(root / "results"), *words]) == exits.EXIT_USAGE
    assert said in capsys.readouterr().err
