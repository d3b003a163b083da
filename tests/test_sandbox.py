"""The sandbox, from inside: forked children enter it and report what they could still do."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import importlib
import json
import mmap
import os
import platform
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.contestant import landlock, libc, sandbox, seccomp, view

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
SHARED = Path("/dev", "shm")
LIMIT_BYTES = 256 << 20


@dataclass(frozen=True)
class Scene:
    """Where a probe acts: the contestant's folder, somebody else's, and the judge's process."""

    scratch: Path
    outside: Path
    judge: int

    @property
    def secret(self) -> Path:
        return self.outside / "secret"


def system_call(name: str, *arguments: object) -> int:
    _, column = seccomp.MACHINES[platform.machine()]
    return libc.call("syscall", seccomp.NUMBERS[name][column], *arguments)


def touch(file: Path) -> None:
    """Open for writing, and write nothing."""
    with file.open("ab"):
        pass


def connect(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(address)


def own_signals(scene: Scene) -> None:
    with socket.socketpair()[0] as mine:
        fcntl.fcntl(mine, fcntl.F_SETOWN, scene.judge)


def read_memory(scene: Scene) -> None:
    byte = ctypes.create_string_buffer(1)
    vector = struct.pack("=QQ", ctypes.addressof(byte), 1)
    system_call("process_vm_readv", scene.judge, vector, 1, vector, 1, 0)


def leave_by_clone(_: Scene) -> None:
    new_user, on_exit = 0x10000000, 17
    if system_call("clone", new_user | on_exit, 0, 0, 0, 0) == 0:
        os._exit(0)


def start_a_sibling(_: Scene) -> None:
    parent, on_exit = 0x8000, 17
    if system_call("clone", parent | on_exit, 0, 0, 0, 0) == 0:
        os._exit(0)


def leave_its_group(_: Scene) -> None:
    """Fail like what is refused if it is but pretended; a child tries, since a leader cannot leave."""
    group, child = os.getpgrp(), os.fork()
    if child == 0:
        os.setpgid(0, 0)
        if os.getpgrp() == group:
            os.setsid()
        os._exit(os.getpgrp() == group)
    if os.waitpid(child, 0)[1]:
        raise PermissionError(errno.EPERM, "still there")


def take_a_lease(scene: Scene) -> None:
    file = scene.scratch / "leased"
    file.write_text("")
    with file.open() as opened:
        fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_RDLCK)


