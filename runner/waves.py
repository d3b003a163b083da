"""A launch and a card -> programs per SM, waves, tail efficiency; no GPU needed.

Registers and shared memory must be those of the card's own architecture: one Triton source compiles to
other counts for another. Thread block clusters and extra block barriers are not modelled.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.cards import (
    MAX_REGISTERS_PER_THREAD,
    MAX_THREADS_PER_PROGRAM,
    RESERVED_SHARED_BYTES,
    WARP_THREADS,
    Card,
)
from runner.decode import Malformed, decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from runner.schema import Launch

#: An SM's four partitions hold a quarter of the registers each; a warp lives in one of them.
PARTITIONS = 4
#: Registers are given to a warp, and shared memory to a program, in units of this size.
REGISTER_UNIT = 256
SHARED_UNIT_BYTES = 128
#: Labels of the sweep `waves`: TILE@EDGEw-ROLE.
_LABEL = re.compile(r"((\d{1,4})x(\d{1,4})@[\d.]{1,8}w)-(\w+)")


@dataclass(frozen=True)
class Occupancy:
    """How a grid fills a card.

    `limits` says how many programs each resource alone would leave on an SM, `limiters` which of them bind;
    with `programs_per_sm` 0 the launch does not fit the card. `waves` counts rounds of all slots. Two
    efficiencies bracket the cost of the last, partly filled round, each the mean share of the machine in
    use: `eta_slot` if programs on one SM do not slow each other, `eta_sm` if they share its throughput.
    They are None where nothing runs, `waves` where nothing fits.
    """

    programs: int
    programs_per_sm: int
    warps_per_sm: int
    limits: dict[str, int]
    limiters: tuple[str, ...]
    waves: float | None
    eta_slot: float | None
    eta_sm: float | None

    @property
    def sms(self) -> int | None:
        """The SMs of the card, as `waves` counts them; None where nothing runs."""
        return round(self.programs / (self.waves * self.programs_per_sm)) if self.waves else None

    @property
    def tail(self) -> str:
        """The two efficiencies in per cent as one column, `24-97%`; a dash where nothing runs."""
        if self.eta_slot is None or self.eta_sm is None:
            return "-"
        low, high = f"{100 * self.eta_slot:.0f}", f"{100 * self.eta_sm:.0f}"
        return f"{low}%" if low == high else f"{low}-{high}%"


def occupancy(threads: int, registers: int, shared_bytes: int, grid: Sequence[int], card: Card) -> Occupancy:
    """Place a grid of programs, each `threads` wide, on a card.

    `registers` is per thread, `shared_bytes` static plus dynamic per program. The rules are those of
    NVIDIA's cuda_occupancy.h, with the whole shared memory of an SM available to programs. Raises
    ValueError for fewer than one thread or register, or a negative size.
    """
    if min(threads, registers) < 1 or min(shared_bytes, *grid, 0) < 0:
        raise ValueError(f"not a launch: {threads=}, {registers=}, {shared_bytes=}, {grid=}")
    warps = _units(threads, WARP_THREADS)
    limits = {
        "warps": card.max_warps_per_sm // warps if threads <= MAX_THREADS_PER_PROGRAM else 0,
        "programs": card.max_programs_per_sm,
        "registers": _register_limit(warps, registers, card),
        "shared": _shared_limit(shared_bytes, card),
    }
    resident = min(limits.values())
    programs = math.prod(grid)
    slots = card.sms * resident
    runs = programs > 0 and slots > 0
    return Occupancy(
        programs=programs,
        programs_per_sm=resident,
        warps_per_sm=resident * warps,
        limits=limits,
        limiters=tuple(name for name, limit in limits.items() if limit == resident),
        waves=programs / slots if slots else None,
        eta_slot=efficiency(programs, slots) if runs else None,
        eta_sm=efficiency(programs, card.sms) if runs else None,
    )


def launch_occupancy(launch: Launch, card: Card) -> Occupancy | None:
    """Place a recorded launch on a card; None where it has no resources, as in the interpreter."""
    if launch.registers is None or launch.shared_bytes is None:
        return None
    threads = launch.num_warps * WARP_THREADS
    return occupancy(threads, launch.registers, launch.shared_bytes, launch.grid, card)


@dataclass(frozen=True)
class Role:
    """What a label of the sweep `waves` says: `128x64@2w-over` is a role on the stairs `128x64@2w`.

    The canonical tile is `block_m` output pixels by `block_n` channels; a kernel may have another.
    """

    stairs: str
    name: str
    block_m: int
    block_n: int


def role(label: str) -> Role | None:
    """Read a label of the sweep `waves`; None for one that says nothing of a wave."""
    found = _LABEL.fullmatch(label)
    return Role(found[1], found[4], int(found[2]), int(found[3])) if found else None


def recorded(launches: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Occupancy]]:
    """Yield kernel and occupancy of a record's launches that run on its card.

    What stands there may be any JSON: what is no occupancy, or contradicts itself, is passed over.
    """
    for launch in launches:
        with contextlib.suppress(Malformed):
            # a record that was just made holds tuples where one that was read holds lists
            one: Occupancy = decode(Occupancy, json.loads(json.dumps(launch)))
            if _is_sound(one):
                yield str(launch.get("kernel", "")), one


def _is_sound(one: Occupancy) -> bool:
    if not 0 < one.programs < 2**63 or not 0 < one.programs_per_sm < 2**31 or not one.waves:
        return False
    # `sms` rounds this: a number of waves beside all reason is of no card
    if not 0.5 < one.programs / (one.waves * one.programs_per_sm) < 2**31:
        return False
    return one.eta_slot is not None and one.eta_sm is not None and 0 < one.eta_slot <= one.eta_sm <= 1


def largest(launches: Iterable[dict[str, Any]]) -> Occupancy | None:
    """Return the occupancy of a record's largest grid, or None where none is known."""
    return max((one for _, one in recorded(launches)), key=lambda one: one.programs, default=None)


def efficiency(programs: int, slots: int) -> float:
    """Return the mean share of `slots` in use when at least one program runs, in rounds of `slots`."""
    return programs / (slots * _units(programs, slots))


def _register_limit(warps: int, registers: int, card: Card) -> int:
    if registers > MAX_REGISTERS_PER_THREAD:
        return 0
    registers_per_warp = _units(registers * WARP_THREADS, REGISTER_UNIT) * REGISTER_UNIT
    warps_per_partition = card.registers_per_sm // PARTITIONS // registers_per_warp
    return warps_per_partition * PARTITIONS // warps


def _shared_limit(shared_bytes: int, card: Card) -> int:
    if shared_bytes > card.shared_bytes_per_program:
        return 0
    allocated = _units(shared_bytes + RESERVED_SHARED_BYTES, SHARED_UNIT_BYTES) * SHARED_UNIT_BYTES
    return card.shared_bytes_per_sm // allocated


def _units(amount: int, unit: int) -> int:
    return -(-amount // unit)
