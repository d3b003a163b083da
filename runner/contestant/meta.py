"""Run a solution's `forward` on tensors without memory, and tell what it would launch on each card.

Started as `python -m runner.contestant.meta REPORT_FD SCRATCH`, the request on standard input. This process
executes the problem (trusted) for the forms of inputs; a fork of it enters the sandbox, executes the
solution and writes one JSON line per cell and card. When the fork ends, or at SIGTERM, this process ends
whatever the solution has started, and itself.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import signal
import sys
import traceback
import types
from pathlib import Path
from typing import Any

import torch
import triton
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runner.contestant import capture, libc, sandbox
from runner.contestant.build import TORCH_DTYPES, Refused, construct, preparation, story
from runner.contestant.pretence import Pretence, pretend
from runner.models import settle

#: A cell's job, as `construct` takes it, and its inputs.
Job = tuple[dict[str, Any], list[Any]]

#: Address space beyond what the process starts with: compilers need some, the workload none.
MEMORY_BYTES = 4 << 30
STORY_CHARS = 500
WAKING = {signal.SIGCHLD, signal.SIGTERM}
MAX_OPERATORS = 20


#: Operators whose answer, or the size of it, depends on values; and those that may copy values to the host.
VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
COPIES = ("_to_copy", "copy_")


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Note PyTorch's own operators, and count the bytes of all storages as if none were freed."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # held, so that no two have one address
        self.storages: dict[int, torch.UntypedStorage] = {}
        self._hold(tensors)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled under this mode, and to import what skips that takes two seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass a call on and note what it was and made; say what is wrong with one that asks for values."""
        del types
        name = str(func).removeprefix("aten.").partition(".")[0]
        try:
            result = func(*args, **(kwargs or {}))
        except RuntimeError as error:
            copies = name in COPIES and isinstance(error, NotImplementedError)
            if copies or VALUES & {*func.tags}:
                raise RuntimeError("needs values of a tensor, which only a GPU would compute") from error
            raise
        if not func.is_view and "empty" not in name:
            capture.Calls.current.operators[name[:80]] += 1
        self._hold(result if isinstance(result, (tuple, list)) else [result])
        return result

    def _hold(self, tensors: Any) -> None:
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = storage  # noqa: SLF001

    @property
    def memory_bytes(self) -> int:
        """Bytes of every storage seen."""
        return sum(storage.nbytes() for storage in self.storages.values())


def observe(
    job: dict[str, Any], inputs: list[Any], modules: dict[str, types.ModuleType], scratch: Path
) -> dict[str, Any]:
    """Build a job's model on meta tensors and return what its second call launches.

    The second, because whatever is prepared once belongs to the first.
    """
    # inference mode would hide operators within others from the tally
    with torch.device("meta"), Pretence(), torch.no_grad():
        with capture.calls():
            model: Any = construct(job, modules, scratch, torch.device("meta"))
        placed = [_input(item, TORCH_DTYPES[job["dtype"]]) for item in inputs]
        tensors = [value for value in placed if isinstance(value, torch.Tensor)]
        with capture.calls(), Tally([*tensors, *model.state_dict().values()]) as first:
            prepare = preparation(model) if job["prepare"] else None
            if prepare is not None:
                prepare()
            model(*placed)
        with capture.calls() as second, Tally([]):
            model(*placed)
    return {
        "launches": second.launches,
        "operators": dict(second.operators.most_common(MAX_OPERATORS)),
        "memory_bytes": first.memory_bytes,
    }


def _input(item: Any, dtype: torch.dtype) -> Any:
    if not isinstance(item, torch.Tensor):
        return item
    return torch.empty_like(item, dtype=dtype if item.is_floating_point() else item.dtype)


