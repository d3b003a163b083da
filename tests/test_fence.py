"""The fence around an answer: what is copied inside the window, and what a late writer cannot hide."""

from __future__ import annotations

import pytest
import torch

from runner.judge import fence as module
from runner.judge.fence import Fence


@pytest.fixture(params=["whole", "sampled"])
def sampled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "sampled":
        monkeypatch.setattr(module, "WHOLE_BYTES", 0)
        monkeypatch.setattr(module, "FENCE_BYTES", 4096)
    return bool(request.param == "sampled")


def outputs() -> list[torch.Tensor]:
    # 33 floats: no multiple of a line, so that the rest at the end is there
    return [torch.rand(64, 33), torch.rand(7, 5, 3).half()]


def test_a_fence_keeps_what_was_there(sampled: bool) -> None:
    views, snapshots = outputs(), []
    fence = Fence(views, snapshots)
    assert (fence.step > 1) == sampled
    for _ in range(20):  # every offset of the sampled lines
        for view in views:
            view.normal_()
        fence.close()
        assert fence.holds()
        assert all(torch.equal(kept, view) for kept, view in zip(snapshots, views, strict=True))


def test_what_is_written_after_a_whole_copy_is_not_in_it() -> None:
    views, snapshots = outputs(), []
    before = [view.clone() for view in views]
    fence = Fence(views, snapshots)
    fence.close()
    views[0].zero_()
    assert fence.holds()
    assert all(torch.equal(kept, old) for kept, old in zip(snapshots, before, strict=True))


def test_an_output_written_after_the_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    monkeypatch.setattr(module, "FENCE_BYTES", 4096)
    views = [torch.rand(1024, 32)]  # 1024 lines, of which 32 are taken
    fence = Fence(views, [])
    missed = 0
    for _ in range(200):
        views[0].normal_()
        fence.close()
        late = torch.randperm(1024)[:512]
        views[0][late] = 0.0
        missed += fence.holds()
    # each pass has a chance of 2 ** -32
    assert missed == 0


def test_outputs_of_another_shape_get_rooms_of_their_own() -> None:
    snapshots: list[torch.Tensor] = []
    Fence(outputs(), snapshots)
    first = list(snapshots)
    Fence([torch.rand(64, 33), torch.rand(4)], snapshots)
    assert snapshots[0] is first[0]
    assert snapshots[1].shape == (4,)


def test_a_fence_around_another_layout_leaves_an_earlier_one_its_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runner.judge.fence.WHOLE_BYTES", 64)
    monkeypatch.setattr("runner.judge.fence.FENCE_BYTES", 256)
    view, snapshots = torch.rand(16, 64), list[torch.Tensor]()
    fence = Fence([view], snapshots)
    Fence([torch.rand(64, 16).T], snapshots)
    assert fence.step > 1
    fence.close()
    assert fence.holds()
    assert torch.equal(snapshots[0], view)


def test_a_transposed_output_is_copied_whole_in_its_own_order(sampled: bool) -> None:
    del sampled
    view = torch.rand(16, 24).T
    snapshots: list[torch.Tensor] = []
    fence = Fence([view], snapshots)
    fence.close()
    assert fence.step == 1
    assert fence.holds()
    assert snapshots[0].stride() == view.stride()
    assert torch.equal(snapshots[0], view)
