"""Run a solution's `forward` on tensors without memory, and tell what it would launch on each card.

Started as `python -m runner.contestant.meta REPORT_FD SCRATCH`, the request on standard input. This process
reads the problem (trusted) for the forms of inputs; a fork of it enters the sandbox, executes the solution and
writes one JSON line per cell and card. It ends, with all that the solution has started, when the fork does or
at SIGTERM.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import traceback
import types
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from runner.contestant import capture, libc, sandbox
from runner.contestant.build import TORCH_DTYPES, construct, execute, set_arithmetic, story

#: Address space beyond what the process starts with: compilers need some, the workload none.
MEMORY_BYTES = 4 << 30
#: Any address a CUDA allocator might give is a multiple of this.
_ALIGNMENT_BITS = 9
_STORY_CHARS = 500


class Pretence(TorchFunctionMode):
    """Meta tensors say that they lie on a GPU, and what is asked to lie there becomes a meta tensor.

    Their addresses are aligned as CUDA's allocator aligns, views included, so Triton specialises as it
    would in a real launch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer what only a GPU's tensor could, and place the rest."""
        del types
        answer = _ANSWERS.get(func)
        if answer is not None and args[0].is_meta:
            return answer(args[0])
        placed = {name: _placed(value, name) for name, value in (kwargs or {}).items()}
        return func(*map(_placed, args), **placed)


def _placed(value: Any, name: str = "") -> Any:
    """Turn a CUDA device, by whatever name, into the meta device."""
    by_number = name == "device" and isinstance(value, int)
    by_name = isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == "cuda"
    return torch.device("meta") if by_number or by_name else value


def _address(tensor: torch.Tensor) -> int:
    base: int = tensor.untyped_storage()._cdata << _ALIGNMENT_BITS  # noqa: SLF001 - one number per storage
    return base + tensor.storage_offset() * tensor.element_size()


_ANSWERS: dict[Any, Any] = {
    torch.Tensor.is_cuda.__get__: lambda _: True,
    torch.Tensor.device.__get__: lambda _: torch.device("cuda", 0),
    torch.Tensor.get_device: lambda _: 0,
    torch.Tensor.cuda: lambda tensor: tensor,
    torch.Tensor.data_ptr: _address,
}


class Tally(TorchDispatchMode):
    """Count PyTorch's own operators, and the bytes of all storages as if none were freed."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        # held, so that no two have one address
        self.storages: dict[int, torch.UntypedStorage] = {}
        self._hold(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass a call on and note what it was and made."""
        del types
        result = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.").partition(".")[0]
        if not func.is_view and "empty" not in name:
            self.operators[name[:80]] += 1
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


def pretend(properties: dict[str, Any]) -> None:
    """Have torch and Triton describe a card that is not there; `properties` as torch names a device's."""
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": properties["name"],
        "get_device_capability": (properties["major"], properties["minor"]),
        "get_device_properties": SimpleNamespace(**properties),
        "current_stream": stream,
        "is_bf16_supported": True,
        **dict.fromkeys(("_lazy_init", "synchronize", "set_device", "empty_cache")),
        **dict.fromkeys(("_exchange_device", "_maybe_exchange_device"), 0),
    }
    for name, value in answers.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    capture.use_driver(properties)


def observe(
    module: types.ModuleType, form: dict[str, Any], cell: dict[str, Any], properties: dict[str, Any]
) -> dict[str, Any]:
    """Build the model on meta tensors and return what its second call launches.

    The second, because whatever is prepared once belongs to the first.
    """
    pretend(properties)
    set_arithmetic(cell["dtype"], cell["math"])
    with torch.device("meta"), Pretence(), torch.inference_mode():
        inputs = [_input(item, TORCH_DTYPES[cell["dtype"]]) for item in form["inputs"]]
        model: Any = module.ModelNew(*form["init"]).to(TORCH_DTYPES[cell["dtype"]]).eval()
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        with capture.launches(), Tally([*tensors, *model.state_dict().values()]) as first:
            if callable(getattr(model, "prepare", None)) and form["fixed"]:
                model.prepare()
            model(*inputs)
        with capture.launches() as launches, Tally([]) as second:
            model(*inputs)
    return {
        "launches": launches,
        "operators": dict(second.operators.most_common(20)),
        "memory_bytes": first.memory_bytes,
        "error": "",
    }


def _input(item: Any, dtype: torch.dtype) -> Any:
    if not isinstance(item, torch.Tensor):
        return item
    return torch.empty_like(item, dtype=dtype if item.is_floating_point() else item.dtype)


def forms(source: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Execute a problem (trusted) and return each cell's constructor arguments and meta inputs."""
    module = types.ModuleType("problem")
    sys.modules["problem"] = module
    exec(compile(source, "problem", "exec"), module.__dict__)  # noqa: S102 - trusted by contract
    fixed = getattr(module, "PARAMETERS", "fixed") == "fixed"
    found = []
    for cell in cells:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in cell["shape"].items()}
        shape = (module.Shape(**fields),) if hasattr(module, "Shape") else ()
        with torch.device("meta"):
            inputs = list(module.get_inputs(*shape))
        found.append({"init": list(module.get_init_inputs(*shape)), "inputs": inputs, "fixed": fixed})
    return found


def answer(request: dict[str, Any], found: list[dict[str, Any]], report: int, scratch: Path) -> None:
    """Write a line for each cell and card; an error of the solution is the content of its line."""
    module: types.ModuleType | None = None
    for index, cell in enumerate(request["cells"]):
        for number, properties in enumerate(request["cards"]):
            line: dict[str, Any] = {"cell": index, "card": number, "triton": triton.__version__}
            try:
                if module is None:
                    pretend(properties)
                    with torch.device("meta"), Pretence():
                        module = execute(request["source"], request["name"], scratch)
                line |= observe(module, found[index], cell, properties)
            except BaseException as error:  # noqa: BLE001 - foreign code may raise anything
                line["error"] = story(error)[:_STORY_CHARS]
            data = json.dumps(line).encode() + b"\n"
            while data:
                data = data[os.write(report, data) :]


def _become_contestant(
    request: dict[str, Any], found: list[dict[str, Any]], report: int, scratch: Path
) -> None:
    """Turn the fresh fork into a contestant; never returns."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        libc.die_with_parent()
        sandbox.close_descriptors({1, 2, report})
        sandbox.enter(scratch, device="cpu", memory_bytes=MEMORY_BYTES)
        answer(request, found, report, scratch)
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
    finally:
        os._exit(0)


def _end_all(leader: int) -> None:
    """Kill the fork's session, and what escaped from it: orphans are this process's children."""
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGTERM)
    report, scratch = int(sys.argv[1]), Path(sys.argv[2])
    request = json.load(sys.stdin)
    found = forms(request["problem"], request["cells"])
    gc.freeze()
    fork = os.fork()
    if fork == 0:
        _become_contestant(request, found, report, scratch)
    os.close(report)
    try:
        os.waitid(os.P_PID, fork, os.WEXITED | os.WNOWAIT)
    finally:
        _end_all(fork)


if __name__ == "__main__":
    main()
