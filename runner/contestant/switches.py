"""PyTorch's own switches, read before and after foreign code had its way with them.

All of them are read, the legacy ones and those of `fp32_precision`: after a write to the one API, getters
of the other may raise, which is itself a difference.
"""

from __future__ import annotations

import warnings
from operator import attrgetter
from typing import Final

import torch

#: Read as attributes of `torch`, and called.
_ATTRIBUTES: Final = (
    "backends.fp32_precision",
    "backends.cudnn.enabled",
    "backends.cudnn.benchmark",
    "backends.cudnn.benchmark_limit",
    "backends.cudnn.deterministic",
    "backends.cudnn.allow_tf32",
    "backends.cudnn.fp32_precision",
    "backends.cudnn.conv.fp32_precision",
    "backends.cudnn.rnn.fp32_precision",
    "backends.cuda.matmul.allow_tf32",
    "backends.cuda.matmul.fp32_precision",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_fp16_accumulation",
    "backends.mkldnn.enabled",
    "backends.mkldnn.deterministic",
    "backends.mkldnn.fp32_precision",
    "backends.mkldnn.conv.fp32_precision",
    "backends.mkldnn.matmul.fp32_precision",
)
_GETTERS: Final = (
    "backends.cuda.flash_sdp_enabled",
    "backends.cuda.mem_efficient_sdp_enabled",
    "backends.cuda.math_sdp_enabled",
    "backends.cuda.cudnn_sdp_enabled",
    "backends.cuda.fp16_bf16_reduction_math_sdp_allowed",
    "backends.cuda.preferred_blas_library",
    "backends.cuda.preferred_linalg_library",
    "get_float32_matmul_precision",
    "get_default_dtype",
    "get_default_device",
    "are_deterministic_algorithms_enabled",
)


def snapshot() -> dict[str, str]:
    """Return the switches by their names below `torch`; a getter that fails is named by its error."""
    return {name: _read(name) for name in (*_ATTRIBUTES, *_GETTERS)}


def changed(before: dict[str, str]) -> list[str]:
    """Return `name: before -> now` for each switch that a snapshot no longer tells truly."""
    now = snapshot()
    return [f"{name}: {value} -> {now[name]}" for name, value in before.items() if now[name] != value]


def _read(name: str) -> str:
    try:
        with warnings.catch_warnings():  # some getters say that they are deprecated
            warnings.simplefilter("ignore")
            value = attrgetter(name)(torch)
            return str(value() if name in _GETTERS else value)
    except Exception as error:  # noqa: BLE001 - which versions raise what is the point
        return type(error).__name__
