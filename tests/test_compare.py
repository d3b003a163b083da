"""Two solutions against each other: on a CPU both are checked, and times made up are shown as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runner import analyse, cli, compare
from runner.decode import decode
from runner.schema import Cell, Failed, Samples, Status, Timed

if TYPE_CHECKING:
    from collections.abc import Iterator

CELL = Cell("kernelbench", "81", {}, "fp32", "tf32")
WRONG = """
import torch
from torch import nn


class ModelNew(nn.ConvTranspose2d):
    def forward(self, x):
        return torch.zeros_like(super().forward(x))
"""


def timed(solution_us: float, rival_us: float) -> Timed:
    samples = tuple(
        Samples(name, 1, (us,) * 24, (), 0.0, 0.0, 1.0, "cold")
        for name, us in (("solution", solution_us), ("rival", rival_us))
    )
    return Timed(samples, "rival", 24, 0, 24, 1.0, "claim")


def test_a_row_says_who_is_faster_and_by_how_much() -> None:
    found = compare.row(compare.Duel(CELL, None, timed(100.0, 120.0), ("launch_bound",)))
    assert found["ratio"] == pytest.approx(1.2)
    assert (found["verdict"], found["status"], found["clock"]) == ("FASTER", "PASS", "claim")
    assert found["low"] < 1.2 < found["high"]
    text = compare.table([found], "table")
    assert "1.200 [1.199, 1.201]" in text
    assert "launch_bound" in text
    assert json.loads(compare.table([found], "json"))[0]["other_us"] == 120.0


def test_a_failure_has_a_reason_and_no_times() -> None:
    failed = Failed(Status.WRONG, "check", "B (mine): values")
    found = compare.row(compare.Duel(CELL, failed, None, ()))
    assert found["status"] == "WRONG"
    assert found["reason"] == "B (mine): values"
    assert "time_us" not in found


@pytest.mark.parametrize(("other", "code"), [("phase_gemm", 0), ("zeros.py", 1)])
def test_both_are_checked_without_a_gpu(
    other: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zeros.py").write_text(WRONG)
    name = other if code == 0 else str(tmp_path / other)
    words = ["compare", "gather_gemm", name, "--problem", "convtranspose2d", "--device", "cpu"]
    assert cli.main([*words, "--shapes", "smoke/groups", "--dtype", "fp32", "--math", "tf32"]) == code
    shown = capsys.readouterr().out
    assert ("both are right" in shown) == (code == 0)
    assert ("B (zeros): " in shown) == (code == 1)


def test_a_row_holds_the_samples_that_its_figures_come_from() -> None:
    one, two = timed(100.0, 120.0), timed(100.0, 130.0)
    whole = analyse.together([one, two])
    row = compare.row(compare.Duel(CELL, None, whole, (), {"solution": "a", "other": "b"}))
    (kept,) = json.loads(compare.table([row], "json"))
    assert (kept["solution"], kept["other"]) == ("a", "b")
    assert decode(Cell, kept["cell"]) == CELL
    again = decode(Timed, kept["timed"])
    assert again == whole
    found = analyse.comparison(again, "rival")
    assert (found.speedup, found.low, found.high) == (kept["ratio"], kept["low"], kept["high"])
    assert analyse.median(analyse.times_us(again, "rival")) == kept["other_us"]
    assert kept["processes"] == 2


def test_a_file_has_each_shape_as_soon_as_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.jsonl"
    lines_before = []

    def duels(*_: object) -> Iterator[compare.Duel]:
        for label in ("a", "b"):
            lines_before.append(len(kept.read_text().splitlines()))
            yield compare.Duel(replace(CELL, label=label), None, timed(100.0, 120.0), ())

    monkeypatch.setattr(compare, "compare", duels)
    words = ["compare", "gather_gemm", "phase_gemm", "--problem", "convtranspose2d", "--device", "cpu"]
    assert cli.main([*words, "-o", str(kept)]) == 0
    assert lines_before == [0, 1]
    assert [json.loads(line)["cell"]["label"] for line in kept.read_text().splitlines()] == ["a", "b"]
    assert cli.main([*words, "-o", str(tmp_path)]) == 2  # a folder


def test_a_part_of_a_gpu_wants_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "gather_gemm", "phase_gemm", "--problem", "convtranspose2d", "--device", "cpu"]
    assert cli.main([*words, "--sms", "8"]) == 2
    assert "--sms 8 restricts a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "code", "said"),
    [
        ('DTYPES = ("fp16",)', 0, "NOT_COVERED"),
        ("def broken(:", 1, "BUILD"),
    ],
)
def test_what_needs_no_judge_is_told_of_either(
    header: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(f"{WRONG}\n{header}\n")
    for pair in ((str(tmp_path / "mine.py"), "gather_gemm"), ("gather_gemm", str(tmp_path / "mine.py"))):
        words = ["compare", *pair, "--problem", "convtranspose2d", "--device", "cpu", "--format", "json"]
        assert cli.main([*words, "--shapes", "smoke/groups", "--dtype", "fp32", "--math", "tf32"]) == code
        (row,) = json.loads(capsys.readouterr().out)
        assert row["status"] == said
        assert row["reason"].startswith(f"{'A' if 'mine' in pair[0] else 'B'} (mine): ")


def test_a_problem_at_fault_is_bad_input_here_too(tmp_path: Path) -> None:
    problem = tmp_path / "draws.py"
    problem.write_text(
        "import torch\nclass Model(torch.nn.Module):\n"
        "    def forward(self, x): return torch.rand_like(x)\n"
        "def get_inputs(): return [torch.rand(3)]\ndef get_init_inputs(): return []\n"
    )
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(
            "import torch\nclass ModelNew(torch.nn.Module):\n    def forward(self, x): return x\n"
        )
    words = ["compare", str(tmp_path / "one.py"), str(tmp_path / "two.py"), "--problem", str(problem)]
    assert cli.main([*words, "--device", "cpu"]) == 2
