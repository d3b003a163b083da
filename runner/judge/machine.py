"""The state of the GPU while it is measured, as the driver tells it through NVML."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

#: Clock event reasons that make a round worthless; a power cap under load is no such reason.
_SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
_POWER_CAP = 0x04
#: A clock below this share of the median so far belongs to another state of the machine.
MIN_CLOCK_SHARE = 0.9

#: What a record says once: a fact, and how NVML is asked for it.
_FACTS: dict[str, Callable[[Any, Any], Any]] = {
    "driver": lambda nvml, _: nvml.nvmlSystemGetDriverVersion(),
    "power_limit_w": lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
    "default_power_limit_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerManagementDefaultLimit(gpu) / 1000,
    "sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "max_sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "application_sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetApplicationsClock(
        gpu, nvml.NVML_CLOCK_GRAPHICS
    ),
    "memory_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "max_memory_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "persistence_mode": lambda nvml, gpu: bool(nvml.nvmlDeviceGetPersistenceMode(gpu)),
    "ecc": lambda nvml, gpu: bool(nvml.nvmlDeviceGetEccMode(gpu)[0]),
    "mig": lambda nvml, gpu: bool(nvml.nvmlDeviceGetMigMode(gpu)[0]),
    "other_processes": lambda nvml, gpu: sorted(_computing(nvml, gpu) - {os.getpid()}),
}


@dataclass(frozen=True)
class State:
    """The SM clock, 0 where it is not known, and NVML's reasons for it, a bit each."""

    sm_clock_mhz: int
    reasons: int = 0

    @property
    def slowdown(self) -> str:
        """Why the clocks are held down so that a round is worthless, or ''."""
        return ", ".join(name for bit, name in _SLOWDOWNS.items() if self.reasons & bit)

    @property
    def power_capped(self) -> bool:
        """Whether the power limit holds the clocks down."""
        return bool(self.reasons & _POWER_CAP)


class Machine:
    """Reads one device; where NVML is missing or forbidden nothing is known and nothing is guessed.

    `uuid` is written without the prefix `GPU-`. `silence` is why NVML tells nothing, or ''.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml: Any = None
        self.silence = ""
        try:
            import pynvml  # noqa: PLC0415 - only where there is a GPU

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except Exception as error:  # noqa: BLE001 - no module, no library, no driver, no permission
            self.silence = str(error)
        else:
            self._nvml = pynvml
            self.state()

    def state(self) -> State:
        """Read clock and reasons; takes tens of microseconds of the host."""
        if self._nvml is None:
            return State(0)
        try:
            clock_mhz = int(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))
            reasons = int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle))
        except Exception as error:  # noqa: BLE001 - a driver that does not tell is not asked again
            self._nvml, self.silence = None, str(error)
            return State(0)
        return State(clock_mhz, reasons)

    def strangers(self, ours: Collection[int]) -> int:
        """Count the processes that compute on the device beside `ours`, pids with this process's among them.

        In a container NVML may tell pids of another namespace, which can only be counted.
        """
        pids: set[int] = set()
        if self._nvml is not None:
            with contextlib.suppress(Exception):  # a driver may not tell
                pids = _computing(self._nvml, self._handle)
        return len(pids.difference(ours)) if os.getpid() in pids else max(0, len(pids) - len(ours))

    def facts(self) -> dict[str, Any]:
        """Return what a record says once per judge: W, MHz, modes, and pids that compute on the device.

        Ask before this process or a child of it computes there: a container may see pids of another
        namespace than its own. What a device does not tell is absent (a GeForce has no ECC to speak of).
        """
        if self._nvml is None:
            return {"nvml": self.silence}
        found: dict[str, Any] = {"nvml": ""}
        for name, ask in _FACTS.items():
            with contextlib.suppress(Exception):  # each on its own: one that is not supported costs no other
                found[name] = ask(self._nvml, self._handle)
        state = self.state()
        return found | {"slowdown": state.slowdown, "power_capped": state.power_capped}


def _computing(nvml: Any, gpu: Any) -> set[int]:
    return {one.pid for one in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)}
