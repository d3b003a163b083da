"""A stranger's file: kept with its records where it passes; where it does not, nothing is touched."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import string
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_faults import expectation

from runner import arguments, leaderboard, lint, load, pipeline, plan, record, standings, submit
from runner.cli import main
from runner.commands import checking
from runner.schema import DTYPES, HIDDEN, PROTOCOL, Cell, Failed, Launch, Record, Samples, Status, Timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
FAULTS = ROOT / "tests" / "faults"
AUTHOR = "A. Contributor"
PROBLEM = load.find_problem("convtranspose2d")
SMOKE = PROBLEM.sweeps(128)["smoke"]
ARITHMETICS = 3
CELLS = ARITHMETICS * (len(SMOKE) + 1)  # and a hidden shape

SOURCE = '''"""Ask the layer: nothing but PyTorch."""
from torch import nn

class ModelNew(nn.Module):
    def __init__(self, ins, outs, kernel, stride=1, padding=0, dilation=1, bias=False, extra=0, groups=1):
        super().__init__()
        self.layer = nn.ConvTranspose2d(ins, outs, kernel, stride, padding, extra, groups, bias, dilation)

    def forward(self, x):
        return self.layer(x)
'''


def changed(old: str, new: str) -> str:
    assert old in SOURCE
    return SOURCE.replace(old, new)


@pytest.mark.parametrize(
    ("docstring", "signed"),
    [
        ('"""Tile."""', '"""Tile.\n\nauthor: A. Contributor\n"""'),
        ('"""Tile.\n\nMore.\n"""', '"""Tile.\n\nMore.\n\nauthor: A. Contributor\n"""'),
        ("r'''Tile \\d.'''", "r'''Tile \\d.\n\nauthor: A. Contributor\n'''"),
        ('# "café"\n"""Größe."""', '# "café"\n"""Größe.\n\nauthor: A. Contributor\n"""'),
        ('"""Tile.\n\nAuthor: A. Contributor\n"""', '"""Tile.\n\nAuthor: A. Contributor\n"""'),
    ],
)
def test_a_docstring_is_signed_where_it_is_not(docstring: str, signed: str) -> None:
    assert submit.sign(f"{docstring}\nMATH = 1\n", AUTHOR) == f"{signed}\nMATH = 1\n"


@pytest.mark.parametrize("author", ["C:\\x41", "\\8"])
def test_a_backslash_is_no_escape(author: str) -> None:
    for prefix in ("", "r"):
        signed = submit.sign(f'{prefix}"""Tile."""\n', author)
        assert lint.read_header(signed).author == author


@pytest.mark.parametrize(
    ("docstring", "author", "remedy"),
    [
        ('"""Tile.\n\nauthor: B\n"""', AUTHOR, "signed by 'B': make them agree"),
        ("'Tile.'", AUTHOR, "write the line 'author: A. Contributor'"),
        ('"""Tile."""', '"""', "write the line"),
        ('"""Tile."""', "two\nlines", "one line that names somebody"),
        ('"""Tile."""', " ", "one line that names somebody"),
        ('"""Tile.\n    notes: indented\n    """', AUTHOR, "write the line"),
    ],
)
def test_what_cannot_be_signed_says_what_to_do(docstring: str, author: str, remedy: str) -> None:
    with pytest.raises(load.BadInput, match=re.escape(remedy)):
        submit.sign(docstring, author)


@given(st.text(), st.text(max_size=20), st.sampled_from(['"""', "'''", "'"]), st.sampled_from(["", "r"]))
def test_a_signature_changes_nothing_else(text: str, author: str, quotes: str, prefix: str) -> None:
    assume(prefix or "\\" not in text)  # an escape that there is not is a warning, here an error
    source = f"{prefix}{quotes}{text}{quotes}\nMATH = ('tf32',)\nclass ModelNew: ...\n"
    assume(not any(one.severity == lint.ERROR for one in submit.findings(source)))
    try:
        signed = submit.sign(source, author)
    except load.BadInput:
        return
    assert lint.read_header(signed) == replace(lint.read_header(source), author=author.strip())
    before, after = ([ast.dump(node) for node in ast.parse(one).body[1:]] for one in (source, signed))
    assert before == after
    assert submit.sign(signed, author) == signed


