"""The trusted process on a CPU: each baseline answers rightly in its seat, and fails at nobody's cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from conftest import wait_until

from runner import analyse, load, measure
from runner.judge import check
from runner.judge.bench import Bench, Limits, NoBaseline
from runner.judge.case import make_room
from runner.judge.company import MAX_CONTESTANTS
from runner.judge.contestants import Foul
from runner.judge.inspector import Inspector
from runner.judge.referee import Referee
from runner.judge.timing import Timing
from runner.schema import Cell, Samples, Status, Timed

if TYPE_CHECKING:
    from collections.abc import Iterator

BASELINES = tuple(load.default_baselines())


@pytest.fixture
def referee() -> Iterator[Referee]:
    made = Referee("cpu", Limits(build_s=60.0, call_s=30.0))
    problem = load.find_problem("convtranspose2d")
    shape = problem.sweeps(128)["smoke"]["groups"]
    cell = Cell("smoke", "groups", shape, "fp32", "tf32")
    assert made.prepare_case(problem, cell, os.urandom(16)) is None
    yield made
    made.close()


def seated(referee: Referee, baselines: tuple[str, ...] = BASELINES) -> Bench:
    bench = Bench(referee._current(), referee.limits)
    trusted = referee.company.trusted(referee._current(), baselines)
    for seat, name in enumerate(baselines):
        bench.join(name, trusted, seat)
    bench.seated[trusted.identity] = -1
    return bench


def test_every_baseline_answers_in_any_order_and_again_after_a_release(referee: Referee) -> None:
    bench = seated(referee)
    tally = check.Tally()
    for name in (*BASELINES, *reversed(BASELINES), *BASELINES[:2]):
        bench.fresh(1)
        window = bench.sample(name, 1)
        assert window.window_us > window.claim_us > 0
        assert bench.null(name, 1).window_us > 0
        Inspector(bench, name).hold(tally)
    first = referee.company._trusted
    referee.company.release_trusted()
    again = seated(referee)
    again.fresh(1)
    again.sample(BASELINES[-1], 1)
    Inspector(again, BASELINES[-1]).hold(tally)
    assert referee.company._trusted is first
    assert not tally.wrong


def test_a_dead_baseline_is_nobodys_foul(referee: Referee) -> None:
    bench = seated(referee, ("eager",))
    bench.fresh(1)
    bench.sample("eager", 1)
    os.kill(bench.seats["eager"][0].pid, 9)
    with pytest.raises(NoBaseline, match="SIGKILL"):
        bench.sample("eager", 1)
    solution = load.find_solution("gather_gemm", "convtranspose2d")
    _, inspector = referee._check(solution)
    flags: list[str] = []
    timing = Timing(referee.company, referee._current(), referee.enter, flags)
    assert timing.time(inspector, solution, ("eager",)) is None
    assert flags
    assert flags[0].startswith("no_baseline: eager: ended by SIGKILL")
    assert referee.company._trusted is None
    again = seated(referee)
    again.fresh(1)
    again.sample("eager", 1)


def test_a_baseline_that_fails_is_a_gap(referee: Referee, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on while one of them may lead; a failure before any variant ends it all."""
    asked: list[tuple[str, ...]] = []

    def rounds(_: Timing, __: object, baselines: tuple[str, ...], ___: str = "") -> Timed:
        asked.append(baselines)
        if "compile" in baselines:
            raise NoBaseline(Foul(Status.CRASH, "call", "RuntimeError: no compiler"), "compile")
        raise NoBaseline(Foul(Status.OOM, "build", "no memory"))

    monkeypatch.setattr(Timing, "_rounds", rounds)
    solution = load.find_solution("gather_gemm", "convtranspose2d")
    inspector, _ = referee.enter(solution)
    flags: list[str] = []
    timing = Timing(referee.company, referee._current(), referee.enter, flags)
    assert timing.time(inspector, solution, ("eager", "compile")) is None
    assert asked == [("eager", "compile"), ("eager",)]
    assert flags == ["no_baseline: compile: RuntimeError: no compiler", "no_baseline: no memory"]


def test_the_trusted_process_is_built_for_the_baselines_asked_for(referee: Referee) -> None:
    company, case = referee.company, referee._current()
    all_of_them = company.trusted(case, BASELINES)
    assert company.trusted(case, BASELINES) is all_of_them
    assert company.pids == [all_of_them.pid]
    bench = seated(referee, ("cudnn",))
    bench.fresh(1)
    assert bench.sample("cudnn", 1).claim_us > 0


