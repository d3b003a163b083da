"""Where nothing can be forked any more, that is said, and whoever may hold what is missing is let go."""

from __future__ import annotations

import array
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from runner import load
from runner.contestant import zygote
from runner.judge import company
from runner.judge.bench import Limits
from runner.judge.zygotes import NoFork


@pytest.fixture
def served() -> Iterator[tuple[socket.socket, zygote.Zygote]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = zygote.Zygote(theirs, "cpu")
    yield ours, server
    server.selector.close()
    ours.close()
    theirs.close()


def test_a_fork_server_that_cannot_fork_says_so_and_lives(
    served: tuple[socket.socket, zygote.Zygote], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    ours, server = served
    monkeypatch.setattr(os, "fork", refused)
    sent, kept = os.pipe()
    ours.sendmsg(
        [json.dumps({"fork": 3, "scratch": "/nowhere", "probe": None}).encode()],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sent]))],
    )
    before = {one.name for one in Path("/proc/self/fd").iterdir()}
    assert server._request()
    assert {one.name for one in Path("/proc/self/fd").iterdir()} == before
    told = json.loads(ours.recv(4096))
    assert told == {"failed": "no contestant can be forked: Resource temporarily unavailable"}
    assert server.children == {}
    os.close(sent)
    os.close(kept)


class FakeContestant:
    """One that can be forked while no other is alive."""

    alive: ClassVar[set[int]] = set()

    def __init__(self, *_: Any) -> None:
        if self.alive:
            raise NoFork("no contestant can be forked")
        self.alive.add(id(self))
        self.is_orphan = False

    def close(self) -> None:
        self.alive.discard(id(self))


def test_others_are_let_go_where_nothing_can_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(company, "Contestant", FakeContestant)
    made = company.Company("cpu", Limits())
    one, other = (load.Solution(name, Path(name), name) for name in ("one", "other"))
    first = made.contestant(one)
    second = made.contestant(other)
    assert made.contestant(other) is second
    assert FakeContestant.alive == {id(second)}
    assert made.contestant(one) is not first
    FakeContestant.alive.clear()