@given(st.text(st.sampled_from(string.printable + "éß/.."), min_size=1, max_size=120))
def test_a_name_is_safe_in_a_path_and_stays_what_it_is(text: str) -> None:
    try:
        name = submit.slug(text)
    except load.BadInput:
        return
    assert re.fullmatch("[a-z][a-z0-9_]{0,47}", name)
    assert submit.slug(name) == name


def test_names_are_made_of_whole_words() -> None:
    assert submit.slug("Sub-pixel  décomposition, 2x!") == "sub_pixel_decomposition_2x"
    assert submit.slug("word " * 20) == "_".join(["word"] * 9)
    assert submit.slug("x" * 49) == "x" * 48
    for nothing in ("", "../..", "3x faster"):
        with pytest.raises(load.BadInput, match="choose a --name"):
            submit.slug(nothing)


@dataclass(frozen=True)
class Folders:
    """Where a submission may end, with what was there before."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def solutions(self) -> Path:
        return self.root / "solutions"

    def snapshot(self) -> dict[str, bytes | None]:
        """Return files and folders; the lock of a whole results folder is nobody's content."""
        found = (path for path in self.root.rglob("*") if not path.name.startswith(".lock"))
        return {str(path): path.read_bytes() if path.is_file() else None for path in found}

    def propose(self, source: str = SOURCE, name: str | None = None) -> load.Solution:
        return submit.propose(source, PROBLEM.name, AUTHOR, name, self.solutions)

    def main(self, file: Path, *options: str, command: str = "submit") -> int:
        places = ("--results", str(self.results), "--solutions", str(self.solutions))
        named = {"--problem": PROBLEM.name, "--author": AUTHOR, "--device": "cpu"}
        own = (word for pair in named.items() if pair[0] not in options for word in pair)
        return main([command, str(file), *own, *places, *options])


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = Folders(tmp_path / "root")
    for text, path in (
        ('"""Other."""\n', folders.solutions / PROBLEM.name / "other.py"),
        ('{"an earlier": "record"}\n{"torn', folders.results / "h200" / PROBLEM.name / "other.jsonl"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return folders


def test_a_solution_is_named_by_its_technique_and_never_written_over(folders: Folders) -> None:
    solution = folders.propose()
    assert solution.name == "ask_the_layer"
    assert solution.path == folders.solutions / PROBLEM.name / "ask_the_layer.py"
    assert lint.read_header(solution.source).author == AUTHOR
    solution.path.write_bytes(solution.source.encode())
    assert folders.propose() == solution
    for source, name in ((SOURCE + "\n", None), (SOURCE, "Other")):
        with pytest.raises(load.BadInput, match="is another text: choose another --name"):
            folders.propose(source, name)
    assert folders.propose(name="Ask again").name == "ask_again"


def test_without_a_gpu_it_stops_after_correctness_and_says_what_remains(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, before = tmp_path / "mine.py", folders.snapshot()
    file.write_text(SOURCE)
    assert folders.main(file) == 0
    said = capsys.readouterr()
    assert folders.snapshot() == before
    assert f"{file}:10: advice [library]" in said.out
    assert f"correct, on smoke and hidden shapes: {CELLS} PASS\nnothing is timed" in said.out
    assert "hidden/drawn tf32 PASS" in said.err
    (command,) = re.findall(r"on a GPU: python -m runner (submit .*)", said.out)
    words = shlex.split(command)
    assert words[words.index("--author") + 1] == AUTHOR
    assert words[words.index("--name") + 1] == "ask_the_layer"
    assert main([*words, "--device", "cuda:99"]) == 4  # it parses; there is no such GPU


def test_what_remains_keeps_what_was_asked_for(folders: Folders, passed: Record) -> None:
    limits = {"call_s": 7.5, "memory_bytes": int(0.3 * 2**30), "processes": 5}
    request = replace(cpu_request(folders, SOURCE), limits=limits)
    run = run_with(lambda _: passed)
    report = submit.submit(request, "mine.py", lambda _: None, isolation="partial", run=run)
    options = arguments.parse(shlex.split(report.lines[-2].partition("python -m runner ")[2]))
    assert (options.timeout, int(options.memory * 2**30), options.ranked) == (
        *tuple(limits.values())[:2],
        True,
    )
    assert (options.results, options.solutions) == (folders.results, folders.solutions)
    assert (options.dtype, options.math, options.require) == ("fp32,fp16", "tf32,fp32", "partial")
    here = replace(
        request, solutions=(submit.propose(SOURCE, PROBLEM.name, AUTHOR, None, ROOT / "solutions"),)
    )
    here = replace(here, results=ROOT / "results", limits={})
    report = submit.submit(here, "mine.py", lambda _: None, run=run)
    assert not re.search("--(results|solutions|require|ranked|memory|timeout)", report.lines[-2])


#: name -> text and what its report has to hold; between them all that a contestant can do wrong
REFUSED = {
    **{
        name: ((FAULTS / f"{name}.py").read_text(), ": ".join(expectation(FAULTS / f"{name}.py")))
        for name in (
            *("returns_its_input", "writes_its_input", "exits_at_once"),
            *("hangs_in_forward", "segfaults", "exhausts_memory"),
        )
    },
    "takes_too_few": (changed("kernel, stride=1", "stride=1"), "BUILD: "),
}


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Have one right solution judged, to give its record to runs that start no judge."""
    folder = tmp_path_factory.mktemp("judged")
    cells = plan.plan_cells(PROBLEM, ["smoke/sparse"], ["fp32"], ["tf32"], "cpu", 128)
    request = plan.Request(PROBLEM, (Folders(folder).propose(),), cells, (), "cpu", folder / "results")
    (one,) = pipeline.run(request, lambda _: None).records
    assert one.status is Status.PASS
    return one


def run_with(record_of: Callable[[Cell], Record]) -> submit.Run:
    """Return a run that has the records already."""

    def run(request: plan.Request, watch: Callable[[pipeline.Event], None]) -> pipeline.Outcome:
        jobs, records = request.jobs, []
        for index, job in enumerate(jobs):
            records.append(replace(record_of(job.cell), cell=job.cell))
            watch(pipeline.Event(index, len(jobs), job, records[-1]))
        return pipeline.Outcome(tuple(records), 0, ())

    return run


def cpu_request(folders: Folders, source: str) -> plan.Request:
    cells = plan.plan_cells(PROBLEM, (), ["fp32", "fp16"], ["tf32", "fp32"], "cpu", 128)
    return plan.Request(PROBLEM, (folders.propose(source),), cells, (), "cpu", folders.results)


@pytest.mark.parametrize("name", REFUSED)
def test_a_submission_that_fails_leaves_both_folders_untouched(
    name: str, folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source, expected), before = REFUSED[name], folders.snapshot()
    file = tmp_path / "mine.py"
    file.write_text(source)
    assert folders.main(file, "--timeout", "2", "--memory", "0.5") == 1
    said = capsys.readouterr()
    assert folders.snapshot() == before
    assert len(said.err.splitlines()) == 1  # nothing is run after a failure
    first, second, third = said.out.splitlines()[-3:]
    assert first == f"before the first failure, of {CELLS} cells: none"
    assert second.startswith(f"smoke/sparse tf32: {expected}")
    assert third.startswith(f"nothing is written; to see it again: python -m runner check {file}")
    assert third.endswith("--timeout 2 --memory 0.5")


def test_every_status_against_a_file_is_tried() -> None:
    on_the_cpu = {Status(expected.partition(":")[0]) for _, expected in REFUSED.values()}
    assert {*on_the_cpu, *ON_A_GPU, *submit.ADMITTED} == set(Status)


def test_a_file_that_covers_no_cell_is_bad_input(folders: Folders, passed: Record) -> None:
    failed = Failed(Status.NOT_COVERED, "plan", "not declared")
    run = run_with(lambda _: replace(passed, status=failed.status, failed=failed, checked=None))
    with pytest.raises(load.BadInput, match=rf"run in no cell \({CELLS} NOT_COVERED\)"):
        submit.submit(cpu_request(folders, SOURCE), "mine.py", lambda _: None, run=run)


def test_knowing_the_public_shapes_is_not_enough_and_the_failure_can_be_seen_again(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("batch", "in_channels", "height", "width", "out_channels")
    known = {tuple(shape[size] for size in sizes) for shape in SMOKE.values()}
    file, before = tmp_path / "mine.py", folders.snapshot()
    file.write_text(
        changed("self.layer(x)\n", f"self.layer(x) + ((*x.shape, self.layer.out_channels) not in {known})\n")
    )
    assert folders.main(file, "--dtype", "fp32", "--math", "tf32") == 1
    said = capsys.readouterr().out
    assert folders.snapshot() == before
    assert f"of {len(SMOKE) + 1} cells: {len(SMOKE)} PASS\nhidden/drawn tf32: WRONG: values" in said
    (command,) = re.findall(r"to see it again: python -m runner (.*)", said)
    assert main(shlex.split(command)) == 1
    assert "0 of 1 cells pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("class ModelNew(:\n", "syntax"),
        (changed("ModelNew", "Model"), "no-model"),
        (changed(SOURCE.partition("\n")[0], ""), "no-technique"),
        (changed("from torch", "import numpy\nfrom torch"), "import"),
    ],
)
def test_lint_refuses_before_anything_runs(
    text: str, rule: str, folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, before = tmp_path / "mine.py", folders.snapshot()
    file.write_text(text)
    assert folders.main(file) == 1
    said = capsys.readouterr()
    assert f"error [{rule}]" in said.out
    assert said.out.endswith(f"mend what is an error in '{file}'\n")
    assert said.err == ""
    assert folders.snapshot() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--problem", "problems/convtranspose2d.py"), "problem of problems/ 'problems/convtranspose2d.py'"),
        (("--problem", "softmax"), "problem of problems/ 'softmax'"),
        (("--author", "B\nC"), "one line that names somebody"),
        (("--name", "Other"), "choose another --name"),
        (("--name", "3x"), "choose a --name"),
        (("--dtype", "fp61"), "did you mean fp16"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, str],
    words: str,
    folders: Folders,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, before = tmp_path / "mine.py", folders.snapshot()
    file.write_text(changed(".ConvTranspose2d", ".Identity"))
    assert folders.main(file, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert folders.snapshot() == before


#: Statuses of a GPU's times, or of the harness: made up, where all others are those of a judge.
ON_A_GPU = (Status.INVALID, Status.ERROR)
ROUNDS = 24


def on_a_gpu(
    passed: Record, failing: str = "", status: Status = Status.WRONG, level: str = "full"
) -> submit.Run:
    """Return a run that gives each cell the record that passed, as if it was made on an H200."""
    samples = [Samples(name, 1, (9.0,) * ROUNDS, (), 0.0, 0.0, 1.0, "cold") for name in ("solution", "cudnn")]
    timed = Timed(tuple(samples), "cudnn", ROUNDS, 0, ROUNDS, 1.0, "claim")
    isolation = {"level": level, "layers": [], "missing": [] if level == "full" else ["net", "ipc"]}
    made = replace(passed, card="h200", environment={**passed.environment, "isolation": isolation})

    def one(cell: Cell) -> Record:
        if failing and f"{cell.sweep}/{cell.label}".startswith(failing):
            return replace(made, status=status, failed=Failed(status, "time", "values"), checked=None)
        return replace(made, timed=None if cell.sweep in ("smoke", HIDDEN) else timed)

    return run_with(one)


def gpu_request(folders: Folders) -> plan.Request:
    cells = plan.plan_cells(PROBLEM, ["kernelbench"], ["fp32", "fp16"], ["tf32", "fp32"], "cuda:0", 128)
    return plan.Request(PROBLEM, (folders.propose(),), cells, ("cudnn",), "cuda:0", folders.results)


def test_on_a_gpu_a_file_and_its_records_are_kept_and_go_to_the_table(
    folders: Folders, passed: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    request, seen, before = gpu_request(folders), [], folders.snapshot()
    report = submit.submit(request, "mine.py", seen.append, run=on_a_gpu(passed))
    solution = load.find_solution("ask_the_layer", PROBLEM.name, folders.root)
    records, problems = record.read(folders.results / "h200" / PROBLEM.name / "ask_the_layer.jsonl")
    assert problems == []
    assert {one.cell.key for one in records} == {cell.key for cell in request.cells}
    assert {(one.solution_digest, one.author) for one in records} == {(solution.digest, AUTHOR)}
    assert report.written == (solution.path, folders.results / "h200" / PROBLEM.name / "ask_the_layer.jsonl")
    assert {event.job.cell.sweep for event in seen} == {"smoke", HIDDEN, "kernelbench"}
    assert before.items() <= folders.snapshot().items()

    shutil.copytree(ROOT / "problems", folders.root / "problems")
    boards, _ = leaderboard.read(folders.results, folders.root)
    assert {entry.stale for board in boards for _, entry in board.ranked} == {""}
    words = "\n".join(report.lines)
    assert f"timed on h200: {len(records)} PASS, isolation full\n" in words
    assert "one process a cell (--ranked: in five)" in words

    readme = folders.results / "README.md"
    readme.write_text("By hand.\n")
    checking.show_place(folders.results, folders.root, report.records[0])
    assert "warning: the boards are not renewed" in capsys.readouterr().err
    readme.write_text(f"{standings.BEGIN}\n{standings.END}\n")
    checking.show_place(folders.results, folders.root, report.records[0])
    assert "ask_the_layer" in capsys.readouterr().out
    assert standings.is_current(readme, boards, {})


def test_the_same_text_may_come_again(folders: Folders, passed: Record) -> None:
    for times in (1, 2):
        report = submit.submit(gpu_request(folders), "mine.py", lambda _: None, run=on_a_gpu(passed))
        lines = report.written[1].read_text().splitlines()
        assert len(lines) == times * len(gpu_request(folders).cells)


@pytest.mark.parametrize(
    ("failing", "command"), [("smoke/groups", "check mine.py"), ("kernelbench/81", "run --solution mine.py")]
)
@pytest.mark.parametrize("status", [Status.WRONG, *ON_A_GPU])
def test_a_failure_on_a_gpu_keeps_nothing(
    failing: str, command: str, status: Status, folders: Folders, passed: Record
) -> None:
    seen: list[pipeline.Event] = []
    before = folders.snapshot()
    run = on_a_gpu(passed, failing, status)
    report = submit.submit(gpu_request(folders), "mine.py", seen.append, run=run)
    assert folders.snapshot() == before
    assert report.records[-1].status is seen[-1].record.status is status
    assert f"{failing} tf32: {status}: values" in report.lines
    assert f"to see it again: python -m runner {command}" in report.lines[-1]
    words = shlex.split(report.lines[-1].partition("python -m runner ")[2])
    options = arguments.parse(words)
    assert options.shapes == [failing]
    assert words[0] == "check" or options.rerun  # a second time too, its own verdict counts


def test_isolation_that_is_lost_before_the_times_counts(folders: Folders, passed: Record) -> None:
    before = folders.snapshot()

    def run(request: plan.Request, watch: Callable[[pipeline.Event], None]) -> pipeline.Outcome:
        level = "partial" if request.baselines else "full"
        return on_a_gpu(passed, level=level)(request, watch)

    with pytest.raises(load.BadInput, match="isolation is 'partial' here"):
        submit.submit(gpu_request(folders), "mine.py", lambda _: None, run=run)
    assert folders.snapshot() == before


def test_a_file_without_a_time_is_not_kept(folders: Folders, passed: Record) -> None:
    before, request = folders.snapshot(), gpu_request(folders)
    for status in (Status.UNSUPPORTED, Status.NOT_COVERED):
        run = on_a_gpu(passed, "kernelbench/", status)
        count = len([cell for cell in request.cells if cell.sweep == "kernelbench"])
        said = rf"'mine.py' was timed in no cell \({count} {status}\), nothing is written: values"
        with pytest.raises(load.BadInput, match=said):
            submit.submit(request, "mine.py", lambda _: None, run=run)
        assert folders.snapshot() == before


def test_a_hidden_shape_that_passes_is_no_time(folders: Folders, passed: Record) -> None:
    cells = plan.plan_cells(PROBLEM, (), ["fp32"], ["tf32"], "cuda:0", 128)
    request = replace(gpu_request(folders), cells=cells[-2:])
    assert [cell.sweep for cell in request.cells] == ["waves", HIDDEN]
    before, run = folders.snapshot(), on_a_gpu(passed, "waves/", Status.UNSUPPORTED)
    with pytest.raises(load.BadInput, match=r"in no cell \(1 UNSUPPORTED, 1 PASS\)"):
        submit.submit(request, "mine.py", lambda _: None, run=run)
    assert folders.snapshot() == before


@pytest.mark.parametrize(
    ("level", "least", "kept"),
    [
        ("partial", "full", False),
        ("none", "partial", False),
        ("partial", "partial", True),
        ("full", "none", True),
    ],
)
def test_times_below_full_isolation_are_kept_only_on_demand_and_never_ranked(
    level: str, least: str, kept: bool, folders: Folders, passed: Record
) -> None:
    request, before, run = gpu_request(folders), folders.snapshot(), on_a_gpu(passed, level=level)
    seen: list[pipeline.Event] = []
    if not kept:
        with pytest.raises(load.BadInput, match=f"'{level}' here, without net, ipc; .*--require {level}$"):
            submit.submit(request, "mine.py", seen.append, isolation=least, run=run)
        assert {event.job.cell.sweep for event in seen} == {"smoke", HIDDEN}  # told before minutes of timing
        assert folders.snapshot() == before
        return
    report = submit.submit(request, "mine.py", seen.append, isolation=least, run=run)
    assert f"isolation {level}" + (" (not ranked)" if level != "full" else "") in report.lines[1]
    shutil.copytree(ROOT / "problems", folders.root / "problems")
    boards, _ = leaderboard.read(folders.results, folders.root)
    flags = {flag for board in boards for _, entry in board.ranked for flag in entry.flags}
    assert flags == (set() if level == "full" else {f"not_ranked: isolation {level}"})
    assert all(bool(entry.compared) is (level == "full") for board in boards for _, entry in board.ranked)


def test_a_dry_run_on_a_gpu_stops_after_correctness(folders: Folders, passed: Record) -> None:
    seen: list[pipeline.Event] = []
    before = folders.snapshot()
    run = on_a_gpu(passed)
    report = submit.submit(gpu_request(folders), "mine.py", seen.append, dry_run=True, run=run)
    assert {event.job.cell.sweep for event in seen} == {"smoke", HIDDEN}
    assert report.written == ()
    assert folders.snapshot() == before


def interrupted(_: Folders, monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """Interrupt in the middle of the records."""
    append, calls = record.append, iter(range(5))

    def some(path: Path, one: Record) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        append(path, one)

    monkeypatch.setattr(record, "append", some)
    return KeyboardInterrupt


def no_results(folders: Folders, _: pytest.MonkeyPatch) -> type[BaseException]:
    """Leave no place for records: a file is where their folder should be."""
    shutil.rmtree(folders.results / "h200")
    (folders.results / "h200").write_text("precious")
    return record.ResultsUnwritable


def no_solutions(folders: Folders, _: pytest.MonkeyPatch) -> type[BaseException]:
    shutil.rmtree(folders.solutions)
    folders.solutions.write_text("precious")
    return pipeline.HarnessFailure


def new_folders(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    for folder in (folders.solutions, folders.results / "h200"):
        shutil.rmtree(folder)
    return interrupted(folders, monkeypatch)


def kept_before(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """Submit what is there already, beside a record whose writer was killed."""
    solution = folders.propose()
    solution.path.write_text(solution.source)
    (folders.results / "h200" / PROBLEM.name / "ask_the_layer.jsonl").write_text('{"a": 1}\n{"torn')
    return interrupted(folders, monkeypatch)


def taken_meanwhile(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    monkeypatch.setattr(submit, "_require_place", lambda _: None)
    path = folders.propose().path
    monkeypatch.undo()
    path.write_text("another text")
    return load.BadInput


FAILURES = (interrupted, no_results, no_solutions, new_folders, kept_before, taken_meanwhile)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
def test_a_failure_while_keeping_undoes_both_moves(
    failure: Callable[[Folders, pytest.MonkeyPatch], type[BaseException]],
    folders: Folders,
    passed: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = gpu_request(folders)
    expected = failure(folders, monkeypatch)
    before = folders.snapshot()
    with pytest.raises(expected):
        submit.submit(request, "mine.py", lambda _: None, run=on_a_gpu(passed))
    assert folders.snapshot() == before


def test_a_results_folder_in_use_keeps_nothing(folders: Folders, passed: Record) -> None:
    before = folders.snapshot()
    with record.lock_results(folders.results), pytest.raises(record.ResultsBusy, match="in use"):
        submit.submit(gpu_request(folders), "mine.py", lambda _: None, run=on_a_gpu(passed))
    assert folders.snapshot() == before


ANSWER = '''"""Ask the layer, and copy what it says."""
import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def copy_kernel(x, y, n, BLOCK: tl.constexpr):
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o_n, tl.load(x + o_n, mask=o_n < n), mask=o_n < n)


def copied(x):
    y = torch.empty_like(x)
    copy_kernel[(triton.cdiv(x.numel(), 256),)](x, y, x.numel(), BLOCK=256)
    return y


''' + SOURCE.partition("from torch import nn\n\n")[2].replace(
    "return self.layer(x)\n", "y = self.layer(x)\n        return copied(y)\n"
)


def launching(one: Record) -> Record:
    """Give a record the launch of a kernel."""
    launch = Launch("copy", (1, 1, 1), 4, None, None, None)
    return replace(one, checked=replace(one.checked, launches=(launch,))) if one.checked else one


SPARSE = ("--shapes", "smoke/sparse", "--dtype", "fp32", "--math", "tf32", "--device", "cpu")


@pytest.mark.parametrize(
    ("text", "rules", "code"),
    [
        (ANSWER, ("--rules", "owner"), 0),
        (ANSWER + "SIZE = 1\n", (), 0),
        (ANSWER + "SIZE = 1\n", ("--rules", "owner"), 1),
    ],
)
def test_check_holds_a_file_against_the_owners_rules_on_demand(
    text: str,
    rules: tuple[str, ...],
    code: int,
    passed: Record,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "run", run_with(lambda _: launching(passed)))
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert main(["check", str(file), "--problem", PROBLEM.name, *SPARSE, *rules]) == code
    said = capsys.readouterr().out
    assert ("error [nothing-else]" in said) is bool(code)
    assert ("advice [nothing-else]" in said) is (not rules)
    assert "1 of 1 cells pass" in said


def answered(text: str, folder: Path, *options: str) -> int:
    file = folder / "reply.md"
    file.write_text(f"Here.\n```python\n{text}```\n")
    return main(["prompt", "--answer", str(file), "--problem", PROBLEM.name, *SPARSE, *options])


def test_an_answer_that_keeps_the_rules_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(ANSWER.replace("self.layer(x)\n", "self.layer(x) + 1\n"), tmp_path) == 1
    said = json.loads(capsys.readouterr().out)
    (failure,) = said["correctness"].pop("failures")
    assert (said["refused"], said["correctness"]) == (False, {"cells": 1, "passed": 0})
    assert (failure["cell"], failure["status"]) == ("smoke/sparse tf32", "WRONG")
    assert failure["shape"]["in_channels"] == SMOKE["sparse"]["in_channels"]
    assert failure["reason"].startswith("values")


def test_an_answer_that_is_right_has_no_failures(
    passed: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "run", run_with(lambda _: launching(passed)))
    assert answered(ANSWER, tmp_path) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["correctness"] == {"cells": 1, "passed": 1, "failures": []}


@pytest.mark.parametrize(
    ("text", "options", "code"), [(ANSWER, ["--no-run"], 0), (ANSWER + "SIZE = 1\n", [], 1)]
)
def test_an_answer_is_not_run_on_demand_and_where_it_breaks_a_rule(
    text: str, options: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answered(text, tmp_path, *options) == code
    said = json.loads(capsys.readouterr().out)
    assert said["refused"] is bool(code)
    assert "correctness" not in said


#: The first that a problem has, else its first row: sides, strides, pads and dilations differ by axis, or
#: groups by channel.
SHARP = ("asymmetric", "groups")


@pytest.mark.parametrize(
    "problem", sorted(path.name for path in (ROOT / "solutions").iterdir() if path.is_dir())
)
def test_every_solution_in_the_repository_is_correct(problem: str, tmp_path: Path) -> None:
    found = load.find_problem(problem)
    solutions = tuple(load.find_solution(name, problem) for name in load.solution_names(problem))
    smoke = found.sweeps(128)["smoke"]
    sharp = f"smoke/{next((label for label in SHARP if label in smoke), next(iter(smoke)))}"
    cells = (
        *plan.plan_cells(found, (), ["fp32"], ["tf32"], "cpu", 128),
        *plan.plan_cells(found, [sharp], DTYPES, ["fp32"], "cpu", 128),
    )
    assert {cell.arithmetic for cell in cells} == set(arguments.ARITHMETICS)
    request = plan.Request(found, solutions, cells, (), "cpu", tmp_path / "results")
    records = pipeline.run(request, lambda _: None).records
    assert [one for one in records if one.status not in submit.ADMITTED] == []


def complaints(root: Path) -> list[str]:
    """Say which records of the present protocol are neither of the files under a folder nor stale on a board.

    An edit makes records stale, and the board shows that; but a file has records of its text or none at all.
    """
    boards, said = leaderboard.read(root / "results", root)
    entries = [(board.problem, entry) for board in boards for _, entry in board.ranked]
    stale = {(problem, entry.solution, entry.digest) for problem, entry in entries if entry.stale}
    files: dict[tuple[str, str], list[Record]] = {}
    for path in sorted((root / "results").glob("*/*/*.jsonl")):
        for one in record.read(path)[0]:
            if path != record.results_path(root / "results", one.card, one.problem, one.solution):
                said.append(f"{path}: a record of {one.solution} for {one.problem} on {one.card}")
            elif one.protocol == PROTOCOL:
                files.setdefault((one.problem, one.solution), []).append(one)
    return [*said, *(f"{file}: {why}" for file in files for why in foreign(*file, files[file], stale, root))]


def foreign(
    problem: str, name: str, records: list[Record], stale: set[tuple[str, str, str]], root: Path
) -> Iterator[str]:
    """Say what of a solution's records is not of its file."""
    if problem not in load.problem_names(root) or name not in load.solution_names(problem, root):
        yield "has records, but there is no such file"
        return
    digests = {
        each: load.find_solution(each, problem, root).digest for each in load.solution_names(problem, root)
    }
    mine, now = digests.pop(name), load.find_problem(problem, root).digest
    current = [one for one in records if (one.solution_digest, one.problem_digest) == (mine, now)]
    author = lint.read_header(load.find_solution(name, problem, root).source).author
    if not current:
        yield "no record is of the present texts: time it anew, or take its records away"
    if any(one.author != author for one in current):
        yield f"a record is not by '{author}'"
    for one in records:
        if one.solution_digest != mine and one.solution_digest in digests.values():
            yield "a record is of another file"
        elif one not in current and (problem, name, one.solution_digest) not in stale:
            yield f"a record of {one.solution_digest} is not shown as stale"


def test_committed_records_are_of_the_files_beside_them_or_stale() -> None:
    assert complaints(ROOT) == []


EDITED = "# edited\n"


def remove(folders: Folders, _: Record) -> None:
    folders.propose().path.unlink()


def edit(folders: Folders, _: Record) -> None:
    with folders.propose().path.open("a") as file:
        file.write(EDITED)


def edit_the_problem(folders: Folders, _: Record) -> None:
    with (folders.root / "problems" / f"{PROBLEM.name}.py").open("a") as file:
        file.write(EDITED)


def edit_and_time(folders: Folders, one: Record) -> None:
    edit(folders, one)
    text = load.find_solution(one.solution, one.problem, folders.root)
    add(folders, replace(one, solution_digest=text.digest))


def borrow(folders: Folders, one: Record) -> None:
    add(folders, replace(one, solution_digest=load.find_solution("other", one.problem, folders.root).digest))


def disown(folders: Folders, one: Record) -> None:
    add(folders, replace(one, author="", time_utc="2999"))


def misplace(folders: Folders, one: Record) -> None:
    add(folders, one, "another")


def forget(folders: Folders, one: Record) -> None:
    """Keep a record of an old text that no board shows."""
    add(folders, replace(one, card="cpu", solution_digest="0" * 64))


def add(folders: Folders, one: Record, name: str | None = None) -> None:
    record.append(record.results_path(folders.results, one.card, one.problem, name or one.solution), one)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda *_: None, None),
        (edit_and_time, None),
        (remove, "no such file"),
        (edit, "no record is of the present texts"),
        (edit_the_problem, "no record is of the present texts"),
        (borrow, "of another file"),
        (disown, f"is not by '{AUTHOR}'"),
        (misplace, "another.jsonl: a record of ask_the_layer"),
        (forget, "not shown as stale"),
    ],
)
def test_committed_records_of_no_file_or_of_another_are_found(
    change: Callable[[Folders, Record], None], complaint: str | None, folders: Folders, passed: Record
) -> None:
    (folders.results / "h200" / PROBLEM.name / "other.jsonl").unlink()
    (folders.root / "problems").mkdir()
    shutil.copy(PROBLEM.path, folders.root / "problems")
    solution = folders.propose()
    solution.path.write_bytes(solution.source.encode())
    add(folders, replace(passed, card="h200"))
    change(folders, replace(passed, card="h200"))
    said = complaints(folders.root)
    assert said == [] if complaint is None else any(complaint in one for one in said)