def test_a_busy_device_is_a_flag(referee: Referee, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise measure.Disturbed("the device is not idle")

    monkeypatch.setattr(Timing, "_rounds", busy)
    solution = load.find_solution("gather_gemm", "convtranspose2d")
    inspector, _ = referee.enter(solution)
    flags: list[str] = []
    timing = Timing(referee.company, referee._current(), referee.enter, flags)
    assert timing.time(inspector, solution, BASELINES) is None
    assert flags == ["disturbed: the device is not idle"]


def test_a_check_on_a_busy_device_says_whose_work_it_may_be(
    referee: Referee, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise measure.Disturbed("the device is not idle")

    monkeypatch.setattr(Bench, "_call", busy)
    with pytest.raises(Foul, match="of this solution goes on, or of another process") as raised:
        referee._check(load.find_solution("gather_gemm", "convtranspose2d"))
    assert raised.value.status == Status.TIMEOUT


def test_the_same_entropy_draws_the_same_values_again(referee: Referee) -> None:
    case = referee._current()
    block = torch.empty(case.inputs.size, dtype=torch.uint8)
    drawn = []
    for entropy in (b"a" * 16, b"a" * 16, b"b" * 16):
        case.begin(entropy)
        case.draw_own(block)
        own = block.clone()
        case.draw(1, block)
        drawn.append((own, block.clone()))
    assert all(torch.equal(x, y) for x, y in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(drawn[0], drawn[2], strict=True))


def test_a_record_names_the_entropy_of_parameters_and_inputs(referee: Referee) -> None:
    case = referee._current()
    assert referee.entropy_of(b"x" * 16) == (case.entropy + b"x" * 16).hex()


def test_the_contestant_that_was_used_longest_ago_makes_room(referee: Referee) -> None:
    texts = [load.Solution("x", Path("x.py"), f"# {number}") for number in range(MAX_CONTESTANTS + 1)]
    first = [referee.company.contestant(text) for text in texts[:-1]]
    assert referee.company.contestant(texts[0]) is first[0]
    referee.company.contestant(texts[-1])
    left = [key.split()[1] for key in referee.company._contestants]
    assert left == [text.digest for text in (*texts[2:-1], texts[0], texts[-1])]
    with pytest.raises(ProcessLookupError):
        os.kill(first[1].pid, 0)


def test_what_outlived_its_fork_server_is_forked_anew() -> None:
    problem = load.find_problem("convtranspose2d")
    cell = Cell("smoke", "groups", problem.sweeps(128)["smoke"]["groups"], "fp32", "tf32")
    first, second = (load.find_solution(name, "convtranspose2d") for name in ("gather_gemm", "phase_gemm"))
    referee = Referee("cpu", Limits(build_s=60.0, call_s=30.0))
    try:
        for solution in (first, second):
            assert referee.rule(problem, solution, cell, (), os.urandom(16)).failed is None
        server = referee.company.zygotes._process
        assert server is not None
        server.kill()
        server.wait()
        with pytest.raises(RuntimeError, match="the fork server has died"):
            referee.rule(problem, first, cell, (), os.urandom(16))
        for solution in (first, second):
            assert referee.rule(problem, solution, cell, (), os.urandom(16)).failed is None
    finally:
        referee.close()


def test_a_ranked_run_wants_full_isolation() -> None:
    """Without the sandbox, which only the selftest leaves out, a run is judged and not ranked."""
    problem, solution = (
        load.find_problem("convtranspose2d"),
        load.find_solution("phase_gemm", "convtranspose2d"),
    )
    cell = Cell("smoke", "groups", problem.sweeps(128)["smoke"]["groups"], "fp32", "tf32")
    open_referee = Referee("cpu", Limits(build_s=60.0, call_s=30.0), confined=False)
    try:
        plain = open_referee.rule(problem, solution, cell, (), os.urandom(16))
        assert (plain.failed, plain.isolation["level"]) == (None, "none")
        assert plain.output_bytes == 4 * sum(y.numel() for y in open_referee._current().expected) > 0
        open_referee.limits = Limits(build_s=60.0, call_s=30.0, processes=5)
        ranked = open_referee.rule(problem, solution, cell, (), os.urandom(16))
        pair = solution, load.find_solution("gather_gemm", "convtranspose2d")
        compared = open_referee.compare(problem, pair, cell, os.urandom(16))
    finally:
        open_referee.close()
    for refused in (ranked, compared):
        assert refused.failed is not None
        assert refused.failed.status == Status.ERROR
        assert "full isolation" in refused.failed.reason
        assert refused.isolation["level"] == "none"


def test_a_process_that_was_stopped_goes_on_when_it_is_armed(referee: Referee) -> None:
    contestant = referee.company.contestant(load.find_solution("gather_gemm", "convtranspose2d"))

    def state() -> str:
        return Path(f"/proc/{contestant.pid}/stat").read_text().rpartition(")")[2].split()[0]

    contestant.pause()
    wait_until(lambda: state() == "T", "a stop to arrive", 10.0)
    contestant.arm()
    wait_until(lambda: state() != "T", "the process to go on", 10.0)


def test_nothing_is_kept_of_a_trusted_process_that_has_gone(referee: Referee) -> None:
    """Its outputs were mapped; where they lay may be nobody's memory now, or somebody else's."""
    bench = seated(referee)
    bench.fresh(1)
    bench.sample("eager", 1)
    assert bench.places["eager"]
    assert bench.fence.views
    bench.forget_trusted()
    assert (bench.seats, bench.places, bench.fence.views) == ({}, {}, [])


def test_a_ranked_run_that_starts_again_does_so_in_a_new_process(
    referee: Referee, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def runs(_: Timing, inspector: Inspector, __: object, baselines: tuple[str, ...]) -> None:
        pids.append(inspector.bench.seats[measure.SOLUTION][0].pid)
        if "cudnn" in baselines:
            raise NoBaseline(Foul(Status.OOM, "call", "no memory"), "cudnn")

    monkeypatch.setattr(Timing, "_runs", runs)
    solution = load.find_solution("gather_gemm", "convtranspose2d")
    referee.limits = Limits(build_s=60.0, call_s=30.0, processes=5)
    inspector, _ = referee.enter(solution)
    timing = Timing(referee.company, referee._current(), referee.enter, [])
    assert timing.time(inspector, solution, ("eager", "cudnn")) is None
    assert len(set(pids)) == 2


def test_a_duel_of_several_processes_has_new_ones_in_each(
    referee: Referee, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval is then one over processes, as in a ranked run."""
    pids: list[set[int]] = []
    others_us = [120.0, 121.0, 122.0]

    def measured(bench: Bench, variants: tuple[str, ...], *_: object, **__: object) -> Timed:
        pids.append({contestant.pid for contestant, _ in bench.seats.values()})
        times_us = {measure.SOLUTION: 100.0, **dict.fromkeys(variants, others_us[len(pids) - 1])}
        samples = (Samples(v, 1, (us,) * 24, (), 0.0, 0.0, 1.0, "cold") for v, us in times_us.items())
        return Timed(tuple(samples), measure.RIVAL, 24, 0, 0, 1.0, "claim")

    monkeypatch.setattr(measure, "measure", measured)
    pair = tuple(load.find_solution(name, "convtranspose2d") for name in ("gather_gemm", "phase_gemm"))
    referee.limits = Limits(build_s=60.0, call_s=30.0, processes=3)
    _, inspectors = referee.face(pair)
    timed = referee.timing([]).duel(pair, inspectors)
    assert timed is not None
    assert [len(of_run) for of_run in pids] == [3, 3, 3]
    assert len(set.union(*pids)) == 9
    assert (timed.processes, timed.rounds) == (3, 72)
    found = analyse.comparison(timed, measure.RIVAL)
    assert found.speedup == pytest.approx(1.21, rel=1e-3)
    assert found.low < 1.2
    assert found.high > 1.22
    phased = referee._phased(timed)
    assert phased is not None
    assert phased.phases_s.keys() == {"build", "check", "baselines", "cell"}
    assert sum(phased.phases_s.values()) < 2 * phased.phases_s["cell"]


@pytest.mark.parametrize(("free", "device", "emptied"), [(3, "cuda", 1), (6, "cuda", 0), (3, "cpu", 0)])
def test_room_is_made_where_others_may_need_it(
    free: int, device: str, emptied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(None))
    make_room(torch.device(device))
    assert len(calls) == emptied


def test_a_reference_without_room_is_no_fault_of_anybody(
    referee: Referee, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cramped(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("runner.judge.referee.Case", cramped)
    problem = load.find_problem("convtranspose2d")
    cell = Cell("smoke", "one", problem.sweeps(128)["smoke"]["sparse"], "fp32", "fp32")
    failed = referee.prepare_case(problem, cell, bytes(16))
    assert failed is not None
    assert failed.status == Status.UNSUPPORTED
    assert "finds no room on cpu: take one of more memory" in failed.reason
    assert referee.case is None


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_the_last_check_may_have_the_room_of_the_baselines(
    failures: int, referee: Referee, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = seated(referee, ("eager",))
    inspector = Inspector(bench, "eager")
    looked: list[bool] = []

    def inspect(calls: int, *, thorough: bool) -> None:
        assert (calls, thorough) == (1, True)
        looked.append("eager" in bench.seats)
        if len(looked) <= failures:
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(inspector, "inspect", inspect)
    timing = Timing(referee.company, referee._current(), referee.enter, [])
    if failures == 2:
        with pytest.raises(torch.OutOfMemoryError):
            timing._check_last(inspector, 1)
    else:
        timing._check_last(inspector, 1)
    assert looked == [True, False][: failures + 1]
    assert (referee.company._trusted is None) is bool(failures)
