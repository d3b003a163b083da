"""What `doctor` says of machines: of this one by running it, of others by their facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import cards, cli, devices, diagnosis, doctor, doctor_device, doctor_host, ncu
from runner.commands import exits
from runner.diagnosis import MEND, NOTE, OK, Diagnosis
from runner.schema import ISOLATION

H100 = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "sms": 132,
    "capability": "9.0",
    "l2_bytes": 52428800,
    "memory_bytes": 85017493504,
    "shared_bytes_per_sm": 233472,
    "cuda": "13.0",
    "nvml": "",
    "driver": "580.159.04",
    "sm_clock_mhz": 1980,
    "max_sm_clock_mhz": 1980,
    "power_limit_w": 700.0,
    "default_power_limit_w": 700.0,
    "persistence_mode": True,
    "mig": False,
    "other_processes": [],
    "slowdown": "",
    "power_capped": False,
    "variables": {},
    "disturbances": [],
}
FULL = {"level": "full", "layers": ["landlock-7"], "missing": []}


def examined(busy: str = "", **differing: object) -> list[Diagnosis]:
    facts = {"busy": busy, "cuda": "13.0", "environment": H100 | differing, "isolation": FULL}
    return list(doctor_device.examine("cuda:0", facts))


def test_a_gpu_as_it_should_be_has_nothing_to_mend() -> None:
    assert {one.state for one in examined()} == {OK}


#: What differs from that GPU -> the subject, its state and a word of the finding or remedy.
ILLS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "unknown card": ({"gpu": "NVIDIA GeForce RTX 4090 Laptop GPU"}, "device", NOTE, "runner/cards"),
    "a partition": ({"sms": 66}, "device", MEND, "SMs 66, not 132"),
    "less L2": ({"l2_bytes": 2**20}, "device", MEND, "bytes of L2 1048576"),
    "less memory": ({"memory_bytes": 2**36}, "device", MEND, "bytes of memory"),
    "less shared memory": ({"shared_bytes_per_sm": 2**16}, "device", MEND, "shared memory per SM 65536"),
    "another capability": ({"capability": "8.9"}, "device", MEND, "8.9, not 9.0"),
    "no NVML": ({"nvml": "NVML Shared Library Not Found"}, "NVML", NOTE, "nvidia-ml-py"),
    "hot": ({"slowdown": "hardware thermal slowdown"}, "clocks", MEND, "thermal"),
    "a low limit": ({"power_limit_w": 450.0}, "power", NOTE, "nvidia-smi -pl 700"),
    "at its limit": ({"power_capped": True}, "power", NOTE, "reached"),
    "no persistence": ({"persistence_mode": False}, "persistence", NOTE, "nvidia-smi -pm 1"),
    "MIG": ({"mig": True}, "MIG", NOTE, "-mig 0"),
    "a stranger": ({"other_processes": [17, 4711]}, "processes", MEND, "17, 4711"),
    "another run": ({"busy": "cuda:0 is in use by process 7: wait"}, "lock", MEND, "process 7"),
    "blocking": ({"disturbances": ["CUDA_LAUNCH_BLOCKING"]}, "disturbance", MEND, "unset"),
    "ncu": ({"disturbances": ["ncu"]}, "disturbance", MEND, "nothing is ranked"),
    "a variable": ({"variables": {"NVIDIA_TF32_OVERRIDE": "0"}}, "variables", NOTE, "TF32_OVERRIDE=0"),
    "a CPU build": ({"error": "AssertionError: not compiled with CUDA"}, "torch", MEND, "nvidia-smi"),
}


@pytest.mark.parametrize("ill", ILLS)
def test_each_ill_has_one_diagnosis(ill: str) -> None:
    differing, subject, state, word = ILLS[ill]
    (found,) = (one for one in examined(**differing) if one.state != OK)
    assert (found.subject, found.state) == (subject, state)
    assert word in f"{found.finding} {found.remedy}"


def test_what_a_driver_does_not_tell_is_no_ill() -> None:
    told = ("driver", "nvml", "slowdown", "power_capped", "variables", "disturbances", "cuda")
    known = {k: v for k, v in H100.items() if k in (*told, "gpu", "sms", "capability") or "bytes" in k}
    facts = {"busy": "", "cuda": "13.0", "environment": known, "isolation": FULL}
    assert {one.state for one in doctor_device.examine("cuda:0", facts)} == {OK}


def test_a_cpu_build_of_torch_is_named_where_a_gpu_is_asked_for() -> None:
    facts = {"busy": "", "cuda": "", "environment": {"error": "AssertionError"}, "isolation": FULL}
    (found,) = doctor_device.examine("cuda:0", facts)
    assert "CPU build" in found.remedy


@given(st.sampled_from(cards.card_names()), st.floats(0.93, 1.0))
def test_a_card_agrees_with_its_own_sheet(name: str, left: float) -> None:
    sheet = cards.load_card(name)
    known = {
        "gpu": sheet.driver_names[0],
        "sms": sheet.sms,
        "capability": "{}.{}".format(*sheet.compute_capability),
        "l2_bytes": sheet.l2_bytes,
        "memory_bytes": int(left * sheet.memory_bytes),
        "shared_bytes_per_sm": sheet.shared_bytes_per_sm,
        "cuda": "13.0",
    }
    assert doctor_device.card(known).state == OK
    assert doctor_device.card(known | {"sms": sheet.sms - 1}).state == MEND


@pytest.mark.parametrize("level", ISOLATION)
@pytest.mark.parametrize("required", ISOLATION)
def test_isolation_below_what_is_required_is_to_be_mended(level: str, required: str) -> None:
    missing = [] if level == "full" else ["landlock_scope: needs ABI 6", "probe: read its maps"]
    found = list(doctor_device.confinement({"level": level, "layers": [], "missing": missing}, required))
    low = ISOLATION.index(level) < ISOLATION.index(required)
    assert (MEND in {one.state for one in found}) == low
    assert [one.finding for one in found] == [level, *missing]
    assert all(one.remedy for one in found[1:])


def test_every_layer_of_the_sandbox_has_a_remedy() -> None:
    from runner.contestant import landlock, sandbox

    layers = {*sandbox.CORE_LAYERS, "clean_environ", "namespaces", "probe"}
    layers |= {f"landlock_{name}" for name in landlock.CLOSED_BY_ABI}
    layers -= {"no_new_privs"}  # no kernel that runs torch lacks it
    assert layers == doctor_device._SANDBOX.keys()


@pytest.mark.parametrize(
    ("installed", "state"),
    [("2.10.1", MEND), ("2.11.0+cu130", OK), ("2.13.0+cpu", OK), ("2.14.0", MEND), (None, MEND)],
)
def test_packages_are_held_against_their_range(
    installed: str | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise doctor_host.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(doctor_host.metadata, "version", version)
    found, *_ = doctor_host.packages(["torch>=2.11,<2.14; platform_system == 'Linux'"])
    assert found.state == state
    assert (found.remedy == 'pip install "torch>=2.11,<2.14"') == (state == MEND)


def test_a_place_that_keeps_no_records_is_to_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert {one.state for one in doctor_host.folders(tmp_path / "new" / "results")} == {OK}
    assert next(doctor_host.folders(tmp_path / "file")).state == MEND
    monkeypatch.setattr(doctor_host.os, "access", lambda *_: False)
    assert next(doctor_host.folders(tmp_path)).state == MEND
    monkeypatch.setattr(doctor_host, "MIN_FREE_BYTES", 2**62)
    assert {one.state for one in doctor_host.folders(tmp_path)} == {MEND}


@pytest.mark.parametrize(
    ("admin_only", "capabilities", "forbidden"),
    [(1, 0, True), (0, 0, False), (1, 1 << 21, False), (1, 1 << 38, False), (1, 1 << 20, True)],
)
def test_who_may_count(admin_only: int, capabilities: int, forbidden: bool) -> None:
    driver = f"ResmanDebugLevel: 4294967295\nRmProfilingAdminOnly: {admin_only}\nTCEBypassMode: 0\n"
    status = f"Name:\tpython\nCapPrm:\tffffffffffffffff\nCapEff:\t{capabilities:016x}\n"
    assert doctor_host.counting_forbidden(driver, status) is forbidden
    assert not doctor_host.counting_forbidden("", status)


def test_tools_that_are_absent_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor_host.glob, "glob", lambda _: [])
    assert doctor_host.compiler().state == MEND
    assert doctor_host.nvcc().state == NOTE
    assert doctor_host.counters(None) == Diagnosis(
        "counters", NOTE, "no ncu: `profile` gives no counters", ncu.GET_IT
    )


def test_a_gpu_that_nobody_lists_is_found_by_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "count", lambda: 0)
    monkeypatch.setattr(doctor, "_NODE", tmp_path)
    (found,) = doctor._hidden_gpu("cpu")
    assert found.state == MEND
    monkeypatch.setattr(doctor, "_NODE", tmp_path / "absent")
    assert list(doctor._hidden_gpu("cpu")) == []


@pytest.mark.parametrize("script", ["echo no json", "echo 'ImportError: no torch' >&2; exit 1"])
def test_a_torch_that_does_not_start_is_a_diagnosis(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(broken))
    report = doctor.examine("cpu", "full", tmp_path)
    (found,) = (one for one in report.found if one.state == MEND)
    assert "no process with torch starts" in found.finding
    assert not report.ready


def test_a_remedy_stands_below_its_finding() -> None:
    found = [Diagnosis("a", OK, "fine"), Diagnosis("longer", MEND, "broken", "mend it")]
    assert diagnosis.lines(found) == [
        "ok    a       fine",
        "mend  longer  broken",
        "              -> mend it",
    ]


def test_this_machine_checks_and_times_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = cli.main(["doctor", "--device", "cpu", "--format", "json", "--results", str(tmp_path / "results")])
    said = json.loads(capsys.readouterr().out)
    assert said["isolation"]["level"] in ISOLATION
    assert (code == exits.EXIT_DONE) == said["ready"]
    assert "nothing is timed" in next(one["finding"] for one in said["found"] if one["subject"] == "device")
    assert said["environment"]["device"] == "cpu"
    assert not (tmp_path / "results").exists()


def test_a_device_that_is_not_there_is_no_diagnosis(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "count", lambda: 0)
    assert cli.main(["doctor", "--device", "cuda:0"]) == exits.EXIT_DEVICE
    assert "no CUDA device" in capsys.readouterr().err
