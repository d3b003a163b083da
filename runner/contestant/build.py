"""From a job to a model: the foreign text is executed here, and what it does wrong becomes a fault."""

from __future__ import annotations

import inspect
import json
import mmap
import os
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner import models
from runner.channel import Fault

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


#: Where arguments do not fit a constructor, it has no frame: these are `_instance` and `models.construct`.
_FRAMES_OF_A_CALL = 2
#: Folders of what is nobody's solution: the runner, and Python's own library.
_FAMILIAR = (f"{Path(__file__).resolve().parents[1]}/", f"{sysconfig.get_paths()['stdlib']}/")


class Refused(Exception):
    """The solution cannot go on; the fault and the text go up as an ERROR frame."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


def construct(
    job: dict[str, Any], modules: dict[str, types.ModuleType], scratch: Path, device: torch.device
) -> nn.Module:
    """Execute the job's source (once per process) and construct its model in the cell's arithmetic."""
    set_arithmetic(job["dtype"], job["math"])
    try:
        module = modules.get(job["digest"])
        if module is None:
            module = modules[job["digest"]] = execute(job["source"], f"solution_{job['name']}", scratch)
        entry = getattr(module, job["entry"], None)
        if entry is None:
            raise Refused(Fault.BUILD, f"the source defines no {job['entry']}")
        model = _instance(entry, decode(job["init"]))
        if not isinstance(model, nn.Module):
            raise Refused(Fault.BUILD, f"{job['entry']} is not a torch.nn.Module: derive it from one")
        is_reference = job["entry"] == "Model"
        return models.settle(model, device, TORCH_DTYPES[job["dtype"]], tables=is_reference)
    except Refused:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise Refused(Fault.OOM, story(error)) from error
    except BaseException as error:
        raise Refused(Fault.BUILD, story(error)) from error


def _instance(entry: Any, init: list[Any]) -> Any:
    try:
        return models.construct(entry, init)
    except TypeError as error:
        if len(traceback.extract_tb(error.__traceback__)) > _FRAMES_OF_A_CALL:
            raise  # from within the constructor
        raise Refused(
            Fault.BUILD, f"{error}: it has to take the {len(init)} values of the problem's get_init_inputs()"
        ) from error


def preparation(model: nn.Module) -> Callable[[], Any] | None:
    """Return a model's `prepare`, if that is what is called once: a candidate's own may want arguments."""
    prepare: Callable[[], Any] | None = getattr(model, "prepare", None)
    if prepare is None or not callable(prepare):
        return None
    try:
        inspect.signature(prepare).bind()
    except TypeError:
        return None
    except ValueError:  # of what has no signature
        pass
    return prepare


def execute(source: str, name: str, scratch: Path) -> types.ModuleType:
    """Execute foreign text as a module; as a file, because Triton reads a kernel through `inspect`."""
    path = scratch / f"{name}.py"
    path.write_text(source)
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    code = compile(source, str(path), "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 - the purpose of this process
    return module


def set_arithmetic(dtype: str, math: str) -> None:
    """Set PyTorch's switches for a cell, by the legacy setters: reading either API then works."""
    allowed = dtype != "fp32" or math == "tf32"
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def load_parameters(model: nn.Module, given: dict[str, torch.Tensor]) -> None:
    """Fill the state by name, else by order where the shapes agree one to one."""
    own = model.state_dict()
    if own.keys() == given.keys():
        pairs = {name: given[name] for name in own}
    else:
        pairs = dict(zip(own, given.values(), strict=False))
    if len(own) != len(given) or any(own[n].shape != t.shape for n, t in pairs.items()):
        raise Refused(
            Fault.BUILD,
            "parameters do not match, give ModelNew those of the problem's Model: "
            f"expected {_listed(given)}; ModelNew has {_listed(own)}",
        )
    with torch.no_grad():
        for name, tensor in pairs.items():
            own[name].copy_(tensor)


def _listed(state: dict[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {list(t.shape)}" for name, t in state.items()) or "none"


def view(block: torch.Tensor, start: int, item: dict[str, Any]) -> torch.Tensor:
    """View a tensor of a job (shape, dtype) in a block of bytes."""
    dtype = getattr(torch, item["dtype"])
    size = dtype.itemsize
    for n in item["shape"]:
        size *= n
    return block[start : start + size].view(dtype).view(item["shape"])


def decode(value: Any) -> Any:
    """Undo the job's JSON: `{"tuple": [...]}` is a tuple."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if isinstance(value, dict):
        return tuple(decode(v) for v in value["tuple"])
    return value


def read_job(fd: int) -> dict[str, Any]:
    """Read and close the sealed memory that holds a job."""
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        job: dict[str, Any] = json.loads(bytes(mapped))
    os.close(fd)
    return job


def fault_in_call(error: BaseException) -> Refused:
    """Name the fault of an exception that came out of `forward`."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Refused(Fault.OOM, story(error))
    compile_time = type(error).__name__ in ("CompilationError", "CompileTimeAssertionFailure")
    return Refused(Fault.BUILD if compile_time else Fault.CALL, story(error))


def story(error: BaseException) -> str:
    """Tell an error in one line, with the line of the foreign file that raised it or its cause."""
    place = ""
    for entry in _frames(error):
        foreign = entry.filename.endswith(".py") and not entry.filename.startswith(_FAMILIAR)
        if foreign and "-packages/" not in entry.filename and entry.line:
            place = f" (line {entry.lineno}: {entry.line.strip()})"
    if isinstance(error, SyntaxError):
        place = f" (line {error.lineno})"
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text}{place}"


def _frames(error: BaseException) -> Iterator[traceback.FrameSummary]:
    """Yield the frames of an error, then those of its causes: Triton's interpreter raises from a kernel's."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield from traceback.extract_tb(cause.__traceback__)
        cause = cause.__cause__
