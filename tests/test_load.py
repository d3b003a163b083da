"""Names, paths and shapes as people type them: what is found, and what is said when nothing is."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import load, record
from runner.load import BadInput
from runner.schema import DTYPES

ROOT = Path(__file__).parents[1]
OURS = load.find_problem("convtranspose2d")
DEFAULTS: dict[str, Any] = OURS.outline.Shape()._asdict()
quick = settings(max_examples=100, deadline=None, database=None)

#: A problem in the form of KernelBench's files: one shape, made of module globals.
FOREIGN = '''
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear

class Model(nn.Module):
    """A matrix product and a ReLU."""

    def __init__(self, in_features: int, out_features: int):
        super(Model, self).__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.linear(x))

batch_size = 16
in_features = 64
out_features = in_features // 2

def get_inputs():
    x = torch.rand(batch_size, in_features)
    return [x]

def get_init_inputs():
    return [in_features, out_features]
'''


def written(folder: Path, name: str, text: str = FOREIGN) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch=2", {"batch": 2}),
        ("height=7,width=9,stride=3", {"height": 7, "width": 9, "stride": 3}),
        ("kernel_size=3x5,padding=1x2", {"kernel_size": (3, 5), "padding": (1, 2)}),
        ("bias=true", {"bias": True}),
        ("bias=1,groups=2", {"bias": True, "groups": 2}),
        ("bias=No", {"bias": False}),
    ],
)
def test_a_shape_is_the_default_but_for_what_is_named(text: str, expected: dict[str, Any]) -> None:
    shape = OURS.parse_shape(text)
    assert shape == DEFAULTS | expected
    assert all(type(shape[name]) is type(value) for name, value in expected.items())


@quick
@given(st.integers(0, 2**30))
def test_every_shape_can_be_typed(seed: int) -> None:
    shape = OURS.hidden_shape(random.Random(seed))  # noqa: S311 - repeatable
    assert shape is not None
    typed = ",".join(
        f"{name}={'x'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in shape.items()
    )
    assert OURS.parse_shape(typed) == shape


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("bach=2", "unknown shape field 'bach': did you mean batch"),
        ("kernel=3", "unknown shape field 'kernel': did you mean kernel_size?"),
        ("pading=3", "did you mean padding or output_padding?"),
        ("zzz=3", "known: batch, bias, dilation"),
        ("=3", "unknown shape field ''"),
        ("", "unknown shape field ''"),
        ("batch=2,", "unknown shape field ''"),
        ("batch", "batch='': a whole number"),
        ("batch=two", "batch='two': a whole number of at most 18 digits, or one per axis as in 3x5"),
        ("batch=2.5", "batch='2.5'"),
        ("batch=1e3", "batch='1e3'"),
        ("kernel_size=3x", "kernel_size='3x'"),
        ("kernel_size=3,5", "unknown shape field '5'"),
        ("bias=2", "bias='2': true or false"),
        ("bias=", "bias='': true or false"),
        ("batch=0", "batch=0"),
        ("batch=-1", "batch=-1"),
        ("batch=3x5", "batch=(3, 5)"),
        ("kernel_size=3x5x7", "kernel_size=(3, 5, 7)"),
        ("groups=3", "groups=3 does not divide"),
        ("height=1,width=1,kernel_size=1,padding=1", "lower padding"),
        (f"batch={'9' * 5000}", "batch='999"),
        (f"batch={'9' * 20}", f"batch='{'9' * 20}': a whole number of at most 18 digits"),
        ("batch=2,batch=3", "shape 'batch=2,batch=3' has batch twice"),
        ("stride=2,groups=1,stride=2", "has stride twice: leave one out, or write two --shapes"),
    ],
)
def test_what_is_no_shape_gets_one_line_that_names_it(text: str, complaint: str) -> None:
    with pytest.raises(BadInput) as caught:
        OURS.parse_shape(text)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@quick
@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from([*DEFAULTS, "=", ",", "x", "3", "-", "٣", "true"])).map("".join)
)
def test_any_text_is_a_shape_or_bad_input(text: str) -> None:
    try:
        shape = OURS.parse_shape(text)
    except BadInput:
        return
    assert shape.keys() == DEFAULTS.keys()


def test_what_is_there_is_found() -> None:
    assert "convtranspose2d" in load.problem_names()
    assert {"gather_gemm", "phase_gemm"} <= set(load.solution_names("convtranspose2d"))
    assert {"eager", "cudnn", "channels_last"} <= set(load.baseline_names())
    solution = load.find_solution("phase_gemm", "convtranspose2d")
    assert (solution.name, solution.source) == ("phase_gemm", solution.path.read_text(encoding="utf-8"))
    assert load.find_solution(str(solution.path), "convtranspose2d") == solution


@pytest.mark.parametrize("path", ["mine.py", "./mine.py", "folder/../mine.py", "../{name}/mine.py"])
def test_a_path_leads_to_its_file_from_wherever_it_is_read(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    file, path = written(tmp_path, "mine.py"), path.format(name=tmp_path.name)
    monkeypatch.chdir(tmp_path)
    problem, solution = load.find_problem(path), load.find_solution(path, "convtranspose2d")
    monkeypatch.chdir(ROOT)
    for found in (problem, solution):
        assert found.path.is_absolute()
        assert found.path.samefile(file)


def test_files_of_one_name_are_told_apart_or_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        written(tmp_path, f"{folder}/x.py")
    one, other, again = (
        load.find_solution(f"{tmp_path}/{path}", "convtranspose2d")
        for path in ("a/x.py", "b/x.py", "b/../a/x.py")
    )
    assert load.require_distinct([one, again, one]) == [one]
    with pytest.raises(BadInput, match=r"a/x\.py' and '[^']*b/x\.py' would both be recorded as 'x'"):
        load.require_distinct([one, again, other])


@quick
@given(st.text(max_size=8) | st.binary(max_size=8), st.text(max_size=8) | st.text("a-", max_size=120))
def test_a_text_in_no_file_is_a_solution_or_bad_input(source: Any, name: str) -> None:
    try:
        solution = load.solution_of(source, name)
    except BadInput:
        return
    assert (solution.source, solution.name) == (source, name)
    assert solution.digest
    assert record.results_path(Path(), "cpu", "convtranspose2d", name)


@quick
@given(st.lists(st.sampled_from(DTYPES) | st.text(max_size=5), max_size=4))
def test_names_are_known_and_told_once_or_the_first_that_is_not_is_named(named: list[str]) -> None:
    unknown = [name for name in named or [""] if name not in DTYPES]
    if unknown:
        with pytest.raises(BadInput, match=re.escape(f"unknown dtype '{unknown[0]}': ")):
            load.known_names("dtype", named, DTYPES)
    else:
        assert load.known_names("dtype", named, DTYPES) == tuple(dict.fromkeys(named))


def test_a_text_is_one_name() -> None:
    assert load.known_names("dtype", "fp16", DTYPES) == ("fp16",)
    assert load.chosen_baselines("cudnn") == ("cudnn",)
    with pytest.raises(BadInput, match="unknown dtype 'fp1'"):
        load.known_names("dtype", "fp1", DTYPES)


def test_adding_a_file_is_registering_it(tmp_path: Path) -> None:
    for folder in ("problems", "solutions/mine"):
        (tmp_path / folder).mkdir(parents=True)
    written(tmp_path, "problems/mine.py")
    written(tmp_path, "solutions/mine/fast.py")
    written(tmp_path, "solutions/mine/_draft.py")
    assert load.problem_names(tmp_path) == ["mine"]
    assert load.solution_names("mine", tmp_path) == ["fast"]
    assert load.solution_names("other", tmp_path) == []
    assert load.find_problem("mine", tmp_path).foreign
    assert load.find_solution("fast", "mine", tmp_path).source == FOREIGN


@pytest.mark.parametrize(
    ("find", "complaint"),
    [
        (
            lambda: load.find_problem("convtranspose"),
            "unknown problem 'convtranspose': did you mean convtranspose",
        ),
        (lambda: load.find_problem("xyz"), "unknown problem 'xyz': known: "),
        (lambda: load.find_problem(""), "unknown problem ''"),
        (lambda: load.find_solution("phase_gem", "convtranspose2d"), "did you mean phase_gemm"),
        (lambda: load.find_solution("phase_gemm", "nothing"), "unknown solution 'phase_gemm': known: none"),
        (lambda: load.find_solution("..", "convtranspose2d"), "unknown solution '..'"),
    ],
)
def test_an_unknown_name_gets_the_nearest_ones(find: Any, complaint: str) -> None:
    with pytest.raises(BadInput, match=re.escape(complaint)):
        find()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("81_conv.py", "81_conv"),
        ("my kernel (2).py", "my_kernel_2_"),
        ("--help.py", "help"),
        ("..py", "unnamed"),
        ("größe.py", "gr_e"),
        ("%2e%2e.py", "2e_2e"),
        ("a\nb.py", "a_b"),
        (".hidden.py", "hidden"),
        ("__init__.py", "init__"),
    ],
)
def test_a_name_from_a_path_can_stand_in_a_path(tmp_path: Path, file: str, name: str) -> None:
    found = load.find_solution(str(written(tmp_path, file)), "convtranspose2d")
    assert found.name == name
    assert load.find_problem(str(tmp_path / file)).name == name


@quick
@given(st.text())
def test_no_stem_makes_a_name_that_leads_elsewhere(stem: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", load._safe(stem))
    assert record.results_path(Path(), "cpu", "convtranspose2d", load._safe(stem * 40))


def test_a_source_is_read_as_it_is(tmp_path: Path) -> None:
    text = "# größe\r\nx = 1\n"
    (tmp_path / "a.py").write_bytes(text.encode())
    assert load.read_source(tmp_path / "a.py") == text
    (tmp_path / "b.py").write_bytes(b"#" * load.MAX_SOURCE_BYTES)
    assert len(load.read_source(tmp_path / "b.py")) == load.MAX_SOURCE_BYTES


def unreadable(folder: Path) -> Path:
    """Make a file that not even root can open."""
    path = folder / "loop.py"
    path.symlink_to(path)
    return path


def holding(data: bytes) -> Any:
    def make(folder: Path) -> Path:
        path = folder / "file.py"
        path.write_bytes(data)
        return path

    return make


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: folder, "is a directory: name the .py file in it"),
        (lambda folder: folder / "missing.py", "No such file"),
        (lambda folder: holding(b"")(folder) / "x.py", "Not a directory"),
        (lambda folder: folder / ("x" * 300 + ".py"), "File name too long"),
        (unreadable, "symbolic links"),
        (holding("größe".encode("latin-1")), "is not UTF-8 (byte 2): save it as UTF-8"),
        (holding(b"x = 1\0"), "holds NUL bytes"),
        (holding(b"#" * (load.MAX_SOURCE_BYTES + 1)), f"more than {load.MAX_SOURCE_BYTES} bytes"),
        (lambda _: Path("/dev/zero"), f"more than {load.MAX_SOURCE_BYTES} bytes"),
    ],
    ids=["directory", "missing", "under a file", "long name", "loop", "latin-1", "NUL", "large", "endless"],
)
def test_what_cannot_be_read_gets_one_line(tmp_path: Path, make: Any, complaint: str) -> None:
    path = make(tmp_path)
    with pytest.raises(BadInput) as caught:
        load.read_source(path)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = holding(b"")(tmp_path)
    path.chmod(0)
    with pytest.raises(BadInput, match="Permission denied"):
        load.read_source(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("class Model:\n  pass\n\ndef get_inputs(): pass\n", "does not define get_init_inputs"),
        ("", "does not define Model, get_inputs, get_init_inputs"),
        ("x = = 1", "line 1: invalid syntax"),
    ],
)
def test_a_file_without_the_contract_is_no_problem(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        load.find_problem(str(written(tmp_path, "bad.py", text)))


def test_a_problem_that_does_not_run_is_named(tmp_path: Path) -> None:
    problem = load.find_problem(str(written(tmp_path, "bad.py", FOREIGN + "\n1 / 0\n")))
    with pytest.raises(BadInput, match="does not run: ZeroDivisionError"):
        problem.module()


def test_a_foreign_problem_has_one_shape(tmp_path: Path) -> None:
    problem = load.find_problem(str(written(tmp_path, "81_conv.py")))
    assert problem.foreign
    assert not OURS.foreign
    assert problem.sweeps(128) == {"kernelbench": {"81_conv": {}}}
    assert problem.shape({}) is None
    assert problem.hidden_shape(random.Random(0)) is None  # noqa: S311
    with pytest.raises(BadInput, match="one shape only: leave --shapes out"):
        problem.parse_shape("batch=2")
    module = problem.module()
    with_torch = module.Model(*module.get_init_inputs())
    assert tuple(with_torch(*module.get_inputs()).shape) == (16, 32)


def test_sweeps_are_plain_and_follow_the_card() -> None:
    sweeps = OURS.sweeps(128)
    assert {"smoke", "kernelbench", "layers", "ragged", "waves"} <= sweeps.keys()
    assert sweeps["waves"] != OURS.sweeps(132)["waves"]
    assert sweeps["kernelbench"]["81"] == DEFAULTS
    for rows in sweeps.values():
        for label, row in rows.items():
            assert type(row) is dict
            assert OURS.valid(row, label) == row


def test_digests_follow_the_text() -> None:
    one, other = (load.Solution("a", Path("a.py"), text) for text in ("x = 1", "x = 2"))
    assert one.digest != other.digest
    assert one.digest == load.Solution("b", Path("b.py"), "x = 1").digest


WITHOUT_TORCH = """
import random, sys
from runner import load
ours = load.find_problem("convtranspose2d")
foreign = load.find_problem(sys.argv[1])
assert ours.sweeps(128)["kernelbench"]["81"]["batch"] == 16
assert ours.parse_shape("batch=3")["batch"] == 3
assert ours.hidden_shape(random.Random(1))
assert ours.outline.flops(ours.outline.Shape()) > 0
assert foreign.sweeps(128) == {"kernelbench": {"81_conv": {}}}
assert foreign.outline.get_init_inputs() == [64, 32]
loaded = [name for name in sys.modules if name.partition(".")[0] in ("torch", "triton", "numpy")]
assert not loaded, loaded
import torch.nn.functional
assert float(torch.nn.functional.relu(torch.ones(1))) == 1.0
assert foreign.module().get_inputs()[0].shape == (16, 64)
print("done")
"""


def test_problems_are_outlined_without_torch_which_can_still_be_imported(tmp_path: Path) -> None:
    path = written(tmp_path, "81_conv.py")
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "done", done.stderr


def test_a_problem_has_its_own_future(tmp_path: Path) -> None:
    path = tmp_path / "dated.py"
    path.write_text("def get_inputs(size: int): 0\n")
    module = load.Problem("dated", path, path.read_text()).module()
    assert module.get_inputs.__annotations__ == {"size": int}
