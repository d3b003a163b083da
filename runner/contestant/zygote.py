"""Fork contestants from a process that has torch and triton imported and CUDA untouched.

Started as `python -m runner.contestant.zygote CONTROL_FD DEVICE`. A fork costs milliseconds where a
fresh interpreter with torch costs seconds. The zygote runs no tensor operation (a child forked
after one hangs in OpenMP) and no foreign code; it drains its children's output, kills and reaps.

Control messages are JSON datagrams between trusted processes:
`{"fork": ID, "scratch": PATH, "probe": null}` with the channel and the page beside it, or with the
judge's pid and the channel alone, `{"kill": ID}`;
answers `{"forked": ID, "pid": PID}`, `{"exited": ID, "status": WAIT_STATUS, "log": TAIL}`.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from runner.contestant import libc
from runner.contestant.scratch import clear

MESSAGE_BYTES = 64 * 1024
_LOG_TAIL_BYTES = 4096
_BURIAL_S = 4.0  # for what a contestant leaves behind; CUDA contexts take some of it
#: A last word on the command line: contestants stay outside the sandbox.
UNCONFINED = "unconfined"


@dataclass
class _Child:
    identity: int
    pid: int
    log: int
    tail: bytes = b""


class Zygote:
    """The loop: fork on request, drain logs, reap."""

    def __init__(self, control: socket.socket, device: str) -> None:
        self.control = control
        self.device = device
        self.children: dict[int, _Child] = {}
        self.scratches: list[Path] = []
        self.selector = selectors.DefaultSelector()
        self.selector.register(control, selectors.EVENT_READ)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.wake = wake_read
        self.selector.register(wake_read, selectors.EVENT_READ)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serve until the judge closes the control socket."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.control:
                    if not self._request():
                        return
                elif key.fd == self.wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.wake, 4096)
                    self._reap()
                elif child := self.children.get(key.data):  # it may have been reaped since this was ready
                    self._drain(child)

    def _request(self) -> bool:
        try:
            data, ancillary, _, _ = self.control.recvmsg(MESSAGE_BYTES, socket.CMSG_SPACE(4 * 4))
        except ConnectionResetError:
            return False
        if not data:
            return False
        fds = array.array("i")
        for _, _, raw in ancillary:
            fds.frombytes(raw)
        message = json.loads(data)
        if "fork" in message:
            self._fork(message["fork"], Path(message["scratch"]), list(fds), message["probe"])
        else:
            self._kill(message["kill"])
        return True

    def _fork(self, identity: int, scratch: Path, fds: list[int], probed: int | None) -> None:
        log_read, log_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(log_read, False)
        try:
            self.selector.register(log_read, selectors.EVENT_READ)
            pid = os.fork()
        except OSError as error:  # others may hold all threads, or all watches, that this user can have
            with contextlib.suppress(KeyError):
                self.selector.unregister(log_read)
            for fd in (*fds, log_read, log_write):
                os.close(fd)
            self._tell({"failed": f"no contestant can be forked: {error.strerror}"})
            return
        if pid == 0:
            _become_contestant(self.device, scratch, fds, log_write, probed)
        for fd in (*fds, log_write):
            os.close(fd)
        self.children[pid] = _Child(identity, pid, log_read)
        self.scratches.append(scratch)
        self.selector.modify(log_read, selectors.EVENT_READ, pid)
        self._tell({"forked": identity, "pid": pid})

    def _drain(self, child: _Child) -> None:
        try:
            data = os.read(child.log, 65536)
        except BlockingIOError:
            return
        if data:
            child.tail = (child.tail + data)[-_LOG_TAIL_BYTES:]
        else:
            self.selector.unregister(child.log)

    def _kill(self, identity: int) -> None:
        for child in self.children.values():
            if child.identity == identity:
                _kill_family(child.pid)

    def _reap(self) -> None:
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            pid = dead.si_pid
            child = self.children.pop(pid, None)
            if child is not None:
                _kill_family(pid)  # until it is reaped its number, and its group's, is nobody else's
            _, status = os.waitpid(pid, 0)
            _bury_orphans(keep=set(self.children))
            if child is None:  # an orphan of a contestant that came to us, and so do its own children
                continue
            with contextlib.suppress(KeyError):
                self._drain(child)
                self.selector.unregister(child.log)
            os.close(child.log)
            text = child.tail.decode("utf-8", "replace")
            self._tell({"exited": child.identity, "status": status, "log": text})

    def close(self) -> None:
        """Kill and reap until nothing is left, since what a kill orphans becomes our child; clear up."""
        with contextlib.suppress(ChildProcessError):
            while True:
                _kill_orphans(keep=set())
                os.waitpid(-1, 0)
        for scratch in self.scratches:  # of a judge that was killed; a living one has cleared them
            clear(scratch)

    def _tell(self, message: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the judge has gone; the loop is about to see it
            self.control.send(json.dumps(message).encode())


def _kill_family(leader: int) -> None:
    """Kill a contestant and its descendants, none of which can leave its group, nor fork meanwhile."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(leader, signal.SIGKILL)