# What anybody may do to his own processes and files: (the layer that stops it, the attempt).
REFUSED: dict[str, tuple[str, Callable[[Scene], object]]] = {
    "write beside scratch": ("landlock", lambda s: (s.outside / "new").write_text("")),
    "truncate a file": ("landlock_truncate", lambda s: os.truncate(s.outside / "spare", 0)),
    "append to a file": ("landlock", lambda s: touch(s.secret)),
    "make a folder": ("landlock", lambda s: (s.outside / "folder").mkdir()),
    "remove a file": ("landlock", lambda s: (s.outside / "spare").unlink()),
    "link a file into scratch": ("landlock", lambda s: os.link(s.secret, s.scratch / "link")),
    "read a file": ("landlock", lambda s: s.secret.read_text()),
    "read through a symbolic link": ("landlock", lambda s: (s.scratch / "shortcut").read_text()),
    "read through /proc": ("landlock", lambda s: Path(f"/proc/self/root{s.secret}").read_text()),
    "list a folder": ("landlock", lambda s: list(s.outside.iterdir())),
    "list home": ("landlock", lambda _: list(view.PRIVATE[1].iterdir())),
    "read the checkout": ("landlock", lambda _: (ROOT / "pyproject.toml").read_text()),
    "read the runner": ("landlock", lambda _: Path(sandbox.__file__).read_text()),
    "read the accounts": ("landlock", lambda _: Path("/etc/passwd").read_text()),
    "write /dev/shm": ("landlock", lambda s: (SHARED / str(s.judge)).touch()),
    "run a foreign program": ("landlock", lambda s: subprocess.run([s.outside / "true"], check=True)),
    "read the judge's environment": ("landlock", lambda s: Path(f"/proc/{s.judge}/environ").read_bytes()),
    "read the judge's maps": ("landlock", lambda s: Path(f"/proc/{s.judge}/maps").read_bytes()),
    "list the judge's descriptors": ("landlock", lambda s: list(Path(f"/proc/{s.judge}/fd").iterdir())),
    "open the judge's memory": ("landlock", lambda s: touch(Path(f"/proc/{s.judge}/mem"))),
    "signal the judge": ("seccomp", lambda s: os.kill(s.judge, 0)),
    "become the owner of signals": ("seccomp", own_signals),
    "hold up who opens a file": ("seccomp", take_a_lease),
    "wake a process": ("seccomp", lambda _: os.kill(os.getpid(), signal.SIGCONT)),
    "set a timer that may wake": (
        "seccomp",
        lambda _: system_call("timer_create", 1, 0, ctypes.create_string_buffer(8)),
    ),
    "watch files": ("seccomp", lambda _: system_call("inotify_init1", 0)),
    "open the judge by pidfd": ("seccomp", lambda s: os.pidfd_open(s.judge)),
    "read the judge's memory": ("seccomp", read_memory),
    "limit the judge": ("seccomp", lambda s: resource.prlimit(s.judge, resource.RLIMIT_CORE, (0, 0))),
    "slow the judge": ("seccomp", lambda s: os.setpriority(os.PRIO_PROCESS, s.judge, 1)),
    "slow all of the user": ("seccomp", lambda _: os.setpriority(os.PRIO_USER, 65533, 1)),
    "schedule the judge": (
        "seccomp",
        lambda s: os.sched_setscheduler(s.judge, os.SCHED_OTHER, os.sched_param(0)),
    ),
    "open an internet socket": ("seccomp", lambda _: socket.socket(socket.AF_INET)),
    "open a datagram socket": ("seccomp", lambda _: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    "open a local datagram socket": ("seccomp", lambda _: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
    "connect to a path": ("seccomp", lambda s: connect(str(s.outside / "door"))),
    "connect to a name": ("seccomp", lambda s: connect(f"\0door-{s.judge}")),
    "disown its orphans": ("seccomp", lambda _: libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 0)),
    "outlive its fork server": ("seccomp", lambda _: libc.prctl(libc.PR_SET_PDEATHSIG, 0)),
    "start a sibling": ("seccomp", start_a_sibling),
    "leave its process group": ("seccomp", leave_its_group),
    "own a file": ("seccomp", lambda s: os.chown(s.secret, os.getuid(), os.getgid())),
    "date a file": ("seccomp", lambda s: os.utime(s.secret)),
    "mark a file": ("seccomp", lambda s: os.setxattr(s.secret, "user.mark", b"1")),
}

# What takes privileges that the judge may or may not have.
PRIVILEGED: dict[str, tuple[str, Callable[[Scene], object]]] = {
    "trace the judge": ("seccomp", lambda s: system_call("ptrace", 0x4206, s.judge, 0, 0)),
    "leave by unshare": ("seccomp", lambda _: libc.call("unshare", 0x10000000)),
    "leave by clone": ("seccomp", leave_by_clone),
    "join a namespace": ("seccomp", lambda _: libc.call("setns", os.open("/proc/self/ns/net", 0), 0)),
    "mount": ("seccomp", lambda s: libc.call("mount", b"none", bytes(s.scratch), b"tmpfs", 0, None)),
    "change the root": ("seccomp", lambda s: os.chroot(s.scratch)),
    "load a BPF program": ("seccomp", lambda _: system_call("bpf", 0, None, 0)),
    "count events": ("seccomp", lambda _: system_call("perf_event_open", None, 0, 0, 0, 0)),
    "set up io_uring": ("seccomp", lambda _: system_call("io_uring_setup", 1, None)),
    "handle page faults": ("seccomp", lambda _: system_call("userfaultfd", 1)),
    "make a device": ("landlock", lambda s: os.mknod(s.scratch / "node", 0o020600, os.makedev(1, 3))),
    "write a kernel setting": (
        "landlock",
        lambda _: touch(Path("/proc/sys/kernel/core_pattern")),
    ),
}


def compile_and_load(scene: Scene) -> None:
    source, library = scene.scratch / "seven.c", scene.scratch / "seven.so"
    source.write_text("int seven(void) { return 7; }")
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True, timeout=30)
    assert ctypes.CDLL(str(library)).seven() == 7


