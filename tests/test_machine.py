"""What a record says of the machine, with an NVML that is not there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runner import cards
from runner.judge import environment
from runner.judge.machine import Machine, State

UUID = "5b2b9da1-a2c7-8fa9-e19f-a7e9ea7fbc86"


class NotSupported(Exception):
    pass


class Nvml:
    """One GPU whose driver tells what this says; what is not defined here is not supported."""

    NVML_CLOCK_GRAPHICS, NVML_CLOCK_SM, NVML_CLOCK_MEM = range(3)

    def __init__(self, reasons: int = 0, pids: tuple[int, ...] = ()) -> None:
        self.reasons, self.pids = reasons, pids

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: object) -> None:
            raise NotSupported(name)

        return refuse

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != f"GPU-{UUID}":
            raise NotSupported("no such device")
        return "handle"

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.159.04"

    def nvmlDeviceGetClockInfo(self, _: str, kind: int) -> int:  # noqa: N802
        return {self.NVML_CLOCK_SM: 1755, self.NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetEnforcedPowerLimit(self, _: str) -> int:  # noqa: N802
        return 450_000

    def nvmlDeviceGetPowerManagementDefaultLimit(self, _: str) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetPersistenceMode(self, _: str) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetEccMode(self, _: str) -> list[int]:  # noqa: N802
        return [1, 0]

    def nvmlDeviceGetCurrentClocksEventReasons(self, _: str) -> int:  # noqa: N802
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, _: str) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self.pids]


def machine(monkeypatch: pytest.MonkeyPatch, nvml: object, uuid: str = UUID) -> Machine:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return Machine(uuid)


@pytest.mark.parametrize(
    ("reasons", "slowdown", "power_capped"),
    [
        (0x00, "", False),
        (0x01, "", False),  # idle
        (0x04, "", True),
        (0x08, "hardware slowdown", False),
        (0x44, "hardware thermal slowdown", True),
        (0xA0, "software thermal slowdown, power brake", False),
    ],
)
def test_a_power_cap_is_told_apart_from_what_spoils_a_round(
    reasons: int, slowdown: str, power_capped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = machine(monkeypatch, Nvml(reasons)).state()
    assert state == State(1755, reasons)
    assert (state.slowdown, state.power_capped) == (slowdown, power_capped)


@pytest.mark.parametrize(
    ("pids", "ours", "strangers"),
    [
        ((), (), 0),
        ((0,), (0,), 0),
        ((0, 41), (0, 41, 42), 0),
        ((0, 41, 99), (0, 41, 42), 1),  # one of ours does not compute yet, a stranger does
        ((4711, 4712), (0, 41), 0),  # pids of another namespace: as many as are ours
        ((4711, 4712, 4713), (0, 41), 1),
        ((4711,), (0, 41), 0),
    ],
)
def test_strangers_are_told_from_our_own_processes(
    pids: tuple[int, ...], ours: tuple[int, ...], strangers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 stands for this process."""
    found = machine(monkeypatch, Nvml(pids=tuple(pid or os.getpid() for pid in pids)))
    assert found.strangers({pid or os.getpid() for pid in ours}) == strangers


def test_what_a_device_does_not_support_costs_no_other_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine(monkeypatch, Nvml(0x44, (4711, os.getpid(), 12, 12))).facts() == {
        "nvml": "",
        "driver": "580.159.04",
        "power_limit_w": 450.0,
        "default_power_limit_w": 700.0,
        "sm_clock_mhz": 1755,
        "memory_clock_mhz": 2619,
        "persistence_mode": True,
        "ecc": True,
        "other_processes": [12, 4711],
        "slowdown": "hardware thermal slowdown",
        "power_capped": True,
    }


