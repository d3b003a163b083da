"""What cannot be is one clear line with the input and the remedy, and costs no earlier record."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from test_record import passed

from runner import arguments, devices, jsonl, load, record, selftest
from runner.cli import main
from runner.commands import exits
from runner.contestant import libc
from runner.schema import Cell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import CommandLine

ROOT = Path(__file__).parents[1]
SOLUTION = ROOT / "solutions" / "convtranspose2d" / "phase_gemm.py"
RUN = ["--problem", "convtranspose2d", "--device", "cpu"]
SMOKE = [*RUN, "--shapes", "smoke/sparse", "--dtype", "fp32", "--math", "tf32"]
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return a results folder that has a record already, and a torn line that is nobody's to repair."""
    folder = tmp_path / "results"
    earlier = folder / "cpu" / "convtranspose2d" / "phase_gemm.jsonl"
    earlier.parent.mkdir(parents=True)
    earlier.write_text('{"an earlier": "record"}\n{"torn')
    return folder


@pytest.fixture
def complain(results: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command line, demands an exit code and one line, and returns the line."""

    def run(code: int, *arguments: str | Path) -> str:
        before = snapshot(results)
        assert main([*map(str, arguments), "--results", str(results)]) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert re.fullmatch(r"error: [^\n]+\n", said.err), said.err
        assert snapshot(results) == before
        return said.err

    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*.jsonl")}


# name -> (arguments, what the line has to hold)
USAGE: dict[str, tuple[list[str], list[str]]] = {
    "problem": (
        ["--problem", "convtranpose2d"],
        ["problem 'convtranpose2d'", "did you mean convtranspose2d"],
    ),
    "far problem": (["--problem", "softmax"], ["problem 'softmax'", "known: "]),
    "no problem": ([], ["--problem", "--help"]),
    "solution": ([*RUN, "--solution", "phase_gem"], ["solution 'phase_gem'", "did you mean phase_gemm"]),
    "sweep": ([*RUN, "--shapes", "smok"], ["shape 'smok'", "did you mean smoke"]),
    "two sweeps": ([*RUN, "--shapes", "smoke,ragged"], ["'smoke,ragged'", "--shapes once for each"]),
    "label": ([*RUN, "--shapes", "smoke/spars"], ["'smoke/spars'", "did you mean smoke or sparse"]),
    "ambiguous label": ([*RUN, "--shapes", "asymmetric"], ["smoke/asymmetric or ragged/asymmetric"]),
    "dtype": ([*RUN, "--dtype", "fp23"], ["dtype 'fp23'", "did you mean fp32"]),
    "no dtype": ([*RUN, "--dtype", ","], ["dtype ''", "known: bf16, fp16, fp32"]),
    "math": ([*RUN, "--math", "tf23"], ["math 'tf23'", "did you mean tf32"]),
    "card": ([*RUN, "--card", "rtx409"], ["card 'rtx409'", "rtx4090"]),
    "baseline": ([*RUN, "--baseline", "cuddn"], ["baseline 'cuddn'", "did you mean cudnn"]),
    "format": ([*RUN, "--format", "xml"], ["'xml'", "json"]),
    "timeout": ([*RUN, "--timeout", "0"], ["--timeout", "'0' is not a positive number"]),
    "budget": ([*RUN, "--budget", "soon"], ["--budget", "'soon' is not a positive number"]),
    "memory": ([*RUN, "--memory", "inf"], ["--memory", "'inf' is not a positive number"]),
    "much memory": ([*RUN, "--memory", "1e300"], ["--memory", "'1e300'", "up to 1000000"]),
    "feedback on an answer": (
        ["prompt", "--answer", __file__, "--feedback", __file__],
        ["--feedback is for a page"],
    ),
    "a long wait": (["explain", "--timeout", "3e6"], ["--timeout", "'3e6'", "up to 1000000"]),
    "many SMs": ([*RUN, "--sms", "9" * 5000], ["--sms", "up to 1000000"]),
    "an answer to no problem": (["prompt", "--answer", __file__, "--problem", "nope"], ["problem 'nope'"]),
    "command": (["leaderbord"], ["unknown command 'leaderbord'", "did you mean leaderboard?"]),
    "no command": (["phase_gemm"], ["unknown command 'phase_gemm'", "known: admit, check"]),
    "option": ([*RUN, "--shape", "smoke", "--fast"], ["--fast", "--help"]),
    "twice": ([*RUN, "--timeout", "3", "--timeout", "4"], ["--timeout is given twice: give one"]),
    "an empty option": ([*RUN, "--card", ""], ["--card is empty: name something"]),
    "an empty value": ([*RUN, "--card="], ["--card is empty"]),
    "an empty word": (["check", "", *RUN], ["check is empty"]),
    "shape field": ([*RUN, "--shapes", "batsh=2"], ["shape field 'batsh'", "did you mean batch"]),
    "no value": ([*RUN, "--shapes", "batch="], ["batch=''", "a whole number"]),
    "a field twice": ([*RUN, "--shapes", "batch=2,batch=3"], ["'batch=2,batch=3' has batch twice"]),
    "too long": ([*RUN, "--shapes", f"batch={'9' * 20}"], ["at most 18 digits"]),
    "a profile that is a folder": (["prompt", "--profile", "."], ["--profile", "'.' is a", "the JSON file"]),
    "an answer that is a folder": (["prompt", "--answer", "."], ["--answer", "'.' is a", "the Markdown"]),
    "not a number": ([*RUN, "--shapes", "stride=2x"], ["stride='2x'", "one per axis"]),
    "not a truth": ([*RUN, "--shapes", "bias=maybe"], ["bias='maybe'", "true or false"]),
    "zero": ([*RUN, "--shapes", "in_channels=0"], ["in_channels=0", "at least 1"]),
    "negative": ([*RUN, "--shapes", "batch=2,padding=-1"], ["padding=-1", "at least 0"]),
    "three axes": ([*RUN, "--shapes", "kernel_size=3x3x3"], ["kernel_size=(3, 3, 3)", "two axes"]),
    "groups": ([*RUN, "--shapes", "groups=5"], ["groups=5", "choose a divisor"]),
    "empty output": ([*RUN, "--shapes", "height=1,padding=9"], ["height=1,padding=9", "lower padding"]),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage(name: str, complain: Callable[..., str]) -> None:
    arguments, parts = USAGE[name]
    line = complain(2, *arguments)
    for part in parts:
        assert part in line


def spoil(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# name -> (make the file, what the line has to hold)
FILES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "absent": (lambda folder: folder / "none.py", ["No such file"]),
    "a directory": (lambda folder: folder, ["is a directory", "name the .py file"]),
    "a loop": (lambda folder: linked(folder / "loop.py"), ["Too many levels of symbolic links"]),
    "Latin-1": (lambda folder: spoil(folder / "x.py", b"# caf\xe9\n"), ["not UTF-8 (byte 5)", "save it as"]),
    "binary": (lambda folder: spoil(folder / "x.py", b"\0ELF"), ["NUL bytes"]),
    "huge": (
        lambda folder: spoil(folder / "x.py", b"#" * (2**20 + 1)),
        ["1048576 bytes"],
    ),
}


def linked(path: Path) -> Path:
    path.symlink_to(path)
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read(name: str, tmp_path: Path, complain: Callable[..., str]) -> None:
    make, parts = FILES[name]
    file = make(tmp_path)
    for words in ([*RUN, "--solution", file], ["--problem", file, "--solution", SOLUTION]):
        line = complain(2, *words)
        for part in (str(file), *parts):
            assert part in line


def test_check_and_import_of_a_file_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path), "--problem", "convtranspose2d"]) == 2
    assert main(["import", str(tmp_path / "none"), "--results", str(tmp_path / "results")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["error", "error"]
    assert "is a directory" in said[0]
    assert "No such file" in said[1]


#: A problem of the suite's own kind, with one sweep, and what may be wrong with it.
SOUND = """
from typing import NamedTuple
import torch
class Shape(NamedTuple):
    n: int = 4
class Model(torch.nn.Module):
    def forward(self, x): return x + 1
def get_inputs(shape): return [torch.rand(shape.n, 3)]
def get_init_inputs(shape): return []
SWEEPS = {"smoke": {"one": Shape(4)}}
"""
CUSTOM = ("--shapes", "n=3")
SLIPS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "no sweeps": (SOUND.replace("SWEEPS", "SWEEP"), (), "does not define SWEEPS, which a Shape needs"),
    "flops alone": (f"{SOUND}def flops(shape): return 1\n", (), "min_bytes, which flops needs"),
    "bytes alone": (f"{SOUND}def min_bytes(shape, size): return 1\n", (), "flops, which min_bytes needs"),
    "a list": (SOUND.replace('{"one": Shape(4)}', "[Shape(4)]"), (), "SWEEPS does not hold by its contract"),
    "a row": (SOUND.replace("Shape(4)}", "(4,)}"), (), "the row 'one' of 'smoke' is a tuple: write a Shape"),
    "a float": (SOUND.replace("Shape(4)", "Shape(4.5)"), (), "the row 'one' of 'smoke' has n = 4.5: write"),
    "floats": (SOUND.replace("Shape(4)", "Shape((4, 0.5))"), (), "has n = (4, 0.5): write whole numbers"),
    "a tuple": (f"{SOUND}def random_shape(rng): return (4,)\n", (), "random_shape does not hold"),
    "waves": (f"{SOUND}def waves(sms): return 1 / 0\n", (), "waves does not hold by its contract: ZeroD"),
    "validate": (f"{SOUND}def validate(shape): return 1 / 0\n", CUSTOM, "validate does not hold"),
    "no default": (SOUND.replace("n: int = 4", "n: int"), CUSTOM, "Shape, without arguments, does not hold"),
    "no smoke": (SOUND.replace('"smoke"', '"other"'), (), "name some with --shapes, of other"),
    "a label": (SOUND.replace('"one"', '"n=4,m"'), (), "--shapes cannot name 'n=4,m': letters, digits and"),
    "a number": (SOUND.replace('"one"', "1"), (), "--shapes cannot name 1: "),
    "hidden": (SOUND.replace('"smoke"', '"hidden"'), (), "hidden and custom are taken"),
    "parameters": (f"{SOUND}PARAMETERS = 'new'\n", (), "PARAMETERS = 'new': 'fixed' or 'fresh'"),
    "a percentage": (f"{SOUND}LIBRARY_SHARE = 50\n", (), "LIBRARY_SHARE = 50: a share from 0 to 1"),
    "a dimension": (f"{SOUND}BATCH_DIM = 1\n", (), "BATCH_DIM = 1: 0, or leave it out"),
    "a text": (f"{SOUND}LARGE = 'one'\n", (), "LARGE = 'one': a set of rows' labels"),
    "no row": (f"{SOUND}LARGE = {{'two'}}\n", (), "LARGE has 'two', which is no row's label"),
    "empty": (SOUND.replace('{"one": Shape(4)}', "{}"), (), "has no shapes in smoke"),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_in_a_problem_is_no_fault_of_a_solution(
    name: str, tmp_path: Path, complain: Callable[..., str]
) -> None:
    source, words, part = SLIPS[name]
    file = spoil(tmp_path / "problem.py", source.encode())
    line = complain(2, "--problem", file, "--solution", SOLUTION, "--device", "cpu", *words)
    assert part in line


def test_fewest_bytes_that_cannot_be_counted_are_the_problems_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = "def flops(shape): return 1\ndef min_bytes(shape): return 1\n"
    file = spoil(tmp_path / "problem.py", f"{SOUND}{counts}".encode())
    solution = spoil(tmp_path / "solution.py", SOUND.replace("Model", "ModelNew").encode())
    assert main(["check", str(solution), "--problem", str(file), "--device", "cpu"]) == 2
    assert "the problem's min_bytes raises TypeError" in capsys.readouterr().out


def test_what_nobody_expected_is_the_harnesss_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runner.commands.listing.list_all", lambda _: 1 / 0)
    assert main(["list"]) == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


NAMES = "class Model: 0\ndef get_inputs(): 0\ndef get_init_inputs(): 0\nclass Shape: 0\nSWEEPS = 0\n"
BAD_PROBLEMS = {
    "syntax": ("class Model(:\n", "line 1: invalid syntax"),
    "nested": (f"x = {'-' * 100_000}1\n", "is nested too deeply to be parsed: flatten it"),
    "contract": ("class Model: pass\ndef get_inputs(): pass\n", "does not define get_init_inputs"),
    "fails": (f"{NAMES}1 / 0\n", "does not run: ZeroDivisionError"),
    "ends": (f"{NAMES}raise SystemExit\n", "does not run: SystemExit: "),
}


@pytest.mark.parametrize("name", BAD_PROBLEMS)
def test_a_problem_that_is_none(name: str, tmp_path: Path, complain: Callable[..., str]) -> None:
    source, part = BAD_PROBLEMS[name]
    file = spoil(tmp_path / "problem.py", source.encode())
    line = complain(2, "--problem", file, "--solution", SOLUTION, "--device", "cpu")
    assert str(file) in line
    assert part in line


def test_a_problem_without_solutions(tmp_path: Path, complain: Callable[..., str]) -> None:
    source = "class Model: pass\ndef get_inputs(): pass\ndef get_init_inputs(): pass\n"
    file = spoil(tmp_path / "lonely.py", source.encode())
    assert "'lonely' has no solutions: name one with --solution" in complain(2, "--problem", file)
    assert "one shape only" in complain(2, "--problem", file, "--solution", SOLUTION, "--shapes", "batch=2")


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Take root's right to pass over permissions away for a while."""
    header, state = struct.pack("=Ii", 0x20080522, 0), bytearray(24)
    buffer = (ctypes.c_char * 24).from_buffer(state)
    libc.call("capget", header, buffer)
    original = bytes(state)
    effective = struct.unpack_from("=I", state)[0] & ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    struct.pack_into("=I", state, 0, effective)
    libc.call("capset", header, buffer)
    try:
        yield
    finally:
        libc.call("capset", header, original)


def test_a_file_without_permission(tmp_path: Path, complain: Callable[..., str]) -> None:
    file = spoil(tmp_path / "secret.py", b"")
    file.chmod(0)
    with bound_by_permissions():
        line = complain(2, *RUN, "--solution", file)
    assert f"cannot read '{file}': Permission denied" in line


LOOKS = {
    "leaderboard": ["leaderboard"],
    "export": ["export", "--format", "trace"],
    "staircase": ["staircase", "--problem", "convtranspose2d"],
    "explain": ["explain", *RUN[:2], "--solution", "gather_gemm", "--shapes", "81", "--card", "h200"],
    "prompt": ["prompt", *RUN[:2], "--solution", "gather_gemm", "--stage", "grid", "--no-run"],
    "dry run": [*SMOKE, "--solution", "gather_gemm", "--dry-run"],
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_results_file_that_cannot_be_opened(
    name: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = "cpu" if name == "dry run" else "h200"
    path = results / card / "convtranspose2d" / "gather_gemm.jsonl"
    path.mkdir(parents=True)
    assert main([*LOOKS[name], "--results", str(results)]) == 2
    assert capsys.readouterr().err == f"error: cannot read '{path}': Is a directory\n"


@pytest.mark.parametrize("name", LOOKS)
def test_a_results_folder_that_cannot_be_entered(
    name: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = results / ("cpu" if name == "dry run" else "h200") / "convtranspose2d"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0)
    with bound_by_permissions():
        assert main([*LOOKS[name], "--results", str(results)]) == 2
    told = f"cannot list '{folder}': Permission denied; give permission"
    if name == "explain":  # which knows the name of its file
        told = f"cannot read '{folder / 'gather_gemm.jsonl'}': Permission denied"
    assert f"error: {told}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["leaderboard", "export", "staircase"])
def test_results_in_a_folder_that_cannot_be_entered(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    with bound_by_permissions():
        assert main([*LOOKS[name], "--results", str(folder / "results")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert f"'{folder / 'results'}'" in line
    assert "Permission denied" in line


@pytest.mark.parametrize("deed", ["run", "import"])
def test_records_for_a_folder_that_cannot_be_entered(
    deed: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = results / ("cpu" if deed == "run" else "h200") / "convtranspose2d"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0)
    broken = spoil(tmp_path / "broken.py", b"no python\n")
    sent = ROOT / "results/h200/convtranspose2d/channels_last_gemm.jsonl"
    words = [*SMOKE, "--solution", str(broken)] if deed == "run" else ["import", str(sent)]
    with bound_by_permissions():
        assert main([*words, "--results", str(results)]) == 2
    assert f"error: cannot read '{folder}/" in capsys.readouterr().err


def test_a_record_for_a_folder_that_cannot_be_entered(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    with bound_by_permissions(), pytest.raises(record.ResultsUnwritable, match="denied; make room"):
        record.append(folder / "sent.jsonl", passed())


def test_findings_in_a_folder_that_cannot_be_entered(results: Path) -> None:
    folder = results / "h200"
    folder.mkdir(mode=0)
    with bound_by_permissions(), pytest.raises(record.ResultsUnreadable, match="cannot list"):
        selftest.recorded(results)


def test_import_names_the_file_that_cannot_be_read(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ROOT / "results/h200/convtranspose2d/channels_last_gemm.jsonl"
    path = results / "h200" / "convtranspose2d" / "channels_last_gemm.jsonl"
    path.mkdir(parents=True)
    assert main(["import", str(source), "--results", str(results)]) == 2
    assert capsys.readouterr().err == f"error: cannot read '{path}': Is a directory\n"


def test_an_export_of_nothing_leaves_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = spoil(tmp_path / "made.jsonl", b"precious")
    assert main(["export", "--format", "trace", "--arithmetic", "bf16", "-o", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: nothing to export; left out: ")
    assert path.read_bytes() == b"precious"


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    file = spoil(tmp_path / "x.py", b"\xef\xbb\xbfx = 1\n")
    assert load.read_source(file) == "x = 1\n"


def test_a_read_only_results_folder(results: Path, complain: Callable[..., str]) -> None:
    results.chmod(0o500)
    try:
        with bound_by_permissions():
            line = complain(3, *SMOKE, "--solution", SOLUTION)
    finally:
        results.chmod(0o700)
    assert f"cannot write {results}: Permission denied" in line
    assert "give permission" in line


def test_a_results_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = spoil(tmp_path / "results", b"precious")
    assert main([*SMOKE, "--results", str(file)]) == 3
    assert re.fullmatch(r"error: cannot write [^\n]*-o FILE\n", capsys.readouterr().err)
    assert file.read_bytes() == b"precious"


def test_two_runs_at_once(results: Path, complain: Callable[..., str]) -> None:
    with record.lock_results(results):
        line = complain(3, *SMOKE)
    assert f"{results} is in use by another run (pid {os.getpid()})" in line


def test_a_run_with_an_output_holds_that_and_no_results_folder(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent, broken = tmp_path / "sent.jsonl", spoil(tmp_path / "broken.py", b"no python\n")
    words = [*SMOKE, "--solution", str(broken), "--results", str(results), "-o", str(sent)]
    with record.lock_results(results):
        assert main(words) == 1
    capsys.readouterr()
    before = sent.read_bytes()
    with record.lock_output(sent, ""):
        assert main([*words, "--rerun"]) == 3
    (*_, line) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {sent} is in use by another run (pid {os.getpid()}); ")
    assert line.endswith("write elsewhere: another -o FILE")
    assert sent.read_bytes() == before


@pytest.mark.parametrize("content", [b"import torch\n", b"[1]\n", b"\xff\xfe\n", b"{\n}\n"])
@pytest.mark.parametrize(
    "words", [SMOKE, ["compare", "gather_gemm", "phase_gemm", *SMOKE]], ids=["run", "compare"]
)
def test_nothing_is_added_to_a_file_of_other_things(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], content: bytes
) -> None:
    file = spoil(tmp_path / "kernel.py", content)
    assert main([*words, "-o", str(file)]) == exits.EXIT_USAGE
    assert f"error: -o '{file}' holds other than JSON lines: name another file\n" in capsys.readouterr().err
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\n", b'{"torn', b'{"torn\n{"schema": 1}\n'])
def test_a_file_that_a_run_left_is_gone_on_with(tmp_path: Path, content: bytes) -> None:
    file = spoil(tmp_path / "sent.jsonl", content)
    jsonl.append(file, [{"a": 1}])
    end = b"\n" * (content[-1:] not in (b"", b"\n"))
    assert file.read_bytes() == content + end + b'{"a": 1}\n'


def test_an_output_where_nothing_can_be_written(complain: Callable[..., str]) -> None:
    line = complain(3, *SMOKE, "--solution", SOLUTION, "-o", "/proc/x.jsonl")
    assert "cannot write /proc/x.jsonl: No such file" in line
    assert line.endswith("write elsewhere: another -o FILE\n")


# name -> (what the file holds, if there is one, and what the line has to hold)
IMPORTS: dict[str, tuple[bytes | None, list[str]]] = {
    "absent": (None, ["cannot read '{file}': No such file"]),
    "empty": (b"", ["'{file}' has no records, it is empty: name a file that a run wrote with -o"]),
    "blank": (b"\n \n", ["it is empty"]),
    "garbage": (b"solution,time\n" * 3, ["'{file}' has no records", "{file}:1: not JSON", "wrote with -o"]),
    "binary": (b"\xff\xfe\n", ["{file}:1: not UTF-8"]),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_an_import_of_no_records(name: str, tmp_path: Path, complain: Callable[..., str]) -> None:
    content, parts = IMPORTS[name]
    file = tmp_path / "sent.jsonl"
    if content is not None:
        spoil(file, content)
    line = complain(2, "import", file)
    for part in parts:
        assert part.format(file=file) in line


def test_an_import_into_a_folder_in_use(results: Path, tmp_path: Path, complain: Callable[..., str]) -> None:
    with record.lock_results(results):
        assert "No such file" in complain(2, "import", tmp_path / "none.jsonl")
        line = complain(3, "import", spoil(tmp_path / "sent.jsonl", b"{}"))
    assert line.endswith(
        f"in use by another run (pid {os.getpid()}); wait for it or write elsewhere: --results DIR\n"
    )


@pytest.mark.parametrize("command", ["leaderboard", "staircase --problem conv2d"])
def test_records_that_are_to_be_read_where_there_are_none(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = spoil(tmp_path / "file", b""), tmp_path / "none"
    for place, complaint in ((folder, "does not exist"), (file, "is no folder")):
        assert main([*command.split(), "--results", str(place)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert (
            said.err == f"error: --results '{place}' {complaint}: name a folder that runs have written to\n"
        )
    assert not folder.exists()


def test_two_files_that_give_one_name(tmp_path: Path, complain: Callable[..., str]) -> None:
    (tmp_path / "a").mkdir()
    files = [spoil(tmp_path / name, b"x = 1\n") for name in ("x.py", "a/x.py")]
    words = [word for file in files for word in ("--solution", str(file))]
    line = complain(2, *RUN, *words)
    for part in (*map(str, files), "recorded as 'x'", "rename one"):
        assert part in line


# name -> (words before FILE is judged, exit code, what the line has to hold)
BEFORE_FINDINGS: dict[str, tuple[list[str], int, str]] = {
    "card": (["check", "--card", "rtx409"], 2, "card 'rtx409'"),
    "dtype": (["check", "--dtype", "fp61"], 2, "dtype 'fp61'"),
    "shape": (["check", "--shapes", "smoke/spars"], 2, "'smoke/spars'"),
    "device": (["check", "--device", "cuda:99"], 4, "cuda:99"),
    "submission": (["submit", "--author", "A", "--device", "cuda:99"], 4, "cuda:99"),
    "its dtype": (["submit", "--author", "A", "--dtype", "fp61"], 2, "dtype 'fp61'"),
}


@pytest.mark.parametrize("name", BEFORE_FINDINGS)
def test_options_come_before_findings(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (command, *options), code, part = BEFORE_FINDINGS[name]
    file = spoil(tmp_path / "mine.py", b"no python\n")
    assert main([command, str(file), "--problem", "convtranspose2d", *options]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", said.err)
    assert part in said.err


def test_a_part_of_the_selftest_comes_before_its_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "ratio", "--device", "cpu"]) == 2
    assert "part of the selftest 'ratio': did you mean ratios" in capsys.readouterr().err


def test_a_full_disk(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:99])

    before = snapshot(results)
    broken = spoil(results.parent / "broken.py", b"no python\n")
    monkeypatch.setattr(os, "write", half)
    assert main([*SMOKE, "--solution", str(broken), "--results", str(results)]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    flaw, failure = said.err.splitlines()
    assert flaw.startswith(f"error: '{broken}' line 1: ")
    assert re.fullmatch(r"error: cannot write \S*broken\.jsonl: No space left .*: -o FILE", failure)
    assert {name: content for name, content in snapshot(results).items() if content} == before


DEVICES = {
    "gpu": (2, 0, "cpu, cuda or cuda:N"),
    "cuda": (4, 0, "no CUDA device; --device cpu"),
    "cuda:0": (4, 0, "no CUDA device; --device cpu"),
    "cuda:1": (4, 1, "cuda:0"),
    "cuda:x": (2, 1, "cpu, cuda or cuda:N"),
    "cuda:²": (2, 1, "cpu, cuda or cuda:N"),
}


@pytest.mark.parametrize("device", DEVICES)
def test_no_such_device(device: str, complain: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, there, part = DEVICES[device]
    monkeypatch.setattr(devices, "count", lambda: there)
    line = complain(code, "--problem", "convtranspose2d", "--device", device)
    assert f"--device '{device}'" in line
    assert part in line


@pytest.mark.parametrize(("init", "counting", "there"), [(0, 0, 2), (100, 0, 0), (0, 3, 0)])
def test_gpus_are_counted_by_the_driver(
    init: int, counting: int, there: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(pointer: Any) -> int:
        pointer._obj.value = 2
        return counting

    driver = SimpleNamespace(cuInit=lambda _: init, cuDeviceGetCount=count)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    assert devices.count() == there


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert devices.count() == 0


def test_an_output_that_is_a_directory(complain: Callable[..., str], tmp_path: Path) -> None:
    assert "name a .jsonl file" in complain(2, *RUN, "-o", tmp_path)


LAYER = """
from torch import nn

class ModelNew(nn.Module):
    def __init__(self, inputs, outputs, size, stride, padding, dilation):
        super().__init__()
        self.layer = nn.ConvTranspose2d(inputs, outputs, size, stride, padding, bias=False, dilation=dilation)

    def forward(self, x):
        return self.layer(x)
"""


def layer(line: str, other: str) -> str:
    """Return the honest layer with one thing changed."""
    assert line in LAYER
    return LAYER.replace(line, other)


# name -> (source, status, part of the reason)
BROKEN = {
    "another_language": ("int main(void) { return 0; }\n", "BUILD", "line 1: invalid syntax"),
    "bad_syntax": (f"{LAYER}\n    def f(:\n", "BUILD", "line 12: "),
    "no_model": (layer("ModelNew", "Model"), "BUILD", "defines no ModelNew"),
    "model_is_a_function": (
        "def ModelNew(*sizes): return sizes\n",
        "BUILD",
        "not a torch.nn.Module: derive it from one",
    ),
    "fails_to_import": (f"import tomorrow\n{LAYER}", "BUILD", "No module named 'tomorrow'"),
    "other_constructor": (
        layer(", dilation)", ")"),
        "BUILD",
        "takes 6 positional arguments but 7 were given: it has to take the 6 values of the problem's",
    ),
    "fails_within": (layer("super()", "len(3) or super()"), "BUILD", "TypeError: object of type 'int' has"),
    "other_parameters": (
        layer("bias=False", "bias=True"),
        "BUILD",
        "expected conv_transpose2d.weight [7, 8, 3, 3]; ModelNew has layer.weight [7, 8, 3, 3], layer.bias",
    ),
    "other_sizes": (
        layer("size, stride, padding, bias", "1, stride, padding, bias"),
        "BUILD",
        "[7, 8, 1, 1]",
    ),
    "no_tensor": (layer("self.layer(x)", "7"), "WRONG", "forward returned int: return a tensor, or a tuple"),
    "nothing": (layer("self.layer(x)", "[]"), "WRONG", "no output, or too many: return what the reference"),
    "two_outputs": (layer("self.layer(x)", "(self.layer(x), x)"), "WRONG", "2 outputs instead of 1"),
    "other_dtype": (layer("(x)\n", "(x).double()\n"), "WRONG", "dtype float64 instead of float32"),
    "transposed": (layer("(x)\n", "(x).mT.contiguous().mT\n"), "WRONG", "instead of contiguous"),
}


@pytest.fixture(scope="module")
def broken(new_command_line: Callable[[], CommandLine]) -> dict[str, dict[str, Any]]:
    """Run all broken solutions at once; return their records by name."""
    runner = new_command_line()
    arguments = list(SMOKE)
    for name, (source, _, _) in BROKEN.items():
        arguments += ["--solution", str(spoil(runner.folder / f"{name}.py", source.encode()))]
    assert runner.run(*arguments) == 1
    said = runner.said("err").splitlines()
    assert len(said) == len(BROKEN)
    told = (r"error: '\S*/\w+\.py' line \d+: ", r"\[\d+/\d+\] \w+ smoke/sparse tf32 (BUILD|WRONG): .")
    assert all(re.match("|".join(told), line) for line in said)
    assert len([line for line in said if line.startswith("error: ")]) == 3
    assert runner.said("out").count(" BUILD ") >= 3
    records = [json.loads(line) for line in runner.lines()]
    assert len(records) == len(BROKEN)
    return {one["solution"]: one for one in records}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_solution_is_a_cell_with_a_reason(name: str, broken: dict[str, dict[str, Any]]) -> None:
    _, status, part = BROKEN[name]
    assert broken[name]["status"] == status
    assert part in broken[name]["failed"]["reason"]
    assert "\n" not in broken[name]["failed"]["reason"]


# name -> (text, its line, the remedy)
FLAWS = {
    "no_python": ("int main(void) { return 0; }\n", 1, f"it has to be Python 3.{sys.version_info.minor}"),
    "syntax": (f"{LAYER}\n    def f(:\n", 12, f"it has to be Python 3.{sys.version_info.minor}"),
    "no_model": (layer("ModelNew", "Model"), 1, "defines no ModelNew: give that name to the class"),
    "declaration": (f"{LAYER}\nDTYPES = ('fp23',)\n", 12, "mend the line"),
}


def test_what_is_wrong_with_a_text_is_told_once_and_recorded_for_every_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent, words = tmp_path / "sent.jsonl", [*RUN, "--shapes", "smoke", "--dtype", "fp32"]
    files = [spoil(tmp_path / f"{name}.py", source.encode()) for name, (source, _, _) in FLAWS.items()]
    for file in files:
        words += ["--solution", str(file)]
    assert main([*words, "-o", str(sent)]) == 1
    said = capsys.readouterr()
    told = said.err.splitlines()
    assert len(told) == len(FLAWS)
    for flaw, file, (_, line, remedy) in zip(told, files, FLAWS.values(), strict=True):
        assert flaw.startswith(f"error: '{file}' line {line}: ")
        assert remedy in flaw
    statuses = [one.status for one in record.read(sent)[0]]
    assert statuses == ["BUILD"] * 12 * len(FLAWS)
    assert said.out.count(" BUILD ") == len(statuses)


def test_check_tells_what_is_wrong_with_a_text_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = spoil(tmp_path / "mine.py", b"class ModelNew(:\n")
    assert main(["check", str(file), *RUN]) == 1
    said = capsys.readouterr()
    finding, tally = said.out.splitlines()
    assert finding.startswith(f"{file}:1: error [syntax] ")
    assert re.fullmatch(r"0 of \d\d cells pass in \d+ s, and the text is refused", tally)
    assert said.err == ""


def test_check_counts_what_is_not_covered_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = spoil(tmp_path / "mine.py", f"{LAYER}\nDTYPES = ('fp32',)\nMATH = ('fp32',)\n".encode())
    words = ["--shapes", "smoke/sparse", "--dtype", "fp32,fp16,bf16"]
    assert main(["check", str(file), *RUN, *words]) == 0
    (*_, tally) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1 of 1 cells pass, 3 not covered in \d+ s", tally)
    assert main(["check", str(file), *RUN, "--shapes", "smoke/sparse", "--math", "tf32"]) == 2
    assert "nothing was checked" in capsys.readouterr().err


def test_check_takes_the_name_of_a_solution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "phase_gemm", *SMOKE]) == 0
    assert "1 of 1 cells pass" in capsys.readouterr().out


def test_what_a_failed_solution_printed_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prints = "        print('seen', tuple(x.shape)); print('\x1b[31m', flush=True)\n"
    for name, last, status in (
        ("wrong", "return self.layer(x) * 1.05", "WRONG"),
        ("raises", "1 / 0", "CRASH"),
    ):
        lines = LAYER.replace("        return self.layer(x)", f"{prints}        {last}")
        assert last in lines
        file = spoil(tmp_path / f"{name}.py", lines.encode())
        assert main(["check", str(file), *SMOKE]) == 1
        said = capsys.readouterr().out.splitlines()
        (place,) = (at for at, line in enumerate(said) if status in line)
        assert re.fullmatch(r"    seen \(\d, .*\)", said[place + 1])
        assert said[place + 2] == "    ?[31m"
        assert ("a relative error of 0.05, " in said[place]) == (status == "WRONG")
        assert ("x budget" in said[place]) == (status == "WRONG")


def test_an_error_of_tf32_s_size_is_told_where_fp32_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = spoil(tmp_path / "mine.py", LAYER.replace("self.layer(x)", "self.layer(x) * 1.0005").encode())
    for math, told in (("fp32", True), ("tf32", False)):
        main(["check", str(file), *RUN, "--shapes", "smoke/sparse", "--dtype", "fp32", "--math", math])
        assert ("TF32 loses as much" in capsys.readouterr().out) == told


def test_exit_codes_are_the_same_wherever_they_are_told() -> None:
    table = (ROOT / "runner" / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    documented = set(map(int, re.findall(r"(?m)^\| (\d+) \|", table)))
    known = {value for name, value in vars(exits).items() if name.startswith("EXIT_")}
    assert documented == known | {130}
    for text in (arguments._EPILOG, arguments._DOCTOR_EPILOG):
        assert set(map(int, re.findall(r"(?:: |; )(\d+) ", text))) == documented


def test_a_shape_beyond_the_memory_is_known_before_anything_is_allocated() -> None:
    import torch

    from runner.judge.case import shortage

    problem = load.find_problem("convtranspose2d")
    for batch, reason in ((1, r""), (10**9, r"needs about \d+ MiB of memory, cpu has \d+")):
        cell = Cell("custom", "", problem.parse_shape(f"batch={batch}"), "fp32", "tf32")
        assert re.fullmatch(reason, shortage(problem, cell, torch.device("cpu")))