def name_a_thread(_: Scene) -> None:
    # how the CUDA driver does it: an open that truncates
    named = threading.Event()
    thread = threading.Thread(target=named.wait)
    thread.start()
    try:
        Path(f"/proc/self/task/{thread.native_id}/comm").write_text("named")
    finally:
        named.set()
        thread.join()


def listen_as_the_driver_does(scene: Scene) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        server.bind(f"\0driver-{scene.judge}-{os.getpid()}")
        server.listen()


def share_memory(_: Scene) -> None:
    descriptor = os.memfd_create("block", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with mmap.mmap(descriptor, 4096) as block:
        block[:5] = b"hello"
    assert os.pread(descriptor, 5, 0) == b"hello"


def fill_a_cache(scene: Scene) -> None:
    work, cache = scene.scratch / "work", scene.scratch / "cache"
    work.mkdir()
    cache.mkdir()
    (work / "kernel").write_text("x" * 9)
    shutil.copy2(work / "kernel", work / "copy")
    (work / "copy").rename(cache / "kernel")
    (work / "lock").touch()
    (work / "lock").unlink()
    subprocess.run(["touch", work / "lock"], check=True)
    assert (work / "lock").exists()
    shutil.rmtree(work)


def make_a_temporary_file(scene: Scene) -> None:
    with tempfile.NamedTemporaryFile() as file:
        assert Path(file.name).is_relative_to(scene.scratch)


def draw_random_bytes(_: Scene) -> None:
    with Path("/dev/urandom").open("rb") as source:
        assert len(source.read(4)) == 4


def stop_a_child(_: Scene) -> None:
    # ends with this process where it may not be killed
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    child.kill()
    assert child.wait(10) == -signal.SIGKILL


def signal_itself(_: Scene) -> None:
    os.kill(os.getpid(), 0)


ALLOWED: dict[str, Callable[[Scene], object]] = {
    "fill a cache": fill_a_cache,
    "make a temporary file": make_a_temporary_file,
    "compile and load": compile_and_load,
    "name a thread": name_a_thread,
    "share memory": share_memory,
    "make a socket pair": lambda _: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
    "listen as the driver does": listen_as_the_driver_does,
    "stop a child": stop_a_child,
    "signal itself": signal_itself,
    "pin itself": lambda _: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "start an interpreter": lambda _: subprocess.run([sys.executable, "-c", ""], check=True, timeout=30),
    "start it in a session": lambda _: subprocess.run(
        [sys.executable, "-c", ""], check=True, timeout=30, start_new_session=True
    ),
    "import": lambda _: importlib.import_module("colorsys"),
    "use the null device": lambda _: Path(os.devnull).write_text("x"),
    "draw random bytes": draw_random_bytes,
    "count processors": lambda _: Path("/proc/cpuinfo").read_text(),
}

LIMITED: dict[str, Callable[[Scene], object]] = {
    "map below the limit": lambda _: mmap.mmap(-1, LIMIT_BYTES // 2),
    "map beyond the limit": lambda _: mmap.mmap(-1, 2 * LIMIT_BYTES),
}


def outcome(attempt: Callable[[Scene], object], scene: Scene) -> str:
    """Name what became of an attempt: `done`, the errno, or the exception."""
    try:
        attempt(scene)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except Exception as error:  # noqa: BLE001 - the outcome is the point
        return repr(error)
    return "done"


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def hold_capabilities(mask: int) -> None:
    """Give up all but `mask`, of the capabilities numbered below 32; others hold none to give up."""
    with contextlib.suppress(PermissionError):
        libc.call("capset", struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", mask, mask, 0, 0, 0, 0))


def own_descriptors() -> list[Path]:
    return list(Path("/proc/self/fd").iterdir())


def observe(scene: Scene, variant: str) -> dict[str, Any]:
    """Enter the sandbox, unless this is the control, and try everything."""
    isolation = sandbox.Isolation("control", (), ())
    memory_bytes = LIMIT_BYTES if variant == "limited memory" else None
    waiting = threading.Event()
    if variant == "second thread":
        threading.Thread(target=waiting.wait, daemon=True).start()
    if variant == "no landlock":
        landlock._CREATE_RULESET = -1
    if variant == "unprivileged":
        hold_capabilities(0)
    if variant == "container root":
        hold_capabilities(CAP_SETFCAP)
    if variant.startswith("abi"):
        landlock.NEWEST_ABI = int(variant.split()[1])
    if variant != "control":
        isolation = sandbox.enter(scene.scratch, device="cpu", memory_bytes=memory_bytes)
    attempts = {name: attempt for name, (_, attempt) in REFUSED.items()} | ALLOWED | LIMITED
    if variant != "control":
        attempts |= {name: attempt for name, (_, attempt) in PRIVILEGED.items()}
    tried = {name: outcome(attempt, scene) for name, attempt in attempts.items()}
    # answered with success and not done
    scene.secret.chmod(0o600 if variant == "control" else 0o777)
    os.utime(scene.secret, (0, 0))
    os.sched_setaffinity(scene.judge, {min(os.sched_getaffinity(0))})
    return {
        "isolation": asdict(isolation),
        "tried": tried,
        "status": status(),
        "limits": {name: resource.getrlimit(getattr(resource, name))[0] for name in LIMITS},
        "net": str(Path("/proc/self/ns/net").readlink()),
        "environment": dict(os.environ),
        "cwd": str(Path.cwd()),
        "writes_bytecode": not sys.dont_write_bytecode,
        "pinned": any(fd.resolve() == Path("/proc/self/task").resolve() for fd in own_descriptors()),
    }


CAP_SETFCAP = 1 << 31
LIMITS = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": sandbox.FILE_BYTES, "RLIMIT_NOFILE": sandbox.OPEN_FILES}
VARIANTS = ["sandbox", "control", "no landlock", "unprivileged", "container root", "second thread"]
VARIANTS += ["limited memory"]
VARIANTS += [f"abi {version}" for version in range(landlock.OLDEST_ABI, landlock.NEWEST_ABI)]


def in_a_fork(report: Callable[[], Any]) -> Any:
    """Return what a forked child reports, as JSON through a pipe."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            answer = json.dumps(report())
        except BaseException as error:  # noqa: BLE001 - nothing may return into the caller's frames
            answer = json.dumps({"error": repr(error)})
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        text = answers.read()
    os.waitpid(child, 0)
    return json.loads(text)


def judge(folder: str) -> None:
    """Play the judge in a process of its own: print what each variant observed."""
    observations = {}
    # what a zygote may have done before a fork
    tempfile.gettempdir()
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    for index, variant in enumerate(VARIANTS):
        scene = Scene(Path(folder, f"scratch{index}"), Path(folder, f"outside{index}"), os.getpid())
        scene.scratch.mkdir()
        scene.outside.mkdir()
        for name in ("secret", "spare"):
            (scene.outside / name).write_text("42")
        shutil.copy("/bin/true", scene.outside / "true")
        (scene.scratch / "shortcut").symlink_to(scene.secret)
        before, processors = scene.secret.stat(), os.sched_getaffinity(0)
        with contextlib.suppress(ValueError):  # lowered for good by the control, unless by root
            resource.setrlimit(resource.RLIMIT_CORE, (most, most))
        with socket.socket(socket.AF_UNIX) as path, socket.socket(socket.AF_UNIX) as name:
            path.bind(str(scene.outside / "door"))
            name.bind(f"\0door-{scene.judge}")
            path.listen()
            name.listen()
            observed = in_a_fork(lambda scene=scene, variant=variant: observe(scene, variant))
        after = scene.secret.stat()
        observed["mode_kept"] = after.st_mode == before.st_mode
        observed["date_kept"] = after.st_mtime_ns == before.st_mtime_ns
        observed["affinity_kept"] = os.sched_getaffinity(0) == processors
        os.sched_setaffinity(0, processors)
        (SHARED / str(scene.judge)).unlink(missing_ok=True)
        observed["judge_net"] = str(Path("/proc/self/ns/net").readlink())
        observations[variant] = observed
    json.dump(observations, sys.stdout)


def start(code: str, *arguments: object, **variables: str) -> Any:
    """Run code in a fresh interpreter that was started as a zygote is; return the JSON it prints."""
    environment = sandbox.allowed_environment(os.environ) | {"OMP_NUM_THREADS": "1"} | variables
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]; "
    command = [sys.executable, "-c", paths + code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def observations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sandbox")
    return start("import test_sandbox as t; t.judge(sys.argv[1])", folder)


def need(observed: dict[str, Any], layer: str) -> None:
    """Skip where this machine, or this variant, lacks the layer or the part of it."""
    isolation = observed["isolation"]
    lacking = [reason for reason in isolation["missing"] if reason.startswith(f"{layer}:")]
    family = layer.partition("_")[0] if layer.startswith("landlock") else layer
    if lacking or family not in {on.partition("-")[0] for on in isolation["layers"]}:
        pytest.skip("; ".join(lacking or isolation["missing"]))


CONFINED = [variant for variant in VARIANTS if variant not in {"control", "second thread"}]


@pytest.mark.parametrize("variant", CONFINED)
@pytest.mark.parametrize("attempt", [*REFUSED, *PRIVILEGED])
def test_refused(observations: dict[str, Any], attempt: str, variant: str) -> None:
    layer, _ = (REFUSED | PRIVILEGED)[attempt]
    need(observations[variant], layer)
    assert observations[variant]["tried"][attempt] in {"EPERM", "EACCES", "EXDEV"}


@pytest.mark.parametrize("attempt", REFUSED)
def test_refused_by_the_sandbox_alone(observations: dict[str, Any], attempt: str) -> None:
    assert observations["control"]["tried"][attempt] not in {"EPERM", "EACCES", "EXDEV"}


@pytest.mark.parametrize("variant", CONFINED)
@pytest.mark.parametrize("attempt", ALLOWED)
def test_allowed(observations: dict[str, Any], attempt: str, variant: str) -> None:
    if attempt == "stop a child" and signals_by_seccomp(observations[variant]):
        pytest.skip("without Landlock's scope a filter cannot tell children from strangers")
    assert observations[variant]["tried"][attempt] == "done"


def signals_by_seccomp(observed: dict[str, Any]) -> bool:
    missing = observed["isolation"]["missing"]
    return any(reason.startswith(("landlock:", "landlock_scope:")) for reason in missing)


@pytest.mark.parametrize("variant", CONFINED)
def test_attributes_of_others_are_left_alone(observations: dict[str, Any], variant: str) -> None:
    need(observations[variant], "seccomp")
    assert observations[variant]["mode_kept"]
    assert observations[variant]["date_kept"]
    assert observations[variant]["affinity_kept"]
    assert not observations["control"]["mode_kept"]
    assert not observations["control"]["date_kept"]


@pytest.mark.parametrize("variant", CONFINED)
def test_layers_are_those_enforced(observations: dict[str, Any], variant: str) -> None:
    observed = observations[variant]
    families = {layer.partition("-")[0] for layer in observed["isolation"]["layers"]}
    held = observed["status"]
    capabilities = {held[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
    assert ("no_new_privs" in families) == (held["NoNewPrivs"] == "1")
    assert ("seccomp" in families) == (held["Seccomp"] == "2")
    assert ("landlock" in families) == (observed["tried"]["read a file"] == "EACCES")
    assert ("namespaces" in families) == (observed["net"] != observed["judge_net"])
    assert ("no_caps" in families) == (capabilities == {""})
    assert ("rlimits" in families) == all(
        0 <= observed["limits"][name] <= most for name, most in LIMITS.items()
    )
    missing = {reason.partition(":")[0] for reason in observed["isolation"]["missing"]}
    assert not families & missing
    assert ("landlock" in families) == observed["pinned"]
    assert families | missing >= {*sandbox.CORE_LAYERS, "namespaces", "clean_environ"}


def test_what_the_kernel_offers_is_on(observations: dict[str, Any]) -> None:
    """Asked here by other means, or a broken layer would only skip the tests above."""
    offered = {"single_thread", "clean_environ", "rlimits", "no_caps", "no_new_privs"}
    with contextlib.suppress(OSError):
        offered.add(f"landlock-{min(libc.call('syscall', 444, None, 0, 1), 7)}")
    if Path("/proc/sys/kernel/seccomp/actions_avail").exists() and platform.machine() in seccomp.MACHINES:
        offered.add("seccomp")
    if shutil.which("unshare") and subprocess.run(["unshare", "--net", "true"], check=False).returncode == 0:
        offered.add("namespaces-net+ipc")
    assert offered <= set(observations["sandbox"]["isolation"]["layers"])


def test_level(observations: dict[str, Any]) -> None:
    for variant in CONFINED:
        families = {layer.partition("-")[0] for layer in observations[variant]["isolation"]["layers"]}
        level = "partial" if families.issuperset(sandbox.CORE_LAYERS) else "none"
        assert observations[variant]["isolation"]["level"] == level
    assert observations["no landlock"]["isolation"]["level"] == "none"


def test_second_thread_is_reported(observations: dict[str, Any]) -> None:
    isolation = observations["second thread"]["isolation"]
    assert isolation["level"] == "none"
    assert any(reason.startswith("single_thread: 2 threads") for reason in isolation["missing"])


def test_older_kernel_reports_what_stays_open(observations: dict[str, Any]) -> None:
    need(observations["abi 2"], "landlock")
    missing = observations["abi 2"]["isolation"]["missing"]
    assert {"landlock_truncate: needs ABI 3", "landlock_scope: needs ABI 6"} <= set(missing)


@pytest.mark.parametrize("variant", ["unprivileged", "container root"])
def test_user_namespace_where_needed(observations: dict[str, Any], variant: str) -> None:
    need(observations[variant], "namespaces")
    assert "namespaces-user+net+ipc" in observations[variant]["isolation"]["layers"]


def test_user_keeps_its_number(observations: dict[str, Any]) -> None:
    assert observations["container root"]["status"]["Uid"].split() == [str(os.getuid())] * 4


def test_memory_limit(observations: dict[str, Any]) -> None:
    assert observations["limited memory"]["tried"]["map below the limit"] == "done"
    assert observations["limited memory"]["tried"]["map beyond the limit"] == "ENOMEM"
    assert observations["sandbox"]["tried"]["map beyond the limit"] == "done"


def test_environment_is_clean(observations: dict[str, Any]) -> None:
    observed = observations["sandbox"]
    assert "clean_environ" in observed["isolation"]["layers"]
    own = sandbox._own_variables(Path(observed["cwd"]))
    assert observed["environment"] == own | {
        name: value for name, value in observed["environment"].items() if name in sandbox.KEPT_VARIABLES
    }
    assert Path(observed["environment"]["TMPDIR"]).is_dir()
    assert not observed["writes_bytecode"]


def test_dirty_start_is_reported(tmp_path: Path) -> None:
    code = """
import json, os, pathlib
from runner.contestant import sandbox
isolation = sandbox.enter(pathlib.Path(sys.argv[1]), device="cpu")
print(json.dumps([isolation.missing, os.environ.get("TOKEN")]))"""
    missing, token = start(code, tmp_path, TOKEN="value")  # noqa: S106 - made up
    assert "clean_environ: started with 1 other variables, such as TOKEN" in missing
    assert token is None


def test_unknown_device(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tpu', not cpu or cuda"):
        sandbox.enter(tmp_path, device="tpu")


def test_descriptors() -> None:
    code = """
import json, os
from runner.contestant import sandbox
answers = os.dup(1)
kept, other = os.pipe()
sandbox.close_descriptors({answers, kept})
open_now = {}
for fd in range(64):
    try:
        open_now[fd] = [os.readlink(f"/proc/self/fd/{fd}"), os.get_inheritable(fd)]
    except OSError:
        pass
os.write(answers, json.dumps([answers, kept, other, open_now]).encode())"""
    answers, kept, other, open_now = start(code)
    assert {int(fd) for fd in open_now} == {0, 1, 2, answers, kept}
    assert str(other) not in open_now
    assert [open_now[fd] for fd in "012"] == [[os.devnull, True]] * 3


STRANGER = """
import threading
import torch, triton
import triton.language as tl

@triton.jit
def double_kernel(x, y, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, 2 * tl.load(x + at, mask=at < count), mask=at < count)

def convolve():
    image, weight = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    out = []
    threads = [threading.Thread(target=lambda: out.append(torch.conv2d(image, weight))) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return [float(o.mean()) for o in out]

def interpret():
    x, y = torch.arange(100.0), torch.empty(100)
    double_kernel[(4,)](x, y, 100, BLOCK=32)
    return bool((y == 2 * x).all())

def compile():
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    signature = {"x": "*fp32", "y": "*fp32", "count": "i32", "BLOCK": "constexpr"}
    source = ASTSource(double_kernel, signature, {"BLOCK": 32})
    return len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]) > 0
"""


def preloaded(folder: str, device: str, works: list[str]) -> None:
    """Play a zygote with torch and triton; print what a stranger's functions return in a fork of it."""
    for module in ("torch", "triton", "triton.compiler"):
        importlib.import_module(module)
    scratch = Path(folder)
    (scratch / "stranger.py").write_text(STRANGER)

    def contestant() -> dict[str, Any]:
        isolation = sandbox.enter(scratch, device=device)
        sys.path.insert(0, str(scratch))
        stranger = importlib.import_module("stranger")
        return {"level": isolation.level} | {work: getattr(stranger, work)() for work in works}

    json.dump(in_a_fork(contestant) | {"cached": len(list(scratch.glob("triton/*/*.cubin")))}, sys.stdout)


def test_torch_and_the_interpreter_work(tmp_path: Path) -> None:
    code = "import test_sandbox as t; t.preloaded(sys.argv[1], 'cpu', ['convolve', 'interpret'])"
    answer = start(code, tmp_path, TRITON_INTERPRET="1")
    assert answer["convolve"] == [27.0] * 3
    assert answer["interpret"] is True


def test_triton_compiles_for_a_gpu(tmp_path: Path) -> None:
    code = "import test_sandbox as t; t.preloaded(sys.argv[1], 'cuda', ['compile'])"
    answer = start(code, tmp_path)
    assert answer["compile"] is True
    assert answer["cached"] == 1


def test_grants_go_around_private_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("app/results", "app/.venv/lib", "other", "home"):
        (tmp_path / "usr" / folder).mkdir(parents=True)
    usr = tmp_path / "usr"
    (usr / "shortcut").symlink_to(usr / "app")
    monkeypatch.setattr(view, "PRIVATE", (usr / "app", usr / "home"))
    assert list(view._around(usr)) == [usr / "other"]
    assert list(view._around(usr / "app" / ".venv")) == [usr / "app" / ".venv"]
    assert not list(view._around(usr / "app"))
    assert not list(view._around(Path("/")))


def test_compiler_is_granted_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "gcc-15" / "bin" / "gcc"
    compiler.parent.mkdir(parents=True)
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert (tmp_path / "gcc-15", view.RUN) in set(view.grants(tmp_path, "cpu"))


@pytest.mark.parametrize(
    ("version", "rights", "size_bytes"),
    [(2, 0x3FFF, 8), (3, 0x7FFF, 8), (4, 0x7FFF, 16), (5, 0xFFFF, 16), (6, 0xFFFF, 24), (7, 0xFFFF, 24)],
)
def test_kernel_is_asked_for_what_it_knows(
    monkeypatch: pytest.MonkeyPatch, version: int, rights: int, size_bytes: int
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(libc, "call", lambda *arguments: asked.extend(arguments))
    landlock._create(version)
    _, _, attributes, size, _ = asked
    assert (struct.unpack("=QQQ", attributes)[0], size) == (rights, size_bytes)


def run_filter(program: list[seccomp.Instruction], data: bytes) -> int:
    """Interpret classic BPF over one `struct seccomp_data`."""
    accumulator, at = 0, 0
    while True:
        code, jump_true, jump_false, operand = program[at]
        at += 1
        match code:
            case 0x20:
                accumulator = int.from_bytes(data[operand : operand + 4], "little")
            case 0x54:
                accumulator &= operand
            case 0x15:
                at += jump_true if accumulator == operand else jump_false
            case 0x35:
                at += jump_true if accumulator >= operand else jump_false
            case 0x06:
                return operand


def expected(name: str, first: int, second: int, third: int, own_pid: int | None) -> int:
    """Say in plain Python what the filter is to answer to a call that it names."""
    signals = {"kill": 1, "tkill": 1, "tgkill": 2, "rt_sigqueueinfo": 1, "rt_tgsigqueueinfo": 2}
    first, second, third = (argument & 0xFFFFFFFF for argument in (first, second, third))
    allowed = {
        "ioctl": second not in {0x5412, 0x541C, 0x8901, 0x8902},
        "fcntl": second not in {8, 10, 15, 1024, 1026},
        "prctl": first not in {1, 4, 36},
        "setpriority": first == 0 and second == 0,
        "ioprio_set": first == 1 and second == 0,
        "clone": first & 0x7E028000 == 0 and first & 0x10400 != 0x10000,
        "sched_setaffinity": first == 0,
    }
    allowed |= dict.fromkeys(("socket", "socketpair"), first == 1 and second & 15 in {1, 5})
    of_itself = ("prlimit64", "sched_setscheduler", "sched_setparam", "sched_setattr")
    allowed |= dict.fromkeys((*of_itself, "migrate_pages", "move_pages"), first == 0)
    for call, place in signals.items():
        allowed[call] = (first, second, third)[place] != 18 and own_pid in (None, first)
    if allowed.get(name):
        return seccomp.ALLOW
    if "utime" in name:
        path, times = (second, third) if name in {"futimesat", "utimensat"} else (first, second)
        return seccomp.REFUSE if path and not times else seccomp.PRETEND
    if "chmod" in name or name in {"sched_setaffinity", "setsid", "setpgid"}:
        return seccomp.PRETEND
    return seccomp.UNKNOWN if name == "clone3" else seccomp.REFUSE


ARGUMENTS = st.one_of(
    st.sampled_from(
        [
            0,
            1,
            2,
            5,
            7,
            8,
            10,
            15,
            16,
            18,
            36,
            1024,
            1026,
            0x10000,
            0x10400,
            0x5412,
            0x8011,
            0x8901,
            0x80801,
            0x10000000,
            0x3D0F00,
            1 << 32,
        ]
    ),
    st.integers(0, 2**64 - 1),
)


@given(
    st.sampled_from(sorted(seccomp.MACHINES)),
    st.sampled_from(sorted(seccomp.NUMBERS)),
    st.tuples(ARGUMENTS, ARGUMENTS, ARGUMENTS),
    st.sampled_from([None, 7]),
)
def test_filter_answers_as_specified(
    machine: str, name: str, arguments: tuple[int, int, int], own_pid: int | None
) -> None:
    audit, column = seccomp.MACHINES[machine]
    number = seccomp.NUMBERS[name][column]
    if number is None:
        return
    program = seccomp.program(machine, own_pid)
    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, 0, 0, 0)
    assert run_filter(program, data) == expected(name, *arguments, own_pid)
    foreign = struct.pack("<IIQ6Q", number, 0x40000003, 0, *arguments, 0, 0, 0)
    assert run_filter(program, foreign) == seccomp.REFUSE


@given(st.sampled_from(sorted(seccomp.MACHINES)), st.integers(0, 2**32 - 1))
def test_filter_allows_the_rest(machine: str, number: int) -> None:
    audit, column = seccomp.MACHINES[machine]
    if number in {numbers[column] for numbers in seccomp.NUMBERS.values()}:
        return
    answer = run_filter(seccomp.program(machine), struct.pack("<IIQ6Q", number, audit, *[0] * 7))
    assert answer == (seccomp.REFUSE if number >= 1 << 30 else seccomp.ALLOW)


def test_filter_needs_a_table() -> None:
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program("riscv64")


@pytest.mark.parametrize(
    ("header", "column"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0), ("/usr/include/asm-generic/unistd.h", 1)],
)
def test_numbers_are_the_kernels(header: str, column: int) -> None:
    if not Path(header).exists():
        pytest.skip(f"no {header}")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())
    listed = {name: int(number) for name, number in found}
    newer_than_some_headers = {"fchmodat2", "setxattrat", "removexattrat", "open_tree_attr", "file_setattr"}
    ours = {name: numbers[column] for name, numbers in seccomp.NUMBERS.items()}
    assert {name: listed.get(name) for name in ours if name not in newer_than_some_headers} == {
        name: number for name, number in ours.items() if name not in newer_than_some_headers
    }
