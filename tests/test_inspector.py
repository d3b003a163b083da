"""How often what is timed is checked, where samples are independent and where nobody knows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from runner.judge import inspector
from runner.judge.bench import Bench
from runner.judge.contestants import Foul
from runner.schema import Status

WINDOWS = 4000


def inspected(
    monkeypatch: pytest.MonkeyPatch, *, sliced: bool, check_s: float = 0.0
) -> list[tuple[int | None, bool]]:
    """Look at many windows; the sample of each check, None for all, a check taking so long."""
    held: list[Any] = []
    now_s = [0.0]

    def hold(*given: object) -> None:
        held.append(given[-1])
        now_s[0] += check_s

    monkeypatch.setattr(inspector.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(inspector.Inspector, "hold", hold)
    found = made(sliced=sliced)
    for _ in range(WINDOWS):
        found.inspect(4)
    assert found.checked == len(held)
    return held


def made(*, sliced: bool) -> inspector.Inspector:
    reached = [torch.ones((), dtype=torch.bool)] if sliced else None
    case = SimpleNamespace(reached=reached, expected=[torch.empty(8, 3)], device=torch.device("cpu"))
    return inspector.Inspector(cast("Bench", SimpleNamespace(case=case)), "solution")


def test_each_window_is_checked_by_a_sample_and_one_in_sixteen_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = inspected(monkeypatch, sliced=True)
    assert len(held) == WINDOWS
    assert held[0] is None
    assert {sample for sample in held if sample is not None} == set(range(8))
    assert WINDOWS / 24 < held.count(None) < WINDOWS / 11  # over six standard deviations to either side


@pytest.mark.parametrize(("check_s", "share"), [(0.01, 1 / 2), (1.0, 1 / 16)])
def test_where_there_are_no_slices_every_second_is_checked_unless_that_takes_long(
    check_s: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = inspected(monkeypatch, sliced=False, check_s=check_s)
    assert set(held) == {None}
    assert 0.7 * share < len(held) / WINDOWS < 1.45 * share


def test_a_check_without_room_is_told_and_the_last_one_has_to_find_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hold(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(inspector.Inspector, "hold", hold)
    found = made(sliced=False)
    found.inspect(1)
    assert (found.cramped, found.checked) == (True, 0)
    with pytest.raises(torch.OutOfMemoryError):
        found.inspect(1, thorough=True)


def test_a_wrong_answer_is_a_foul_however_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(*_: object) -> None:
        raise Foul(Status.WRONG, "check", "values")

    monkeypatch.setattr(inspector.Inspector, "hold", hold)
    with pytest.raises(Foul, match="values"):
        made(sliced=False).inspect(1)
