"""What a result depends on besides the files: versions, the device and its state."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from typing import Any

import numpy as np
import torch

#: Variables that change numbers; recorded when set.
_VARIABLES = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "TORCH_CUDNN_V8_API_LRU_CACHE_LIMIT",
    "TRITON_F32_DEFAULT",
    "TRITON_DEFAULT_FP_FUSION",
)


def describe(device: str) -> dict[str, Any]:
    """Describe the machine for a record: versions as text, sizes in bytes, clocks in MHz."""
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
    }
    if device != "cpu":
        found.update(_device(torch.device(device)))
    return found


def _device(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    found: dict[str, Any] = {
        "gpu": properties.name,
        "sms": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "uuid": str(properties.uuid),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    }
    # NVML may be missing or forbidden: its facts are then absent, not guessed.
    with contextlib.suppress(Exception):
        found.update(_nvml(found["uuid"]))
    return found


def _nvml(uuid: str) -> dict[str, Any]:
    import pynvml  # noqa: PLC0415 - only where there is a GPU

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "power_limit_w": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "sm_clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "max_sm_clock_mhz": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        }
    finally:
        pynvml.nvmlShutdown()
