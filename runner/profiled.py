"""What a profiler watches: a solution built, warmed up, then called once per cell inside an NVTX range.

Started as `python -m runner.profiled REQUEST REPORT`, by ncu or alone. It runs the solution unconfined,
with the rights of whoever started it: for one's own files. The first line of REPORT tells the device, each
other what became of a cell, with the launches of its last call before the range as Triton made them.
"""

from __future__ import annotations

import gc
import json
import sys
import types
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from torch.cuda import nvtx

from runner.channel import Frame
from runner.contestant import witness
from runner.contestant.build import (
    TORCH_DTYPES,
    Refused,
    construct,
    load_parameters,
    preparation,
    story,
)
from runner.load import Problem
from runner.ncu import RANGE, cell_range

#: Kernels are compiled and autotuned in the first, and what is allocated once is there by the third.
WARM_UP_CALLS = 3


def main() -> None:
    """Answer a request, cell by cell."""
    request, device = json.loads(Path(sys.argv[1]).read_text()), torch.device("cuda")
    problem = Problem(request["problem"], Path(request["path"]), request["reference"]).module()
    modules: dict[str, types.ModuleType] = {}
    with Path(sys.argv[2]).open("w", buffering=1) as report, TemporaryDirectory() as scratch:
        print(json.dumps(describe(device)), file=report)
        for number in range(len(request["cells"])):
            line = observe(problem, request, number, modules, Path(scratch), device)
            print(json.dumps(line), file=report)
            gc.collect()
            torch.cuda.empty_cache()


def observe(
    problem: types.ModuleType,
    request: dict[str, Any],
    number: int,
    modules: dict[str, types.ModuleType],
    scratch: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Build and call a solution in one cell; an error of the solution is the content of its line."""
    try:
        job, reference, inputs = prepare(problem, request, request["cells"][number], device)
        model = construct(job, modules, scratch, device)
        load_parameters(model, reference.state_dict())
        return {"launches": call(model, inputs, cell_range(number), prepares=job["prepare"])}
    except Refused as refused:
        return {"error": str(refused)}
    except Exception as error:  # noqa: BLE001 - whatever stops a solution is the finding
        return {"error": story(error)}


def describe(device: torch.device) -> dict[str, Any]:
    """Name the device as the driver does, and the version of Triton."""
    properties = torch.cuda.get_device_properties(device)
    return {"name": properties.name, "sms": properties.multi_processor_count, "triton": triton.__version__}


def prepare(
    problem: types.ModuleType, request: dict[str, Any], cell: dict[str, Any], device: torch.device
) -> tuple[dict[str, Any], torch.nn.Module, list[Any]]:
    """Return a cell's job as `construct` takes it, the reference with its parameters, and inputs."""
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in cell["shape"].items()}
    shape = (problem.Shape(**fields),) if hasattr(problem, "Shape") else ()
    job = {
        **{name: request[name] for name in ("source", "name", "digest")},
        **{name: cell[name] for name in ("dtype", "math")},
        "entry": "ModelNew",
        "init": list(problem.get_init_inputs(*shape)),
        "prepare": getattr(problem, "PARAMETERS", "fixed") == "fixed",
    }
    dtype = TORCH_DTYPES[cell["dtype"]]
    torch.manual_seed(0)
    with device:
        reference = problem.Model(*job["init"]).to(device, dtype)
        inputs = [_placed(value, device, dtype) for value in problem.get_inputs(*shape)]
    return job, reference, inputs


def _placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else value.dtype)


def call(model: Any, inputs: list[Any], label: str, *, prepares: bool) -> list[dict[str, Any]]:
    """Warm a model up, call it once in a range of its own within `RANGE`; returns the launches of a call."""
    with torch.inference_mode():
        prepare = preparation(model) if prepares else None
        if prepare is not None:
            prepare()
        for _ in range(WARM_UP_CALLS - 1):
            model(*inputs)
        with witness.launches() as seen:
            model(*inputs)
        torch.cuda.synchronize()
        with nvtx.range(RANGE), nvtx.range(label):
            model(*inputs)
            torch.cuda.synchronize()
    return [_launch(frame) for frame in seen]


def _launch(frame: Frame) -> dict[str, Any]:
    """Put a launch into the words of `schema.Launch`."""
    x, y, z, num_warps, *facts = frame.args
    registers, spills, shared_bytes = (None if fact < 0 else fact for fact in facts)
    return {
        "kernel": frame.text,
        "grid": [x, y, z],
        "num_warps": num_warps,
        "registers": registers,
        "spills": spills,
        "shared_bytes": shared_bytes,
    }


if __name__ == "__main__":
    main()
