"""Admission: wrong answers are refused on every row, and the battery can tell a judge that lets them pass."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import admit, load, plan
from runner.admit import Kept
from runner.judge import admission, check, fake_layers, fakes
from runner.judge.case import Case
from runner.schema import DTYPES, MATHS, Cell

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PROBLEMS = load.problem_names()
#: 8.6 GB of output, more than four times which few machines have.
TOO_LARGE = "past-int32"


def cells(problem: str, *shapes: str) -> list[Cell]:
    """All cells of some sweeps, where the problem has them, or rows."""
    found = load.find_problem(problem)
    there = [one for one in shapes if "/" in one or one in found.sweeps(128)]
    return list(plan.plan_cells(found, there, DTYPES, MATHS, "cpu", 128)) if there else []


def small_cells(name: str) -> list[Cell]:
    """Every row of `smoke`, in one arithmetic after another; the two least of `ragged` in bf16 and fp16."""
    problem = load.find_problem(name)
    rows: dict[str, list[Cell]] = {}
    for cell in cells(name, "smoke", "ragged"):
        rows.setdefault(f"{cell.sweep}/{cell.label}", []).append(cell)
    smoke = [of for place, of in rows.items() if place.startswith("smoke/")]
    ragged = [of for place, of in rows.items() if place.startswith("ragged/")]
    ragged.sort(key=lambda of: problem.outline.min_bytes(problem.shape(of[0].shape), 4))
    least = [of[place] for of, place in zip(ragged, (-1, -2), strict=False)]
    return [*(of[number % len(of)] for number, of in enumerate(smoke)), *least]


def kind(name: str) -> str:
    """One tap is as good as another."""
    return re.sub(r"tap \[.*?\]", "a tap", name)


#: Kinds of wrong answers that no small row of a convolution can give: arguments that its layers know and it
#: has not, kernels and outputs that are not square, reductions too short to lose anything.
ELSEWHERE = {
    "conv1d": {"conv1d.weight transposed", "last axes exchanged", "output_padding of conv1d ignored"},
    "conv2d": {"output_padding of conv2d ignored"},
    "conv3d": {"output_padding of conv3d ignored"},
    "convtranspose1d": {"conv1d_transpose.weight transposed", "last axes exchanged"},
    "convtranspose2d": {"last axes exchanged"},
    "convtranspose3d": {"dilation of conv_transpose3d ignored"},
    "depthwise_conv2d": {"output_padding of conv2d ignored", "accumulated in the dtype"},
    "separable_conv2d": {
        *(f"{argument} of pointwise ignored" for argument in ("dilation", "padding", "stride")),
        *(f"output_padding of {layer} ignored" for layer in ("depthwise", "pointwise")),
        *("pointwise.weight flipped", "pointwise.weight transposed"),
    },
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_wrong_answers_of_every_kind_are_refused_on_small_rows(name: str) -> None:
    """The record has every row in every arithmetic."""
    named, refused, as_the_host = set(), set(), set()
    for cell in small_cells(name):
        found = admission.admit(load.find_problem(name), cell, CPU)
        assert found.admitted, admit.render([found], "table")
        assert found.honest >= 3
        refused |= {*map(kind, found.refused)}
        named |= {kind(one) for names in found.not_applicable.values() for one in names}
        # PyTorch's own fp16 on some CPUs, an AMD EPYC with AVX-512 among them
        as_the_host |= {*found.not_applicable.get("the reference accumulates so itself", ())}
    if name in ELSEWHERE:
        assert named - refused - as_the_host == ELSEWHERE[name] - as_the_host
        assert len(refused) > 45


def record(name: str) -> dict[str, admit.Kept]:
    """Return the committed lines of a problem by cell."""
    kept = {one.cell: one for one in admit.read(ROOT / "results" / "admission" / f"{name}.jsonl")}
    assert [one.cell for one in kept.values() if not one.admitted or one.problem != name] == []
    return kept


def unsettled(name: str, *sweeps: str) -> dict[str, str]:
    """Return the cells of some sweeps that no line admits as the files are, each with the reason."""
    problem, kept = load.find_problem(name), record(name)
    reasons = {
        cell.key: kept[cell.key].stale(problem) if cell.key in kept else "missing"
        for cell in cells(name, *sweeps)
        if cell.label != TOO_LARGE
    }
    return {key: reason for key, reason in reasons.items() if reason}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_record_admits_every_row_of_smoke_and_ragged(name: str) -> None:
    """A new row, or a changed problem or judge: `python -m runner admit`, see problems/README.md."""
    assert unsettled(name, "smoke") == {}
    assert "missing" not in unsettled(name, "ragged").values()


@pytest.mark.parametrize("sweep", ["ragged", "waves", "layers", "kernelbench"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_record_of_larger_rows(name: str, sweep: str) -> None:
    """A change to the judge must not wait for a GPU: what is missing or stale is listed by `pytest -rx`."""
    counts = Counter(unsettled(name, sweep).values())
    if counts:
        why = ", ".join(f"{count} of {len(cells(name, sweep))} cells: {why}" for why, count in counts.items())
        pytest.xfail(f"{why} (python -m runner admit --problem {name} --shapes {sweep} -o ...)")


@pytest.mark.parametrize("module", admit.JUDGES)
def test_what_a_judge_computes_is_in_its_digest(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    def edited(old: str, new: str) -> str:
        def read(path: Path) -> str:
            text = load.read_source(path)
            assert old in text
            return text.replace(old, new, 1) if path.stem == module else text

        monkeypatch.setattr(admit, "read_source", read)
        return admit.judge_digest.__wrapped__()

    before = admit.judge_digest()
    assert edited("import torch\n", "import torch  # as it was\n") == before
    assert edited('"""', '"""Said otherwise: ') == before
    assert edited("import torch\n", "import torch\n\n\n# a comment\n") == before
    assert edited("import torch\n", "import torch\nX = '# no comment'\n") != before
    assert edited("return ", "return 2 * ") != before


def test_a_line_is_stale_once_problem_or_judge_have_changed() -> None:
    problem = load.find_problem("conv1d")
    fresh = Kept.of(replace(made(), problem_digest=admit.problem_digest(problem)))
    assert fresh.stale(problem) == ""
    assert replace(fresh, judge_digest="another").stale(problem) == "the judge has changed"
    source = problem.source.replace('"""', '"""Said otherwise: ', 1)
    assert fresh.stale(replace(problem, source=source)) == ""
    source = problem.source.replace("bias", "no_bias", 1)
    assert fresh.stale(replace(problem, source=source)) == "the problem has changed"


def test_a_cell_is_left_until_a_line_of_these_files_admits_it(tmp_path: Path) -> None:
    problem, path = load.find_problem("conv1d"), tmp_path / "conv1d.jsonl"
    digests = {"problem_digest": admit.problem_digest(problem), "judge_digest": admit.judge_digest()}
    of = {label: made(label, **digests) for label in ("padded", "odd", "wrong", "old", "other", "not-run")}
    planned = [one.cell for one in of.values()]
    assert admit.left(path, problem, planned) == tuple(planned)
    admit.keep(
        path,
        [
            of["padded"],
            of["odd"],
            replace(of["wrong"], accepted=("zeros",)),
            replace(of["old"], judge_digest="another"),
            replace(of["other"], problem="conv2d"),
            replace(of["not-run"], unsupported="too large"),
        ],
    )
    assert [cell.label for cell in admit.left(path, problem, planned)] == ["wrong", "old", "other", "not-run"]


def small(label: str = "groups") -> admit.Admission:
    return admission.admit(load.find_problem("conv2d"), cells("conv2d", f"smoke/{label}")[0], CPU)


def test_a_judge_that_accepts_everything_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "compare", lambda *_: None)
    monkeypatch.setattr(check, "form", lambda *_: "")
    found = small()
    assert not found.admitted
    assert found.refused == ()
    assert {"zeros", "conv2d.bias ignored", "tap [0, 0] of conv2d.weight dropped", "one NaN"} <= {
        *found.accepted
    }
    assert found.noticed[0] == 0


def test_a_judge_that_refuses_everything_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "form", lambda *_: "no")
    found = small()
    assert not found.admitted
    assert found.accepted == ()
    assert found.honest == 0
    assert set(found.slandered.values()) == {"no"}


def test_a_weaker_budget_lets_fakes_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for factor in ("NORMWISE_FACTOR", "ELEMENTWISE_FACTOR"):
        monkeypatch.setattr(check, factor, 64 * getattr(check, factor))
    accepted = small().accepted
    assert {"scaled by 1 + eps", "operands in bf16"} <= {*accepted}
    assert "zeros" not in accepted


def test_what_is_not_there_to_get_wrong_is_named() -> None:
    found = small("two-tiles")
    assert "conv2d.bias ignored" in found.not_applicable["the layer has none"]
    assert "inputs of another group" in found.not_applicable["one group"]
    assert "samples shifted by one" in found.not_applicable["axis 0 has one element"]


SOLVED_BY_A_CONSTANT = """
import torch
from torch import nn

