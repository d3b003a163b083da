"""The probe finds the holes where there is no sandbox, and none inside; the judge believes nothing less."""

from __future__ import annotations

import json
import os
import tempfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runner import channel
from runner.channel import _LAYOUT, FRAME_BYTES
from runner.contestant import landlock, libc, probe, sandbox, seccomp
from runner.contestant.zygote import Zygote
from runner.judge.contestants import Contestant
from runner.judge.zygotes import Zygotes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: What may be closed to a user without a sandbox, too, by privileges or by the kernel's settings.
OFTEN_CLOSED = {
    *("make a device", "change the kernel", "open its memory", "trace it", "read its memory"),
    *("load a program", "count events", "queue calls", "handle faults", "leave its namespace"),
}
FILES = {"write beside its folder", "write the checkout", "change the runner", "read the accounts"}
CALLS = {"limit it", "hold it", "use keys", "queue calls", "disown its orphans", "start a sibling"}


def in_child(work: Callable[[], object]) -> Any:
    """Run `work` in a fork and return its answer, which travels as JSON."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said)


@pytest.fixture
def scene(tmp_path: Path) -> probe.Scene:
    (tmp_path / "scratch").mkdir()
    return probe.Scene(tmp_path / "scratch", os.getpid())


def confined(scene: probe.Scene) -> list[str]:
    sandbox.enter(scene.scratch, device="cpu")
    return probe.holes(scene)


def test_without_a_sandbox_the_holes_are_found(scene: probe.Scene) -> None:
    found = set(in_child(lambda: probe.holes(scene)))
    assert found >= probe.ATTEMPTS.keys() - OFTEN_CLOSED
    assert not list(scene.scratch.parent.glob("*-probe"))


def test_inside_nothing_gets_through(scene: probe.Scene) -> None:
    assert in_child(lambda: confined(scene)) == []


def refuse(*_: object) -> None:
    raise OSError(0, "not on this kernel")


@pytest.mark.parametrize(
    ("module", "function", "open_then"),
    [(landlock, "restrict", FILES), (seccomp, "install", CALLS)],
    ids=["landlock", "seccomp"],
)
def test_a_missing_layer_is_seen(
    scene: probe.Scene, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, open_then: set[str]
) -> None:
    monkeypatch.setattr(module, function, refuse)
    found = set(in_child(lambda: confined(scene)))
    assert found >= open_then - OFTEN_CLOSED
    assert found < probe.ATTEMPTS.keys()


def test_only_a_refusal_closes_a_hole(scene: probe.Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> Callable[[probe.Scene], object]:
        def attempt(_: probe.Scene) -> None:
            raise OSError(number, os.strerror(number))

        return attempt

    attempts = {os.strerror(number): fail(number) for number in (1, 2, 13, 14, 22, 111)}
    monkeypatch.setattr(probe, "ATTEMPTS", attempts)
    assert probe.holes(scene) == ["Bad address", "Invalid argument", "Connection refused"]


def test_all_holes_fit_into_a_frame() -> None:
    room = FRAME_BYTES - (_LAYOUT.size - 872)
    assert len(", ".join(probe.ATTEMPTS)) <= room
    assert not any(", " in name for name in probe.ATTEMPTS)


@pytest.fixture(scope="module")
def zygotes() -> Iterator[Zygotes]:
    """Start a fork server for contestants of this process, which closes its own entries as a judge does."""
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    server = Zygotes("cpu")
    yield server
    server.close()
    libc.prctl(libc.PR_SET_DUMPABLE, 1)


def isolation_of(zygotes: Zygotes) -> dict[str, Any]:
    contestant = Contestant(zygotes, 2**30)
    contestant.close()
    return contestant.isolation


def test_the_level_is_full_where_all_layers_are_on_and_nothing_gets_through(zygotes: Zygotes) -> None:
    isolation = isolation_of(zygotes)
    assert zygotes.holes() == ()
    # the kernel or a container may lack a layer, a user namespace say
    assert isolation["level"] == ("partial" if isolation["missing"] else "full")


def test_a_hole_makes_the_level_partial_and_is_named(
    zygotes: Zygotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygotes, "_holes", ("signal it", "trace it"))
    isolation = isolation_of(zygotes)
    assert isolation["level"] == "partial"
    assert isolation["missing"][-2:] == ["probe: signal it", "probe: trace it"]


def test_a_probe_that_does_not_answer_proves_nothing(
    zygotes: Zygotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygotes, "_holes", None)
    monkeypatch.setattr(zygotes, "fork", lambda *_: (-1, -1))
    monkeypatch.setattr("runner.judge.zygotes._PROBE_S", 0.1)
    assert zygotes.holes() == ("no answer (EOFError)",)


def test_a_probe_runs_once_for_each_fork_server(zygotes: Zygotes) -> None:
    isolation_of(zygotes)
    forks = zygotes._next
    isolation_of(zygotes)
    assert zygotes._next == forks + 1


def test_a_new_fork_server_is_probed_anew(zygotes: Zygotes) -> None:
    zygotes.holes()
    assert zygotes._process is not None
    zygotes._process.kill()
    zygotes._process.wait()
    before = zygotes._next
    isolation_of(zygotes)
    assert zygotes._next == before + 2


def test_a_fork_server_that_is_dying_is_replaced(zygotes: Zygotes) -> None:
    """Its end of the channel is closed, and its process has not ended yet."""
    zygotes.holes()
    assert zygotes._control is not None
    assert zygotes._process is not None
    before = zygotes._process.pid
    ours, theirs = channel.pair()
    theirs.close()
    control, zygotes._control = zygotes._control, ours
    isolation_of(zygotes)
    control.close()
    assert zygotes._process.pid != before


def test_what_is_ready_of_a_contestant_that_has_just_been_reaped_is_left() -> None:
    """One answer of the selector can name the death of a child and, after it, the child's log."""
    zygote = Zygote.__new__(Zygote)
    zygote.control, zygote.children = 5, {7: SimpleNamespace(pid=7, log=8)}
    zygote.wake, wake_write = os.pipe2(os.O_NONBLOCK)
    control, wake, log = (
        SimpleNamespace(fileobj=fd, fd=fd, data=pid) for fd, pid in ((5, None), (zygote.wake, None), (8, 7))
    )
    batches = iter([[(wake, 1), (log, 1)], [(control, 1)]])
    zygote.selector = SimpleNamespace(select=lambda: next(batches))
    zygote._reap = zygote.children.clear
    zygote._request = lambda: False
    zygote.serve()
    assert next(batches, None) is None
    os.close(zygote.wake)
    os.close(wake_write)


@pytest.mark.parametrize("name", ["zygotes.fork", "Contestant._expect"])
def test_a_contestant_that_does_not_start_leaves_nothing(
    zygotes: Zygotes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    zygotes.holes()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    owner = zygotes if name.startswith("zygotes") else Contestant

    def fail(*_: object) -> None:
        raise RuntimeError("no answer")

    monkeypatch.setattr(owner, name.partition(".")[2], fail)
    with pytest.raises(RuntimeError, match="no answer"):
        Contestant(zygotes, 2**30)
    assert list(tmp_path.iterdir()) == []
