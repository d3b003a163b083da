"""Records survive the disk: round trips, damaged files, concurrent and interrupted writers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import record as rec
from runner.schema import (
    DTYPES,
    MATHS,
    PROTOCOL,
    SCHEMA,
    Cell,
    Checked,
    Comparison,
    Failed,
    Kernel,
    Launch,
    PopulationError,
    Record,
    Samples,
    Status,
    Timed,
    Verdict,
    to_json,
)

ROOT = Path(__file__).parents[1]

# Whatever a contestant may put in a text; a lone surrogate has no UTF-8 and still has JSON.
texts = st.text(max_size=12)
sizes = st.integers(0, 2**40)
numbers = st.floats(allow_nan=False, allow_infinity=False)
times_us = st.integers(-(10**6), 10**9).map(lambda hundredths: hundredths / 100)
plain = st.dictionaries(
    texts.filter(lambda name: not name.endswith("_us")),
    st.recursive(
        st.none() | st.booleans() | sizes | numbers | texts, lambda inner: st.lists(inner, max_size=2)
    ),
    max_size=3,
)
cells = st.builds(
    Cell,
    sweep=texts,
    label=texts,
    shape=st.dictionaries(texts, sizes | st.booleans() | st.lists(sizes, max_size=3).map(tuple), max_size=4),
    dtype=st.sampled_from(DTYPES),
    math=st.sampled_from(MATHS),
)
launches = st.builds(
    Launch,
    kernel=texts,
    grid=st.tuples(sizes, sizes, sizes),
    num_warps=sizes,
    registers=st.none() | sizes,
    spills=st.none() | sizes,
    shared_bytes=st.none() | sizes,
)
errors = st.builds(
    PopulationError,
    population=texts,
    normwise=numbers,
    normwise_budget=numbers,
    elementwise=numbers,
    elementwise_budget=numbers,
)
checks = st.builds(
    Checked,
    errors=st.lists(errors, max_size=2).map(tuple),
    kernelbench_close=st.booleans(),
    calls=sizes,
    launches=st.lists(launches, max_size=2).map(tuple),
    prepare_us=st.none() | times_us,
)
samples = st.builds(
    Samples,
    variant=texts,
    calls=sizes,
    times_us=st.lists(times_us, max_size=5).map(tuple),
    claims_us=st.lists(times_us, max_size=5).map(tuple),
    null_us=times_us,
    null_mad_us=times_us,
    issue_us=times_us,
    l2=texts,
    config=plain,
)
timings = st.builds(
    Timed,
    samples=st.lists(samples, max_size=2).map(tuple),
    headline=texts,
    rounds=sizes,
    invalid_rounds=sizes,
    checked_calls=sizes,
    handshake_us=times_us,
)
comparisons = st.builds(
    Comparison,
    baseline=texts,
    speedup=numbers,
    low=numbers,
    high=numbers,
    verdict=st.sampled_from(Verdict),
    rounds=sizes,
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    status = draw(st.sampled_from(Status))
    passed = status is Status.PASS
    name = {field: draw(texts) for field in ("problem", "solution", "technique", "author", "card", "entropy")}
    return Record(
        schema=SCHEMA,
        protocol=draw(sizes),
        time_utc=draw(texts),
        problem_digest=draw(texts),
        solution_digest=draw(texts),
        runner_digest=draw(texts),
        cell=draw(cells),
        environment=draw(plain),
        status=status,
        failed=None if passed else Failed(status, draw(texts), draw(texts), draw(texts)),
        checked=draw(checks if passed else st.none() | checks),
        timed=draw(st.none() | timings) if passed else None,
        comparisons=tuple(draw(st.lists(comparisons, max_size=2))) if passed else (),
        roofline=draw(plain),
        waves=tuple(draw(st.lists(plain, max_size=2))),
        flags=tuple(draw(st.lists(texts, max_size=2))),
        **name,
    )


def passed(label: str = "81", rounds: int = 3, **changes: object) -> Record:
    """Make a passed record on a GPU with two variants."""
    series = {
        variant: Samples(
            variant=variant,
            calls=1,
            times_us=tuple(scale * (100.0 + i) for i in range(rounds)),
            claims_us=tuple(scale * (99.0 + i) for i in range(rounds)),
            null_us=5.0,
            null_mad_us=0.1,
            issue_us=20.0,
            l2="cold",
        )
        for variant, scale in (("solution", 1.0), ("cudnn", 2.0))
    }
    base = Record(
        schema=SCHEMA,
        protocol=PROTOCOL,
        time_utc="2025-01-02T03:04:05Z",
        problem="convtranspose2d",
        problem_digest="p" * 64,
        solution="phase_gemm",
        solution_digest="s" * 64,
        technique="one GEMM per phase",
        author="",
        runner_digest="r" * 64,
        cell=Cell("kernelbench", label, {"batch": 16, "stride": (5, 5), "bias": False}, "fp32", "tf32"),
        card="h200",
        environment={"driver": "570", "torch": "2.11", "triton": "3.6", "cudnn": "9.1", "gpu": "A"},
        entropy="00",
        status=Status.PASS,
        failed=None,
        checked=Checked((), kernelbench_close=True, calls=5, launches=()),
        timed=Timed(tuple(series.values()), "cudnn", rounds, 0, 5, 9.0),
        comparisons=(),
        roofline={},
        waves=(),
        flags=(),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def failed(status: Status, detail: str = "", **changes: object) -> Record:
    reason = Failed(status, "check", "values differ", detail)
    return passed(status=status, failed=reason, checked=None, timed=None, **changes)


@given(records())
@settings(max_examples=150, deadline=None)
def test_a_line_is_canonical_and_gives_the_record_back(record: Record) -> None:
    line = rec.to_line(record)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert rec.from_line(line) == record
    assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))


def test_an_author_that_fills_a_line_is_cut() -> None:
    kept = rec.from_line(rec.to_line(passed(author="a" * 2 * rec.LINE_BYTES)))
    assert kept.author == "a" * 200
    assert "texts_cut" in kept.flags


@given(records(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_to_a_line_is_a_bad_record_or_a_record(record: Record, data: st.DataObject) -> None:
    line = rec.to_line(record)
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, len(line)))
    try:
        other = rec.from_line(line[:start] + data.draw(texts) + line[end:])
    except rec.BadRecord:
        return
    assert isinstance(other, Record)


@given(records(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_missing_field_is_named(record: Record, data: st.DataObject) -> None:
    fields = to_json(record)
    name = data.draw(st.sampled_from(sorted(fields)))
    del fields[name]
    with pytest.raises(rec.BadRecord, match=name):
        rec.from_line(json.dumps(fields))


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("cell", "label"), 81, "cell.label: 81 is no str"),
        (("cell", "dtype"), "int8", "cell.dtype: 'int8' is none of fp32, fp16, bf16"),
        (("cell", "math"), "x" * 99, "cell.math: 'xxx"),
        (("cell", "shape", "batch"), 1.5, "cell.shape.batch: 1.5 is no list"),
        (("status",), "FINE", "status: 'FINE' is no Status"),
        (("status",), "WRONG", "disagrees"),
        (("checked",), None, "PASS without a check"),
        (("checked", "kernelbench_close"), 1, "kernelbench_close: 1 is no bool"),
        (("checked", "calls"), True, "calls: True is no int"),
        (
            ("timed", "samples", 0, "times_us", 1),
            "fast",
            r"timed.samples\[0\].times_us\[1\]: 'fast' is no float",
        ),
        (("timed", "handshake_us"), float("nan"), "NaN is not a number"),
        (("timed", "handshake_us"), float("inf"), "Infinity is not a number"),
        (("schema",), SCHEMA + 1, "schema 2, this version reads 1"),
        (("waves",), {}, "waves: {} is no list"),
    ],
)
def test_the_reason_names_the_place(place: tuple[str | int, ...], value: object, reason: str) -> None:
    fields = json.loads(rec.to_line(passed()))
    parent = fields
    for step in place[:-1]:
        parent = parent[step]
    parent[place[-1]] = value
    with pytest.raises(rec.BadRecord, match=reason):
        rec.from_line(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "{}", "[]", "7", "null", "[" * 100_000, "9" * 5000, '{"schema":1}'])
def test_foreign_text_is_a_bad_record(text: str) -> None:
    with pytest.raises(rec.BadRecord):
        rec.from_line(text)


def test_unknown_fields_are_ignored() -> None:
    fields = json.loads(rec.to_line(passed()))
    fields["mood"] = fields["cell"]["mood"] = fields["timed"]["samples"][0]["mood"] = "good"
    assert rec.from_line(json.dumps(fields)) == passed()


def test_times_are_kept_to_a_fraction_of_what_an_interval_shows_and_other_numbers_exactly() -> None:
    facts = {"bound_us": 1.23456, "floor_us": 12.3456, "share_of_bound": 0.123456789}
    kept = {**facts, "bound_us": 1.235, "floor_us": 12.35}
    assert rec.from_line(rec.to_line(passed(roofline=facts))).roofline == kept


@pytest.mark.parametrize("record", [passed(status=Status.WRONG), failed(Status.WRONG, flags=(object(),))])
def test_what_could_not_be_read_is_not_written(record: Record) -> None:
    with pytest.raises(rec.BadRecord):
        rec.to_line(record)


def by_claims(record: Record) -> Record:
    """Have the contestant's clock decide, and the judge's stand beside it."""
    assert record.timed is not None
    samples = tuple(replace(one, claims_us=(), bounds_us=one.claims_us) for one in record.timed.samples)
    return replace(record, timed=replace(record.timed, samples=samples, clock="claim"))


@pytest.mark.parametrize(
    ("record", "flag"),
    [(passed(rounds=1500), "claims_dropped"), (by_claims(passed(rounds=1500)), "bounds_dropped")],
    ids=["judge", "claim"],
)
def test_a_long_record_first_loses_what_does_not_decide(record: Record, flag: str) -> None:
    slim = rec.from_line(rec.to_line(record))
    assert slim.flags == (flag,)
    assert slim.timed is not None
    assert [len(one.times_us) for one in slim.timed.samples] == [1500, 1500]
    assert not any(one.claims_us or one.bounds_us for one in slim.timed.samples)


@given(st.integers(2500, 20_000), st.booleans())
@settings(max_examples=10, deadline=None)
def test_a_longer_record_is_thinned_and_stays_paired(rounds: int, claimed: bool) -> None:
    record = passed(rounds=rounds)
    line = rec.to_line(by_claims(record) if claimed else record)
    assert len(line) < rec.LINE_BYTES
    slim = rec.from_line(line)
    assert slim.flags == ("bounds_dropped" if claimed else "claims_dropped", "samples_thinned")
    assert slim.timed is not None
    mine, theirs = (one.times_us for one in slim.timed.samples)
    step = int(mine[1] - mine[0])
    assert step in {2, 4, 8, 16}
    assert list(mine) == [100.0 + i for i in range(0, rounds, step)]
    assert [2 * t for t in mine] == list(theirs)


def test_the_detail_of_a_failure_is_cut() -> None:
    slim = rec.from_line(rec.to_line(failed(Status.BUILD, detail="\N{SNOWMAN}" * 100_000)))
    assert slim.flags == ("texts_cut",)
    assert slim.failed is not None
    assert slim.failed.detail == "\N{SNOWMAN}" * 2000


@pytest.mark.parametrize("name", ["k" * 40, "\N{SNOWMAN}" * 290], ids=["honest", "long"])
def test_names_of_kernels_never_keep_a_record_from_its_file(name: str) -> None:
    launch = Launch(name, (1, 1, 1), 4, 32, 0, 0, ())
    kernels = {v: (Kernel(name, "", 1, 9.0, (1, 1, 1), 32, 32, 0),) * 32 for v in ("solution", "cudnn")}
    one = passed(rounds=96, technique="t" * 50_000, waves=({"kernel": name},) * 64)
    assert one.checked is not None
    assert one.timed is not None
    checked = replace(one.checked, launches=(launch,) * 64)
    full = replace(one, checked=checked, timed=replace(one.timed, kernels=kernels))
    slim = rec.from_line(rec.to_line(full))
    assert slim.checked is not None
    assert slim.timed is not None
    assert "texts_cut" in slim.flags
    assert ("launches_dropped" in slim.flags) == (len(name) > 40)
    assert len(slim.checked.launches) == (0 if len(name) > 40 else 32)
    assert slim.timed.samples[0].times_us


def test_what_cannot_be_thinned_is_refused() -> None:
    with pytest.raises(rec.BadRecord, match="nothing left"):
        rec.to_line(passed(problem="x" * rec.LINE_BYTES))


def test_read_reports_each_damaged_line_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    good = [rec.to_line(passed(label)).encode() for label in ("57", "65", "69")]
    huge = b'"' + b"x" * 3 * rec.READ_LINE_BYTES + b'"'
    lines = [good[0], b"# hello", huge, b"", b"\xff\xfe", good[1], b'{"schema":99}', good[2], good[0][:100]]
    path.write_bytes(b"\n".join(lines))
    records, problems = rec.read(path)
    assert [record.cell.label for record in records] == ["57", "65", "69"]
    assert [int(problem.removeprefix(f"{path}:").split(":")[0]) for problem in problems] == [2, 3, 5, 7, 9]
    for problem, reason in zip(problems, ("not JSON", "1 MiB", "UTF-8", "schema 99", "torn"), strict=True):
        assert reason in problem


def test_a_whole_record_without_its_newline_counts(tmp_path: Path) -> None:
    path = tmp_path / "whole.jsonl"
    path.write_text(rec.to_line(passed()))
    assert rec.read(path) == ([passed()], [])


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert rec.read(tmp_path / "none.jsonl") == ([], [])


@pytest.mark.parametrize(
    ("statuses", "kept"),
    [
        ("PASS WRONG", 1),
        ("PASS PASS", 1),
        ("WRONG PASS", 1),
        ("ERROR WRONG", 1),
        ("PASS ERROR", 0),
        ("WRONG ERROR", 0),
        ("ERROR ERROR", 1),
        ("WRONG PASS ERROR PASS CRASH ERROR", 4),
    ],
)
def test_of_repeats_the_last_verdict_or_else_the_last_is_kept(
    tmp_path: Path, statuses: str, kept: int
) -> None:
    path = tmp_path / "repeats.jsonl"
    for i, status in enumerate(map(Status, statuses.split())):
        make = passed if status is Status.PASS else lambda status=status, **changes: failed(status, **changes)
        rec.append(path, make(time_utc=str(i)))
    records, problems = rec.read(path)
    assert [record.time_utc for record in records] == [str(kept)]
    assert problems == []


def test_an_older_record_that_is_imported_later_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "imported.jsonl"
    for one in (failed(Status.WRONG, time_utc="2026-01-02"), passed(time_utc="2026-01-01")):
        rec.append(path, one)
    ((kept,), _) = rec.read(path)
    assert kept.status is Status.WRONG


def test_append_starts_a_new_line_after_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    rec.append(path, passed("57"))
    torn = path.read_bytes() + rec.to_line(passed("65")).encode()[:50]
    path.write_bytes(torn)
    rec.append(path, passed("69"))
    assert path.read_bytes().startswith(torn)
    records, problems = rec.read(path)
    assert [record.cell.label for record in records] == ["57", "69"]
    assert len(problems) == 1


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a Python that can import the runner."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    """Short writes, as a nearly full disk or a signal makes them, would mix lines but for the lock."""
    path = tmp_path / "deep" / "folder" / "shared.jsonl"
    template = tmp_path / "template.jsonl"
    rec.append(template, passed(rounds=500))
    code = (
        "import os, sys; from dataclasses import replace; from pathlib import Path\n"
        "from runner import record as rec\n"
        "[one], _ = rec.read(Path(sys.argv[1])); write = os.write\n"
        "os.write = lambda descriptor, data: write(descriptor, data[:3000])\n"
        "for i in range(25):\n"
        "    rec.append(Path(sys.argv[2]), replace(one, solution=f'{sys.argv[3]}-{i}'))\n"
    )
    writers = [run(code, str(template), str(path), str(number)) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    for writer in writers:
        writer.communicate()
    records, problems = rec.read(path)
    assert problems == []
    assert {record.solution for record in records} == {f"{w}-{i}" for w in range(4) for i in range(25)}


def test_a_full_disk_leaves_earlier_records_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "full.jsonl"
    rec.append(path, passed("57"))
    before, real_write, calls = path.read_bytes(), os.write, []

    def short_write(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(descriptor, data[:40])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short_write)
        with pytest.raises(rec.ResultsUnwritable, match=r"full\.jsonl: No space left.*--results DIR$"):
            rec.append(path, passed("65"))
    assert len(calls) == 2
    assert path.read_bytes() == before
    rec.append(path, passed("65"))
    assert len(rec.read(path)[0]) == 2


def append_many(path: Path) -> None:
    for i in range(10):
        rec.append(path, passed(str(i), rounds=300))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root can mount a tmpfs")
def test_a_full_file_system_keeps_whole_lines(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not allow a mount")
    try:
        path = tmp_path / "full.jsonl"
        with pytest.raises(rec.ResultsUnwritable, match="No space left"):
            append_many(path)
        records, problems = rec.read(path)
        assert problems == []
        assert path.read_bytes().endswith(b"\n")
        assert [record.cell.label for record in records] == [str(i) for i in range(len(records))]
        assert len(records) > 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_file_where_a_folder_should_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("not a folder")
    path = rec.results_path(tmp_path / "results", "h200", "convtranspose2d", "phase_gemm")
    with pytest.raises(rec.ResultsUnwritable) as caught:
        rec.append(path, passed())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(rec.ResultsUnwritable), rec.lock_results(tmp_path / "results"):
        pass
    with pytest.raises(rec.ResultsUnwritable):
        rec.append(tmp_path, passed())


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_folder_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "readonly.jsonl"
    rec.append(path, passed("57"))
    tmp_path.chmod(0o555)
    path.chmod(0o444)
    with pytest.raises(rec.ResultsUnwritable, match="Permission denied"):
        rec.append(path, passed("65"))
    tmp_path.chmod(0o755)
    assert len(rec.read(path)[0]) == 1


def test_the_resume_key_is_the_planned_key() -> None:
    record = passed()
    key = rec.planned_key(
        problem=record.problem,
        problem_digest=record.problem_digest,
        solution=record.solution,
        solution_digest=record.solution_digest,
        cell=record.cell,
        card=record.card,
        environment={**record.environment, "gpu": "another", "clock": 1},
    )
    assert key == rec.resume_key(record)


@pytest.mark.parametrize(
    "change",
    [
        {"problem": "x"},
        {"problem_digest": "x"},
        {"solution": "x"},
        {"solution_digest": "x"},
        {"card": "x"},
        {"protocol": PROTOCOL + 1},
        {"cell": replace(passed().cell, math="fp32")},
        {"cell": replace(passed().cell, label="x")},
        {"cell": replace(passed().cell, shape={"batch": 1})},
        *(
            {"environment": {**passed().environment, name: "x"}}
            for name in ("driver", "torch", "triton", "cudnn")
        ),
    ],
)
def test_every_part_of_the_resume_key_counts(change: dict[str, object]) -> None:
    assert rec.resume_key(passed(**change)) != rec.resume_key(passed())


def test_the_resume_key_ignores_when_where_and_by_which_runner() -> None:
    later = passed(
        time_utc="later", runner_digest="x", entropy="ff", environment={**passed().environment, "gpu": "B"}
    )
    assert rec.resume_key(later) == rec.resume_key(passed())


@pytest.mark.parametrize("status", Status)
def test_only_the_harness_own_fault_is_tried_again(status: Status) -> None:
    record = passed() if status is Status.PASS else failed(status)
    assert set(rec.done([record])) == (set() if status is Status.ERROR else {rec.resume_key(record)})


def test_results_path() -> None:
    path = rec.results_path(Path("results"), "h200-128sm", "convtranspose2d", "phase_gemm")
    assert path == Path("results/h200-128sm/convtranspose2d/phase_gemm.jsonl")


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", "a\n", "é", "a\0", "x" * 101]
)
@pytest.mark.parametrize("position", range(3))
def test_unsafe_names_are_refused(name: str, position: int) -> None:
    names = ["h200", "convtranspose2d", "phase_gemm"]
    names[position] = name
    with pytest.raises(ValueError, match="cannot name"):
        rec.results_path(Path("results"), *names)


def test_import_sorts_once_and_reports_the_rest(tmp_path: Path) -> None:
    source, root = tmp_path / "run.jsonl", tmp_path / "results"
    for card, solution, time_utc in [
        ("h200", "a", "1"),
        ("h200", "a", "2"),
        ("h200", "b", "1"),
        ("h200", "b", "1"),
        ("rtx4090", "a", "1"),
        ("../up", "a", "1"),
    ]:
        rec.append(source, passed(card=card, solution=solution, time_utc=time_utc))
    with source.open("a") as file:
        file.write("torn")
    added, skipped, problems = rec.import_file(source, root)
    assert (added, skipped) == (4, 1)
    assert [problem.split(":")[1] for problem in problems] == ["6", "7"]
    written = {path: path.read_bytes() for path in root.rglob("*.jsonl")}
    assert {str(path.relative_to(root)) for path in written} == {
        f"{name}.jsonl"
        for name in ("h200/convtranspose2d/a", "h200/convtranspose2d/b", "rtx4090/convtranspose2d/a")
    }
    assert rec.import_file(source, root)[:2] == (0, 5)
    assert {path: path.read_bytes() for path in root.rglob("*.jsonl")} == written
    assert not (tmp_path / "up").exists()


def test_import_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(rec.ResultsUnreadable):
        rec.import_file(tmp_path / "none.jsonl", tmp_path)


def test_a_second_run_on_a_folder_is_told_who_has_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from runner.record import lock_results\n"
        "with lock_results(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = run(code, str(tmp_path))
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(rec.ResultsBusy) as caught, rec.lock_results(tmp_path):
            pass
        assert f"{tmp_path} is in use by another run (pid {holder.pid})" in str(caught.value)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with (
        rec.lock_results(tmp_path),
        pytest.raises(rec.ResultsBusy, match=f"pid {os.getpid()}"),
        rec.lock_results(tmp_path),
    ):
        pass
    assert not (tmp_path / ".lock.pid").exists()


def test_a_locked_folder_still_takes_records(tmp_path: Path) -> None:
    path = rec.results_path(tmp_path, "h200", "convtranspose2d", "phase_gemm")
    with rec.lock_results(tmp_path):
        rec.append(path, passed())
    assert rec.read(path) == ([passed()], [])


def test_importing_is_light() -> None:
    heavy = "{'torch', 'triton', 'numpy', 'tabulate', 'filelock'}"
    child = run(f"import sys, runner.record, runner.report; print({heavy} & set(sys.modules))")
    assert child.communicate()[0] == "set()\n"