@pytest.mark.parametrize(
    ("nvml", "uuid", "silence"), [(None, UUID, "pynvml"), (Nvml(), "another", "no such device")]
)
def test_without_nvml_nothing_is_known_and_it_is_said_why(
    nvml: object, uuid: str, silence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = machine(monkeypatch, nvml, uuid)
    assert silent.state() == State(0)
    assert silent.strangers({os.getpid()}) == 0
    assert silence in silent.facts()["nvml"]
    assert len(silent.facts()) == 1


@pytest.mark.parametrize(
    ("variables", "ancestors", "found"),
    [
        ({}, {"bash", "python3"}, []),
        ({"CUDA_LAUNCH_BLOCKING": "0"}, set(), []),
        ({"CUDA_LAUNCH_BLOCKING": ""}, set(), []),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, set(), ["CUDA_LAUNCH_BLOCKING"]),
        ({"CUDA_INJECTION64_PATH": "/x/libtool.so"}, set(), ["CUDA_INJECTION64_PATH"]),
        ({}, {"ncu", "bash"}, ["ncu"]),
        ({}, {"compute-sanitizer"[:15]}, ["compute-sanitiz"]),
    ],
)
def test_what_forbids_ranking(variables: dict[str, str], ancestors: set[str], found: list[str]) -> None:
    assert environment.disturbances(variables, ancestors) == found


def test_ancestors_are_named_from_the_parent_up() -> None:
    parent = Path(f"/proc/{os.getppid()}/comm").read_text().removesuffix("\n")
    assert next(environment._ancestors()) == parent


def test_an_ancestor_may_have_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    own, ours = Path("/proc/self/comm"), os.getpid()
    monkeypatch.setattr(os, "getppid", lambda: ours)
    before = own.read_text()
    try:
        own.write_text("a) b (c")
        assert next(environment._ancestors()) == "a) b (c"
    finally:
        own.write_text(before)


def test_a_cpu_is_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    described = environment.describe("cpu")
    assert described["variables"] == {"CUDA_LAUNCH_BLOCKING": "1"}
    assert described["disturbances"] == []
    assert environment.warnings(described) == []


def test_a_gpu_is_described_by_nvml_before_cuda_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Watched(Nvml):
        def nvmlDeviceGetComputeRunningProcesses(self, _: str) -> list[SimpleNamespace]:  # noqa: N802
            asked.append("nvml")
            return [SimpleNamespace(pid=4711)]

    def properties(_: torch.device) -> SimpleNamespace:
        asked.append("cuda")
        return SimpleNamespace(
            name="NVIDIA H100 80GB HBM3",
            multi_processor_count=132,
            major=9,
            minor=0,
            L2_cache_size=52428800,
            total_memory=85017493504,
            shared_memory_per_multiprocessor=233472,
            uuid=UUID,
        )

    monkeypatch.setitem(sys.modules, "pynvml", Watched())
    monkeypatch.setattr("runner.gpu_lock.uuid_of", lambda _: UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    described = environment.describe("cuda:0")
    assert asked == ["nvml", "cuda"]
    assert described["capability"] == "9.0"
    assert described["driver"] == "580.159.04"
    assert environment.warnings(described) == [
        "not ranked: measured under CUDA_LAUNCH_BLOCKING",
        "cuda:0 is also computed on by process 4711: end it, or times are disturbed",
    ]


def test_a_silent_nvml_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine(monkeypatch, None).facts()
    (line,) = environment.warnings({"device": "cuda:0", "disturbances": [], **facts})
    assert "pynvml" in line


def test_a_device_that_is_not_as_its_card_says_is_told() -> None:
    card = cards.load_card("h100_sxm")
    facts = {"gpu": card.driver_names[0], "sms": card.sms, "l2_bytes": card.l2_bytes // 2}
    (line,) = environment.warnings({"device": "cuda:0", "disturbances": [], **facts})
    assert line.startswith("cuda:0 is not as the card h100_sxm says: bytes of L2")
    facts["l2_bytes"] = card.l2_bytes
    assert environment.warnings({"device": "cuda:0", "disturbances": [], **facts}) == []