def _kill_orphans(keep: set[int]) -> set[int]:
    """Kill what dead contestants left behind, and return it: their orphans are our children (subreaper)."""
    tasks = Path("/proc/self/task").iterdir()
    orphans = {int(word) for task in tasks for word in (task / "children").read_text().split()} - keep
    for orphan in orphans:
        os.kill(orphan, signal.SIGKILL)  # the number is its own until we reap it
    return orphans


def _bury_orphans(keep: set[int]) -> None:
    """Kill and reap until none is left: each may leave orphans in turn."""
    end = time.monotonic() + _BURIAL_S
    while (orphans := _kill_orphans(keep)) and time.monotonic() < end:
        time.sleep(0.001)
        for orphan in orphans:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(orphan, os.WNOHANG)


def _become_contestant(device: str, scratch: Path, fds: list[int], log: int, probed: int | None) -> None:
    """Turn the fresh fork into a contestant, or into a probe of the judge's process; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        # orphans come to it, where they are counted, and to the zygote only when it has died
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        os.dup2(log, 1)
        os.dup2(log, 2)
        with open(os.devnull) as null:  # noqa: PTH123 - a raw descriptor is all that is wanted
            os.dup2(null.fileno(), 0)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        from runner.contestant import probe, shim  # noqa: PLC0415 - already imported; names for the child

        sock = socket.socket(fileno=fds[0])
        if probed is None:
            shim.main(sock, fds[1], scratch, device, confined=UNCONFINED not in sys.argv)
        else:
            probe.main(sock, scratch, device, probed)
        code = 0
    except BaseException:  # noqa: BLE001 - nothing may return into the zygote's loop
        traceback.print_exc()
    finally:
        os._exit(code)


def _preload(device: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("TRITON_INTERPRET", "TORCHDYNAMO_DISABLE"):
        if device == "cpu":
            os.environ[name] = "1"  # torch.compile would trace Triton's interpreter, and fails
        else:
            os.environ.pop(name, None)
    importlib.import_module("torch")
    importlib.import_module("triton")
    importlib.import_module("runner.contestant.shim")
    importlib.import_module("runner.contestant.probe")
    if device == "cpu":
        importlib.import_module("runner.contestant.emulate").install()
    for file in sorted((Path(__file__).parent.parent / "baselines").glob("[a-z]*.py")):
        importlib.import_module(f"runner.baselines.{file.stem}")
    if device != "cpu":
        # Hashes all of Triton's sources, 0.3 s that every first compile would pay again.
        importlib.import_module("triton.runtime.cache").triton_key()


def main() -> None:
    """Preload, then serve the descriptor named on the command line."""
    control = socket.socket(fileno=int(sys.argv[1]))
    device = sys.argv[2]
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    _preload(device)
    gc.collect()
    gc.freeze()
    zygote = Zygote(control, device)
    try:
        zygote.serve()
    finally:
        zygote.close()  # the control socket ends with the judge, however that ended
    os._exit(0)  # without Triton's complaints about what it has not freed


if __name__ == "__main__":
    main()
