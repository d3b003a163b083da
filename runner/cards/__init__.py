"""Data sheets of GPUs: one file per card, and the directory listing is the registry.

Limits that all cards share stand here, the rest in each card's own file, every figure with its source. "The
guide" is the CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: The guide: the same for every compute capability from 8.0 to 12.x.
WARP_THREADS = 32
MAX_THREADS_PER_PROGRAM = 1024
MAX_REGISTERS_PER_THREAD = 255
#: What CUDA keeps of each program's shared memory (the tuning guides for Ampere, Ada, Hopper and Blackwell).
RESERVED_SHARED_BYTES = 1024

#: A driver keeps some memory for itself, and some cards keep more of it for error correction.
_MEMORY_SHARE = 0.9

KIB = 2**10
MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Card:
    """One GPU's data sheet.

    `chip` is Nsight Compute's name for it (`ncu --query-metrics --chip`). `driver_names` holds the exact
    names the driver reports; `shared_bytes_per_program` is the opt-in limit.
    A GB/s is 1e9 bytes a second; `l2_gb_per_s` is None unless a published figure covers reads and writes
    together. `peak_tflops` maps an arithmetic (`fp32` on CUDA cores; `tf32`, `fp16`, `bf16` on tensor cores)
    to 1e12 operations a second, dense, accumulated in fp32; `fp8`, and `fp16_acc16` that accumulates in
    fp16, are there where NVIDIA publishes them.
    """

    name: str
    title: str
    architecture: str
    chip: str
    driver_names: tuple[str, ...]
    compute_capability: tuple[int, int]
    sms: int
    max_warps_per_sm: int
    max_programs_per_sm: int
    registers_per_sm: int
    shared_bytes_per_sm: int
    shared_bytes_per_program: int
    l2_bytes: int
    memory_bytes: int
    dram_gb_per_s: float
    l2_gb_per_s: float | None
    peak_tflops: dict[str, float] = field(hash=False)

    @property
    def max_threads_per_sm(self) -> int:
        """Threads an SM holds at once."""
        return self.max_warps_per_sm * WARP_THREADS


def card_names() -> tuple[str, ...]:
    """List the cards, sorted: the files of this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load_card(name: str) -> Card:
    """Import one card by its name.

    Raises ValueError for any other, with the card whose driver gives that name, or the nearest ones.
    """
    names = card_names()
    if name not in names:
        worn = [known for known in names if name in load_card(known).driver_names]
        near = worn or difflib.get_close_matches(name.lower(), names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        raise ValueError(f"unknown card {name!r}: {hint}")
    card: Card = importlib.import_module(f"{__name__}.{name}").CARD
    return card


def counter_names(chip: str) -> frozenset[str]:
    """Return the base names of a chip's counters, as `ncu --query-metrics --chip` lists them."""
    file = Path(__file__).parent / f"ncu_metrics_{chip}.txt"
    return frozenset(file.read_text().split())


def find_card(folder: str) -> Card | None:
    """Find the card of a folder of results: `NAME`, or `NAME-128sm` for a run on 128 of its SMs."""
    name, _, part = folder.partition("-")
    if name not in card_names() or (part and not re.fullmatch(r"[1-9]\d*sm", part)):
        return None
    card = load_card(name)
    return dataclasses.replace(card, sms=int(part.removesuffix("sm"))) if part else card


def disagreements(card: Card, device: Mapping[str, Any]) -> list[str]:
    """Say where what a driver tells of a device is not what its card says: `bytes of L2 1024, not 2048`.

    `device` has names and units of a record's environment; what it lacks is not compared.
    """
    told = {
        "sms": ("SMs", card.sms),
        "l2_bytes": ("bytes of L2", card.l2_bytes),
        "shared_bytes_per_sm": ("bytes of shared memory per SM", card.shared_bytes_per_sm),
        "capability": ("capability", "{}.{}".format(*card.compute_capability)),
    }
    found = [
        f"{what} {device[name]}, not {value}"
        for name, (what, value) in told.items()
        if name in device and device[name] != value
    ]
    memory_bytes, expected = device.get("memory_bytes", card.memory_bytes), card.memory_bytes
    if not _MEMORY_SHARE * expected <= memory_bytes <= expected / _MEMORY_SHARE:
        found.append(f"bytes of memory {memory_bytes}, not {expected}")
    return found


def card_for_device(driver_name: str, sms: int) -> Card | None:
    """Find the card of a device by the driver's exact name and its SM count.

    Part of a name is not enough (a laptop 4090 has 76 SMs), and neither is the whole name without the count
    (a partition has only some of the SMs).
    """
    for card in map(load_card, card_names()):
        if driver_name in card.driver_names and sms == card.sms:
            return card
    return None
