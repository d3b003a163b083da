"""What a result depends on besides the files: versions, the device and its state, what disturbs it."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runner import cards, gpu_lock
from runner.judge.machine import Machine

#: Variables that change numbers; recorded when set.
_VARIABLES = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_INJECTION64_PATH",
    "CUBLAS_WORKSPACE_CONFIG",
    "TORCH_CUDNN_V8_API_LRU_CACHE_LIMIT",
    "TRITON_F32_DEFAULT",
    "TRITON_DEFAULT_FP_FUSION",
)
#: Set where a profiler or a checker has itself loaded into what it starts.
_INJECTIONS = ("CUDA_INJECTION64_PATH", "NV_NSIGHT_INJECTION_PORT_BASE", "NV_SANITIZER_INJECTION_PORT_BASE")
#: Tools under which no time means anything, as the kernel names their processes: by 15 characters.
_TOOLS = ("ncu", "nsys", "nsys-launcher", "compute-sanitiz", "cuda-gdb")


def describe(device: str) -> dict[str, Any]:
    """Describe the machine for a record: versions as text, sizes in bytes, clocks in MHz, power in W.

    `disturbances` names what forbids ranking. To be called before the device is computed on.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": metadata.version("triton"),
        "numpy": np.__version__,
        "kernel": platform.release(),
        "cpu": platform.processor() or platform.machine(),
        "device": device,
        "driver": "",
        "cuda": torch.version.cuda or "",
        "cudnn": "",
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "disturbances": [],
    }
    if device != "cpu":
        found["disturbances"] = disturbances(os.environ, set(_ancestors()))
        # NVML first: as long as CUDA is untouched, whoever computes on the device is somebody else
        found.update(Machine(gpu_lock.uuid_of(device)).facts())
        found.update(_device(torch.device(device)))
    return found


def unusable(device: str) -> str:
    """Say in a line why this process cannot have such a device, or nothing; makes no context."""
    if device == "cpu":
        return ""
    try:
        torch.cuda.get_device_properties(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0]
    return ""


def disturbances(variables: Mapping[str, str], ancestors: Collection[str]) -> list[str]:
    """Name what makes every time worthless: launches that wait, profilers and checkers.

    `ancestors` are the names of the processes that this one was started by.
    """
    blocking = variables.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0")
    return [
        *(["CUDA_LAUNCH_BLOCKING"] if blocking else []),
        *(name for name in _INJECTIONS if variables.get(name)),
        *(name for name in _TOOLS if name in ancestors),
    ]


def warnings(described: dict[str, Any]) -> list[str]:
    """Say in lines what a reader should know before a run begins."""
    device, others = described["device"], described.get("other_processes", [])
    told = [f"not ranked: measured under {name}" for name in described["disturbances"]]
    if others:
        pids = ", ".join(map(str, others))
        told.append(f"{device} is also computed on by process {pids}: end it, or times are disturbed")
    if described.get("nvml"):
        told.append(f"clocks and other processes of {device} are unknown: NVML: {described['nvml']}")
    card = cards.card_for_device(described["gpu"], described["sms"]) if "gpu" in described else None
    if card is not None:
        told += [
            f"{device} is not as the card {card.name} says: {one}"
            for one in cards.disagreements(card, described)
        ]
    return told


def _ancestors() -> Iterator[str]:
    pid = os.getppid()
    while pid:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:  # it has ended, or is out of sight
            return
        name, _, rest = text.partition("(")[2].rpartition(")")
        yield name
        pid = int(rest.split()[1])


def _device(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "sms": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "shared_bytes_per_sm": properties.shared_memory_per_multiprocessor,
        "uuid": str(properties.uuid),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    }
