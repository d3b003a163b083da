"""What cannot be is one clear line with the input and the remedy, and costs no earlier record."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner import devices, load, record
from runner.cli import main
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
    "option": ([*RUN, "--shape", "smoke", "--fast"], ["--fast", "--help"]),
    "shape field": ([*RUN, "--shapes", "batsh=2"], ["shape field 'batsh'", "did you mean batch"]),
    "no value": ([*RUN, "--shapes", "batch="], ["batch=''", "a whole number"]),
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
    for arguments in ([*RUN, "--solution", file], ["--problem", file, "--solution", SOLUTION]):
        line = complain(2, *arguments)
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


BAD_PROBLEMS = {
    "syntax": ("class Model(:\n", "line 1: invalid syntax"),
    "contract": ("class Model: pass\ndef get_inputs(): pass\n", "does not define get_init_inputs"),
    "fails": (
        "class Model: pass\nclass Shape: pass\ndef get_inputs(): pass\ndef get_init_inputs(): pass\n1 / 0\n",
        "does not run: ZeroDivisionError",
    ),
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
    assert re.fullmatch(r"error: cannot write \S*broken\.jsonl: No space left [^\n]*-o FILE\n", said.err)
    assert {name: content for name, content in snapshot(results).items() if content} == before


DEVICES = {
    "gpu": (2, [], "cpu, cuda or cuda:N"),
    "cuda": (4, [], "no CUDA device; --device cpu"),
    "cuda:0": (4, [], "no CUDA device; --device cpu"),
    "cuda:1": (4, [devices.Gpu("NVIDIA H200", "GPU-0")], "cuda:0"),
    "cuda:x": (2, [devices.Gpu("NVIDIA H200", "GPU-0")], "cpu, cuda or cuda:N"),
}


@pytest.mark.parametrize("device", DEVICES)
def test_no_such_device(device: str, complain: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, there, part = DEVICES[device]
    monkeypatch.setattr(devices, "gpus", lambda: there)
    line = complain(code, "--problem", "convtranspose2d", "--device", device)
    assert f"--device '{device}'" in line
    assert part in line


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
    "model_is_a_function": ("def ModelNew(*sizes): return sizes\n", "BUILD", "not a torch.nn.Module"),
    "fails_to_import": (f"import tomorrow\n{LAYER}", "BUILD", "No module named 'tomorrow'"),
    "other_constructor": (layer(", dilation)", ")"), "BUILD", "takes 6 positional arguments but 7"),
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
    "no_tensor": (layer("self.layer(x)", "7"), "WRONG", "forward returned int, not a tensor"),
    "nothing": (layer("self.layer(x)", "[]"), "WRONG", "no output"),
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
    assert all(re.match(r"\[\d+/\d+\] \w+ smoke/sparse tf32 (BUILD|WRONG): .", line) for line in said)
    records = [json.loads(line) for line in runner.lines()]
    assert len(records) == len(BROKEN)
    return {one["solution"]: one for one in records}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_solution_is_a_cell_with_a_reason(name: str, broken: dict[str, dict[str, Any]]) -> None:
    _, status, part = BROKEN[name]
    assert broken[name]["status"] == status
    assert part in broken[name]["failed"]["reason"]
    assert "\n" not in broken[name]["failed"]["reason"]


def test_a_shape_beyond_the_memory_is_known_before_anything_is_allocated() -> None:
    import torch

    from runner.judge.case import shortage

    problem = load.find_problem("convtranspose2d")
    for batch, reason in ((1, r""), (10**9, r"needs about \d+ MiB of memory, cpu has \d+")):
        cell = Cell("custom", "", problem.parse_shape(f"batch={batch}"), "fp32", "tf32")
        assert re.fullmatch(reason, shortage(problem, cell, torch.device("cpu")))