class Model(nn.Module):
    def forward(self, x):
        return torch.relu(x.mean(1, keepdim=True) - x.amax(1, keepdim=True))

def get_inputs():
    return [torch.rand(4, 8)]

def get_init_inputs():
    return []
"""
LINEAR = SOLVED_BY_A_CONSTANT.replace(
    "torch.relu(x.mean(1, keepdim=True) - x.amax(1, keepdim=True))", "x * 2 - 1"
)


@pytest.mark.parametrize(
    ("source", "accepted"), [(SOLVED_BY_A_CONSTANT, {"zeros", "input ignored"}), (LINEAR, set())]
)
def test_a_problem_that_a_constant_solves_is_not_admitted(
    tmp_path: Path, source: str, accepted: set[str]
) -> None:
    path = tmp_path / "foreign.py"
    path.write_text(source)
    problem = load.find_problem(str(path))
    (cell,) = plan.plan_cells(problem, (), ("fp32",), ("fp32",), "cpu", 128)
    found = admission.admit(problem, cell, CPU)
    assert accepted <= {*found.accepted}
    assert bool(accepted) != found.admitted


@settings(max_examples=40, database=None)
@given(st.sampled_from(["conv2d", "convtranspose1d", "separable_conv2d"]), st.integers(0, 2**60))
def test_what_matters_is_what_moves_the_answer(name: str, seed: int) -> None:
    """By brute force: an element is left out and the answer compared."""
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    problem = load.find_problem(name)
    shape = problem.hidden_shape(rng)
    assert shape is not None
    case = Case(problem, Cell("test", "test", shape, "fp32", "fp32"), CPU, rng.randbytes(16))
    inputs = [torch.randn(item.shape, generator=case.generator) for item in case.inputs.tensors]
    truth = case.oracle.truth(inputs)
    call = fakes.Asked(case.oracle, inputs, truth, truth, truth)
    for tensor, used in admission._matters(case.oracle, inputs, one=True).items():
        place = tuple(rng.randrange(size) for size in used.shape)
        changed = fake_layers.without(tensor, place)(call)
        assert used[place] == any(not torch.equal(a, b) for a, b in zip(truth, changed, strict=True))


def test_a_fake_leaves_the_model_and_the_truth_alone() -> None:
    problem, cell = load.find_problem("conv2d"), cells("conv2d", "smoke/groups")[0]
    trial = admission.Trial(Case(problem, cell, CPU, bytes(16)))
    call = trial.calls[0]
    truth = [y.clone() for y in call.truth]
    ignorant = fake_layers.ignorant(trial.oracle.exact, trial.matters)
    for _, fake in (*fakes.constant(), *fakes.incomplete(4), *ignorant):
        admission._try(partial(fake, call))
    assert all(map(torch.equal, call.truth, truth))
    assert all(map(torch.equal, call.again(), truth))


def made(label: str = "padded", **changed: Any) -> admit.Admission:
    cell = Cell("smoke", label, {"batch": 1}, "fp32", "tf32")
    digests = {"problem_digest": "", "judge_digest": admit.judge_digest()}
    return admit.Admission(problem="conv1d", cell=cell, device="cpu", torch="2.13.0", **digests | changed)


def test_a_record_keeps_one_line_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "new" / "conv1d.jsonl"
    admit.keep(
        path, [made(), made("odd", refused=("zeros", "ones", "mean")), made("large", unsupported="too large")]
    )
    admit.keep(path, [made("odd", accepted=("zeros",))])
    kept = admit.read(path)
    assert [(one.cell.split("/")[1], one.refused, one.accepted) for one in kept] == [
        ("padded", 0, ()),
        ("odd", 0, ("zeros",)),
    ]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{}\n", "no JSON\n", '{"problem": "conv1d"'])
def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text)
    with pytest.raises(load.BadInput, match="name another file"):
        admit.keep(path, [made()])
    assert path.read_text() == text


def test_failures_stand_first_and_say_why() -> None:
    table = admit.render(
        [
            made(),
            made("odd", accepted=("zeros",)),
            made("prime", slandered={"float64, rounded once": "values: 1 instead of 2"}),
            made("large", unsupported="needs 9 MiB", not_applicable={"no bias": ("bias ignored",)}),
        ],
        "table",
    )
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == [
        "smoke/odd",
        "smoke/prime",
        "smoke/large",
        "smoke/padded",
    ]
    assert "conv1d smoke/odd tf32: wrong, but accepted: zeros" in lines
    assert (
        "conv1d smoke/prime tf32: honest, but refused: float64, rounded once: values: 1 instead of 2" in lines
    )
    assert "conv1d smoke/large tf32: not run: needs 9 MiB" in lines
    assert "not applicable, no bias: bias ignored (1)" in lines
    assert lines[-1] == "1 of 4 cells are admitted"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runner", "admit", "--device", "cpu", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=100)


def test_the_command_judges_and_keeps(tmp_path: Path) -> None:
    path, output = tmp_path / "foreign.py", tmp_path / "kept.jsonl"
    path.write_text(SOLVED_BY_A_CONSTANT)
    said = run(
        "--problem", str(path), "--dtype", "fp32", "--math", "fp32", "--format", "json", "-o", str(output)
    )
    assert said.returncode == 1, said.stderr
    (one,) = json.loads(said.stdout)
    assert one["verdict"] == "NOT ADMITTED"
    assert "zeros" in one["accepted"]
    assert [kept.accepted for kept in admit.read(output)] == [tuple(one["accepted"])]
    said = run("--problem", "conv1d", "--shapes", "smoke/padded", "--dtype", "fp16")
    assert said.returncode == 0, said.stderr
    assert said.stdout.endswith("1 of 1 cells are admitted\n")


def test_the_command_takes_up_where_it_was_left(tmp_path: Path) -> None:
    words = ("--problem", "conv1d", "--dtype", "fp16", "-o", str(tmp_path / "kept.jsonl"))
    assert run(*words, "--shapes", "smoke/padded").returncode == 0
    said = run(*words, "--shapes", "smoke/padded", "--shapes", "smoke/groups")
    assert said.stderr.startswith("1 of 2 cells are on record as admitted\n[1/1] smoke/groups fp16 admitted")
    assert said.stdout.endswith("1 of 1 cells are admitted\n")
    assert len(admit.read(tmp_path / "kept.jsonl")) == 2
    assert run(*words, "--shapes", "smoke/padded").stdout == "no cell is left to be admitted\n"


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("raise RuntimeError('no room')", "RuntimeError: no room"),
        ("os.write(2, b'two\\nlines\\n\\n'); os._exit(3)", "lines"),
        ("os._exit(3)", "exit code 3"),
    ],
)
def test_a_judge_that_dies_is_one_line(tmp_path: Path, ending: str, reason: str) -> None:
    path, output = tmp_path / "foreign.py", tmp_path / "kept.jsonl"
    path.write_text(LINEAR.replace("import torch\n", f"import os\nimport torch\n{ending}\n", 1))
    said = run("--problem", str(path), "--dtype", "fp32", "--math", "fp32", "-o", str(output))
    assert said.returncode == 3
    (line,) = said.stderr.splitlines()[1:]
    assert line.startswith("error: the judge died at kernelbench/foreign fp32: ")
    assert line.endswith(f": {reason}")
    assert said.stdout.endswith("0 of 0 cells are admitted\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--problem", "conv1d", "--shapes", "smok"), "did you mean smoke"),
        (("--problem", "conv1d", "--math", "fp16"), "unknown math 'fp16'"),
        (("--problem", "conv1d", "-o", "/proc/no/such.jsonl"), "cannot write '/proc/no/such.jsonl'"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], complaint: str) -> None:
    said = run(*words)
    assert said.returncode == 2
    assert complaint in said.stderr
    assert said.stderr.count("\n") == 1
    assert said.stdout == ""
