"""A GPU that is lost in the middle of a sweep costs one cell; the rest waits where it stays away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from runner import cli, load, pipeline, selftest
from runner.commands import exits
from runner.judge import __main__ as judge
from runner.judge.bench import Limits
from runner.judge.referee import Referee, Ruling
from runner.judge_process import Judge, JudgeDied
from runner.schema import Cell, Failed, Status, to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import CommandLine

CELLS = 6
SWEEP = ("--shapes", "smoke", "--dtype", "fp32", "--math", "tf32")
WHAT = ("--problem", "convtranspose2d", "--solution", "phase_gemm", *SWEEP)
LOST = {"status": "ERROR", "stage": "judge", "reason": "the GPU is lost: gone", "detail": ""}

#: Started with every interpreter: in a judge, an index out of range takes the context away once the file
#: TAKE is there, and as long as GONE is there a new judge sees no GPU.
TAKER = """\
import os, sys, threading, time
from pathlib import Path

FOLDER = Path(__file__).parent

def take():
    while not (FOLDER / "TAKE").exists():
        time.sleep(0.01)
    (FOLDER / "TAKE").unlink()
    import torch
    try:
        torch.zeros(1, device="cuda")[torch.tensor([1 << 30], device="cuda")].cpu()
    except RuntimeError:
        pass

if "runner.judge" in sys.orig_argv:
    if (FOLDER / "GONE").exists():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    threading.Thread(target=take, daemon=True).start()
"""


class Losing(Judge):
    """A judge on the CPU that says of its second cell that the GPU is lost, and then ends."""

    started, asked = 0, 0
    comes_back = True
    uuids = ("", "")

    def __init__(self, device: str) -> None:
        if Losing.started and not Losing.comes_back:
            raise JudgeDied("the judge ended with code 1")
        super().__init__(device)
        self.environment["uuid"] = Losing.uuids[min(Losing.started, 1)]
        Losing.started += 1

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = super().ask(request)
        Losing.asked += 1
        return answer | {"ruling": {"failed": LOST}, "lost": "gone"} if Losing.asked == 2 else answer


def die(*_: object) -> dict[str, Any]:
    """Stand in for `ask`."""
    raise JudgeDied("the judge ended with code -9")


@pytest.fixture(autouse=True)
def losing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "Judge", Losing)
    Losing.started = Losing.asked = 0
    Losing.comes_back = True


def run(folder: Path) -> tuple[int, Counter[str]]:
    code = cli.main([*WHAT, "--device", "cpu", "--results", str(folder)])
    lines = (folder / "cpu" / "convtranspose2d" / "phase_gemm.jsonl").read_text().splitlines()
    return code, Counter(json.loads(line)["status"] for line in lines)


def test_the_next_cell_asks_a_judge_with_a_context_of_its_own(tmp_path: Path) -> None:
    assert run(tmp_path) == (exits.EXIT_HARNESS, {"PASS": CELLS - 1, "ERROR": 1})
    assert Losing.started == 2
    assert run(tmp_path) == (exits.EXIT_DONE, {"PASS": CELLS, "ERROR": 1})


def test_a_gpu_that_stays_away_ends_the_run_and_what_was_recorded_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Losing.comes_back = False
    assert run(tmp_path) == (exits.EXIT_HARNESS, {"PASS": 1, "ERROR": 1})
    assert capsys.readouterr().err.endswith(
        "error: the judge does not start on cpu: the judge ended with code 1\n"
    )


def test_every_error_of_a_judge_that_dies_again_and_again_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Losing, "ask", die)
    assert run(tmp_path) == (exits.EXIT_HARNESS, {"ERROR": 3})
    assert capsys.readouterr().err.endswith(
        "error: the judge died 3 times in a row: the judge ended with code -9\n"
    )


def test_a_cell_that_no_judge_was_asked_about_is_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Losing, "ask", die)
    other = tmp_path / "other.py"
    other.write_text('DTYPES = ("fp16",)\n\n\nclass ModelNew: ...\n')
    found: Counter[str] = Counter()
    results = tmp_path / "results"
    code = cli.main([*WHAT, "--solution", str(other), "--device", "cpu", "--results", str(results)])
    for file in results.glob("cpu/*/*.jsonl"):
        found.update(json.loads(line)["status"] for line in file.read_text().splitlines())
    assert code == exits.EXIT_HARNESS
    assert found == {"ERROR": 3, "NOT_COVERED": found["NOT_COVERED"]}
    assert found["NOT_COVERED"] >= 2


@pytest.mark.parametrize("start", [Judge, lambda device: list(selftest.run(device, ()))])
def test_a_device_that_cannot_be_used_is_told_in_a_line(
    start: Callable[[str], object], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(JudgeDied, match=r"CUDA|NVIDIA|Invalid device"):
        start("cuda:99")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize("why", ["gone", ""])
def test_nothing_found_without_a_gpu_counts(
    passed: bool, why: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A right answer without times may have lost its baselines to the same cause."""
    found = Ruling(None if passed else Failed(Status.CRASH, "call", "an error of CUDA", "its story"))
    monkeypatch.setattr(Referee, "rule", lambda *_: found)
    monkeypatch.setattr(judge, "_lost", lambda _: why)
    referee = Referee("cpu", Limits())
    request.addfinalizer(referee.close)
    problem = load.find_problem("convtranspose2d")
    solution = load.find_solution("phase_gemm", problem.name)
    cell = Cell("smoke", "sparse", problem.sweeps(128)["smoke"]["sparse"], "fp32", "tf32")
    told = {"name": solution.name, "path": str(solution.path), "source": solution.source}
    asked = {"problem": str(problem.path), "name": problem.name, "solution": told, "cell": to_json(cell)}
    answer = judge.answer(referee, asked | {"baselines": (), "limits": {}})
    failed = answer["ruling"]["failed"]
    assert answer["lost"] == why
    if why:
        assert (failed["status"], failed["reason"]) == ("ERROR", "the GPU is lost: gone")
        assert failed["detail"] == ("" if passed else "its story")
    else:
        assert failed == (None if passed else to_json(found.failed))


