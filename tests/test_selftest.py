"""The selftest's findings as the command line shows them; what it finds needs a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from runner import cli, jsonl, selftest
from runner.gpu_lock import DeviceBusy
from runner.judge.referee import Ruling
from runner.judge.selftest import Clock, Finding, Selftest, reliable_from_us
from runner.judge_process import JudgeDied
from runner.load import BadInput
from runner.schema import PROTOCOL, Failed, Kernel, Samples, Status, Timed

FINDINGS: list[dict[str, Any]] = [
    {"test": "equals", "subject": "b1", "figure": "25.9 us: SD 0.11%", "passed": True},
    {"test": "judge's clock, batched", "subject": "b1", "figure": "bound +2.7%", "passed": None},
    {"test": "known ratio", "subject": "b16 x1.02", "figure": "in 5 of 10 intervals", "passed": False},
]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in the place of the judge's module: it prints a file and ends with its first line's code."""
    script, text = tmp_path / "python", tmp_path / "told"
    script.write_text(f"#!{sys.executable}\nimport sys\ncode, *rest = open({str(text)!r})\n")
    with script.open("a") as file:
        file.write("sys.stdout.writelines(rest)\nsys.exit(int(code))\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return text


def tell(told: Path, findings: list[dict[str, Any]], code: int = 0) -> None:
    told.write_text(f"{code}\n" + "".join(json.dumps(one) + "\n" for one in findings))


def test_findings_come_as_they_are_told(told: Path) -> None:
    tell(told, FINDINGS)
    assert list(selftest.run("cuda:0", [])) == FINDINGS


def test_a_part_that_is_none_is_named_with_the_nearest(told: Path) -> None:
    tell(told, FINDINGS)
    with pytest.raises(BadInput, match=r"'ratio'.*ratios"):
        list(selftest.run("cuda:0", ["ratio"]))


def test_a_busy_gpu_and_a_dead_judge_are_no_findings(told: Path) -> None:
    tell(told, [{"busy": "cuda:0 is in use by process 7: wait"}])
    with pytest.raises(DeviceBusy, match="process 7"):
        list(selftest.run("cuda:0", []))
    tell(told, FINDINGS[:1], code=9)
    with pytest.raises(JudgeDied, match="code 9"):
        list(selftest.run("cuda:0", []))


def test_a_table_has_pass_marks() -> None:
    lines = selftest.table(FINDINGS, "table").splitlines()
    assert [line.split()[-1] for line in lines[2:]] == ["pass", "+2.7%", "FAIL"]
    assert "gpu" not in selftest.table([{**FINDINGS[0], "gpu": "H"}], "table")
    assert json.loads(selftest.table(FINDINGS, "json")) == FINDINGS
    assert selftest.line(FINDINGS[2]) == "known ratio b16 x1.02: in 5 of 10 intervals FAIL"


def test_without_a_gpu_it_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--device", "cpu"]) == 4
    assert "needs a CUDA device" in capsys.readouterr().err


def test_the_latest_findings_of_this_protocol_are_read_whatever_else_a_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "h100_sxm" / selftest.FILE
    path.parent.mkdir()
    now = {"protocol": PROTOCOL, "time_utc": "2026-01-02T03:04:05+00:00"}
    for finding in FINDINGS:
        jsonl.append(path, [finding | now])
    jsonl.append(path, [FINDINGS[0] | now | {"figure": "26.0 us: SD 0.10%"}])
    jsonl.append(path, [FINDINGS[0] | now | {"protocol": PROTOCOL - 1, "subject": "old"}])
    with path.open("ab") as file:
        file.write(b'\xff{"test": 1}\n[]\n')
        file.write(f'{{"test": "a", "subject": "b", "figure": "c", "protocol": {PROTOCOL}}}\n'.encode())
        file.write(b'{"test": "torn", "sub')
    ((title, lines),) = selftest.recorded(tmp_path).items()
    assert title == f"what these numbers are worth on h100_sxm, protocol {PROTOCOL}"
    assert [(line["test"], line["figure"], line[""]) for line in lines] == [
        ("equals", "26.0 us: SD 0.10%", "pass"),
        ("judge's clock, batched", "bound +2.7%", ""),
        ("known ratio", "in 5 of 10 intervals", "FAIL"),
    ]
    assert {line["date"] for line in lines} == {"2026-01-02"}
    with pytest.raises(BadInput, match="cannot write"):
        jsonl.append(tmp_path, [])


def test_the_judges_clock_is_good_from_where_all_longer_calls_are() -> None:
    good, poor = Clock(100.0, 0.01, 0.02), Clock(300.0, 0.03, 0.0)
    assert reliable_from_us([good]) == 100.0
    assert reliable_from_us([good, poor]) is None
    assert reliable_from_us([poor, Clock(900.0, -0.019, 0.001), good]) == 900.0
    assert reliable_from_us([Clock(900.0, 0.0, 0.021)]) is None
    assert reliable_from_us([]) is None


def plans(monkeypatch: pytest.MonkeyPatch, times_us: dict[tuple[str, str], float]) -> list[Finding]:
    """Find the plans of policies that take this long, by who comes first and by policy."""
    tested = Selftest("cpu")
    fresh: list[str] = []

    def rule(_: object, __: object, ___: object, order: tuple[str, ...], ____: bytes) -> Ruling:
        assert fresh.pop() == "process"
        if (order[0], "eager") not in times_us:
            return Ruling(Failed(Status.OOM, "judge", "too little memory"))
        taken = {policy: times_us[order[0], policy] for policy in order}
        samples = (Samples(v, 1, (us,) * 24, (), 0.0, 0.0, 1.0, "cold") for v, us in taken.items())
        kernel = Kernel("wgrad_" + 80 * "x", "cudnn", 1, 1.0, (1, 1, 1), 128, 32, 0)
        kernels = {order[0]: (kernel,)}
        return Ruling(None, timed=Timed(tuple(samples), "cudnn", 24, 0, 0, 1.0, "claim", kernels=kernels))

    monkeypatch.setattr(tested.referee, "rule", rule)
    monkeypatch.setattr(tested.referee.company, "drop_trusted", lambda: fresh.append("process"))
    return list(tested.plans())


def test_a_policy_keeps_its_plan_whoever_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    times_us = {("eager", "eager"): 1624.0, ("eager", "cudnn"): 1211.0}
    times_us |= {("cudnn", "eager"): 1650.0, ("cudnn", "cudnn"): 1624.0}
    eager, tuned = plans(monkeypatch, times_us)
    assert (eager.subject, eager.passed) == ("b16 eager", True)
    assert eager.figure.startswith(
        "1624 us with eager first, 1650 us with cudnn first: 1.59% apart; ran wgrad_x"
    )
    assert eager.figure.endswith("x, then unknown kernels")
    assert len(eager.figure) < 160
    assert (tuned.subject, tuned.passed) == ("b16 cudnn", False)  # it got the plan of whoever was first


def test_plans_that_cannot_be_timed_fail_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = plans(monkeypatch, {("eager", "eager"): 1.0, ("eager", "cudnn"): 1.0})
    assert (found.figure, found.passed) == ("cudnn first: no times: too little memory", False)