def jobs(request: dict[str, Any]) -> list[Job]:
    """Execute the problem (trusted) and return for each cell a job to construct and its meta inputs."""
    problem = types.ModuleType("problem")
    sys.modules["problem"] = problem
    exec(compile(request["problem"], "problem", "exec"), problem.__dict__)  # noqa: S102 - trusted by contract
    found = []
    for cell in request["cells"]:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in cell["shape"].items()}
        shape = (problem.Shape(**fields),) if hasattr(problem, "Shape") else ()
        with torch.device("meta"):
            init, inputs = list(problem.get_init_inputs(*shape)), list(problem.get_inputs(*shape))
        job = {
            **{name: request[name] for name in ("source", "name", "digest")},
            **{name: cell[name] for name in ("dtype", "math")},
            "entry": "ModelNew",
            "init": init,
            "prepare": getattr(problem, "PARAMETERS", "fixed") == "fixed",
            "traffic_bytes": traffic_bytes(problem.Model, init, inputs, TORCH_DTYPES[cell["dtype"]]),
        }
        found.append((job, inputs))
    return found


def traffic_bytes(model: type[nn.Module], init: list[Any], inputs: list[Any], dtype: torch.dtype) -> int:
    """Return the bytes of a reference's inputs, parameters and outputs, each once.

    0 where it cannot be told without values, as for an output whose size depends on them.
    """
    placed = [_input(item, dtype) for item in inputs]
    try:
        with torch.device("meta"), torch.no_grad():
            reference = settle(model(*init), torch.device("meta"), dtype)
            outputs = reference(*placed)
    except Exception:  # noqa: BLE001 - a problem's code, which may raise anything
        return 0
    held = tree_leaves([placed, list(reference.parameters()), list(reference.buffers()), outputs])
    return sum({id(one): one.nbytes for one in held if isinstance(one, torch.Tensor)}.values())


def answer(found: list[Job], cards: list[dict[str, Any]], report: int, scratch: Path) -> None:
    """Write a line for each cell and card; an error of the solution is the content of its line."""
    modules: dict[str, types.ModuleType] = {}
    for (index, (job, inputs)), (number, card) in itertools.product(enumerate(found), enumerate(cards)):
        line: dict[str, Any] = {"cell": index, "card": number, "triton": triton.__version__}
        line["traffic_bytes"] = job["traffic_bytes"]
        try:
            pretend(card)
            line |= observe(job, inputs, modules, scratch)
        except Refused as refused:
            line["error"] = str(refused)[:STORY_CHARS]
        except BaseException as error:  # noqa: BLE001 - foreign code may raise anything
            line["error"] = story(error)[:STORY_CHARS]
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(report, data) :]


def _become_contestant(found: list[Job], cards: list[dict[str, Any]], report: int, scratch: Path) -> None:
    """Turn the fresh fork into a contestant; never returns."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAKING)
        os.setsid()
        sandbox.close_descriptors({1, 2, report})
        sandbox.enter(scratch, device="cpu", memory_bytes=MEMORY_BYTES)
        answer(found, cards, report, scratch)
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
    finally:
        os._exit(0)


def _end_all(leader: int) -> None:
    """Kill the fork's group, and reap what that orphans: it comes to this process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in map(int, children.read_text().split()):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def main() -> None:
    """Read the request, fork the contestant, outlive it by as long as it takes to end all it started."""
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGTERM)
    report, scratch = int(sys.argv[1]), Path(sys.argv[2])
    request = json.load(sys.stdin)
    found = jobs(request)
    gc.freeze()
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKING)  # from now on they are waited for
    fork = os.fork()
    if fork == 0:
        _become_contestant(found, request["cards"], report, scratch)
    os.close(report)
    alive = os.WEXITED | os.WNOHANG | os.WNOWAIT
    # orphans that die wake it too
    while signal.sigwait(WAKING) == signal.SIGCHLD and os.waitid(os.P_PID, fork, alive) is None:
        pass
    _end_all(fork)
    os._exit(0)  # without Triton's complaints about what it has not freed


if __name__ == "__main__":
    main()