@pytest.mark.parametrize("uuids", [("a", "a"), ("a", "b")])
def test_a_new_judge_must_have_the_gpu_of_the_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uuids: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Losing, "uuids", uuids)
    code, found = run(tmp_path)
    assert code == exits.EXIT_HARNESS
    assert (found["PASS"] == CELLS - 1) == (len(set(uuids)) == 1)
    said = "error: cpu is another GPU since one was lost: run again\n"
    assert (said in capsys.readouterr().err) == (len(set(uuids)) == 2)


def test_a_judge_that_dies_in_the_middle_of_its_answer_is_a_judge_that_died() -> None:
    half = [sys.executable, "-c", "print('{\"environment\": {', end='')"]
    one = Judge.__new__(Judge)
    with subprocess.Popen(half, stdout=subprocess.PIPE, text=True) as process:
        one._process = process
        with pytest.raises(JudgeDied, match="the judge ended with code 0"):
            one._read()


def test_a_judge_without_memory_is_the_machines_fault() -> None:
    """No verdict on the solution: what is recorded stays."""

    def rule(*_: object) -> Ruling:
        raise torch.OutOfMemoryError("no room")

    problem = load.find_problem("convtranspose2d")
    solution = load.find_solution("phase_gemm", problem.name)
    shape = dict(problem.sweeps(128)["smoke"]["groups"])
    request = {
        "problem": str(problem.path),
        "name": problem.name,
        "solution": {"name": "phase_gemm", "path": str(solution.path), "source": solution.source},
        "cell": {"sweep": "smoke", "label": "groups", "shape": shape, "dtype": "fp32", "math": "tf32"},
        "baselines": [],
        "limits": {},
    }
    referee = SimpleNamespace(device=torch.device("cpu"), rule=rule, entropy_of=lambda _: "")
    answered = judge.answer(cast("Referee", referee), request)
    assert answered["ruling"]["failed"]["status"] == Status.ERROR
    assert "device memory" in answered["ruling"]["failed"]["reason"]


@pytest.mark.gpu
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_context_that_breaks_under_the_judge(
    comes_back: bool, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = command_line
    (runner.folder / "sitecustomize.py").write_text(TAKER)
    monkeypatch.setenv("PYTHONPATH", f"{runner.folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    options = (*WHAT, "--device", "cuda:0", "--quick", "--baseline", "eager")
    with runner.start(*options) as process:
        runner.wait_for_lines(1)
        if not comes_back:
            (runner.folder / "GONE").touch()
        (runner.folder / "TAKE").touch()
        assert process.wait(120) == exits.EXIT_HARNESS
    runner.require_nothing_left()
    found = Counter(json.loads(line)["status"] for line in runner.lines())
    assert found.pop("ERROR") == 1
    assert found.keys() == {"PASS"}
    assert (found["PASS"] == CELLS - 1) == comes_back
    assert "the GPU is lost: CUDA error: " in runner.said("err")
    assert "Traceback" not in runner.said("err")

    (runner.folder / "GONE").unlink(missing_ok=True)
    assert runner.run(*options) == exits.EXIT_DONE
    assert Counter(json.loads(line)["status"] for line in runner.lines()) == {"PASS": CELLS, "ERROR": 1}
