"""What a contestant says of its launches and kernels is held against what is possible."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.channel import BadFrame, Call, Frame, Kind, parse
from runner.contestant import asides, build
from runner.contestant.sandbox import OPEN_FILES
from runner.judge import __main__ as judge
from runner.judge.contestants import _require_plausible, _require_possible

LAUNCH = (50880, 1, 1, 4, 128, 0, 26624)
KERNEL = (2, 363000, 50880, 1, 1, 128, 128, 26624)


def launch(payload: bytes = b"") -> Frame:
    return parse(Frame(Kind.LAUNCH, args=LAUNCH, payload=payload, text="kernel").pack())


def kernel(code: int = 0, payload: bytes = b"cudnn", **changed: int) -> Frame:
    names = ("launches", "time_ns", "x", "y", "z", "threads", "registers", "shared_bytes")
    args = tuple({**dict(zip(names, KERNEL, strict=True)), **changed}.values())
    return parse(Frame(Kind.KERNEL, code=code, args=args, payload=payload, text="kernel").pack())


@pytest.mark.parametrize("payload", [b"", b"tf32", b"fp32,tf32"])
def test_a_launch_in_known_classes_is_taken(payload: bytes) -> None:
    _require_possible(launch(payload))


@pytest.mark.parametrize("payload", [b"fp33", b"tf32,fp32", b"\xff" * 64])
def test_a_launch_in_other_classes_is_refused(payload: bytes) -> None:
    with pytest.raises(BadFrame, match="a launch in classes"):
        _require_possible(launch(payload))


@pytest.mark.parametrize("payload", [b"", b"triton", b"cudnn"])
def test_a_kernel_is_taken_with_and_without_a_library(payload: bytes) -> None:
    _require_plausible(kernel(payload=payload))
    _require_plausible(kernel(code=1, launches=0))


@pytest.mark.parametrize(
    "changed", [{"launches": 0}, {"time_ns": -1}, {"z": -1}, {"shared_bytes": -(2**63)}], ids=str
)
def test_an_impossible_kernel_is_refused(changed: dict[str, int]) -> None:
    with pytest.raises(BadFrame, match="no trace"):
        _require_plausible(kernel(**changed))


@pytest.mark.parametrize("payload", [b"<b>", b"cu dnn", b"\xff", b"a\0b"])
def test_a_librarys_name_is_a_word(payload: bytes) -> None:
    with pytest.raises(BadFrame, match="no trace"):
        _require_plausible(kernel(payload=payload))


def test_a_time_beside_has_the_last_outputs_room_and_none_without_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = [torch.zeros(1)]

    def steady(forward: object, slots: list[list[object]]) -> int:
        del forward
        assert not held
        if len(slots) > 1:
            raise torch.OutOfMemoryError
        return 7

    monkeypatch.setitem(asides.ASIDES, Call.STEADY, steady)
    assert asides.measure(Call.STEADY, torch.relu, [[]], held) == 7
    assert asides.measure(Call.STEADY, torch.relu, [[], []], held) == -1


def test_the_judge_may_send_what_contestants_have_no_room_for() -> None:
    """Descriptors in flight are counted over a user's processes, against the limit of whoever sends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
        judge._raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] in (64 * OPEN_FILES, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_error_is_told_with_the_line_of_its_cause(tmp_path: Path) -> None:
    """Triton's interpreter raises at the launch what a line of the kernel raised."""
    file = tmp_path / "solution.py"
    file.write_text("def kernel():\n    raise ValueError('odd')\n")
    inner: dict[str, Any] = {}
    exec(compile(file.read_text(), file, "exec"), inner)  # noqa: S102 - a foreign file

    def launch() -> None:
        try:
            inner["kernel"]()
        except ValueError as error:
            raise RuntimeError("launch") from error

    with pytest.raises(RuntimeError) as caught:
        launch()
    assert build.story(caught.value) == "RuntimeError: launch (line 2: raise ValueError('odd'))"
