"""What `doctor` reads in the facts of a device: card, driver, clocks, company, a contestant's confinement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runner import cards
from runner.diagnosis import MEND, NOTE, OK, Diagnosis
from runner.schema import ISOLATION

Facts = dict[str, Any]

_SANDBOX = {
    "landlock": "run Linux 5.19 or later with `landlock` in /sys/kernel/security/lsm; a container's seccomp "
    "profile must allow its three calls",
    "landlock_truncate": "run Linux 6.2 or later",
    "landlock_tcp": "run Linux 6.7 or later",
    "landlock_ioctl": "run Linux 6.10 or later",
    "landlock_scope": "run Linux 6.12 or later",
    "seccomp": "run a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or arm64",
    "namespaces": "allow user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns=0), or unshare in the container's seccomp profile",
    "rlimits": "raise the hard limits of files and processes",
    "no_caps": "do not run as a root that may not drop capabilities",
    "single_thread": "remove what starts threads at import (sitecustomize, .pth files)",
    "clean_environ": "remove what sets variables at the start of Python (sitecustomize, .pth files)",
    "probe": "a contestant was not refused this: run a newer kernel, and in no privileged container",
}
_DISTURBANCES = {
    "CUDA_LAUNCH_BLOCKING": "unset it: every launch waits for the device",
    "CUDA_INJECTION64_PATH": "unset it, or leave the profiler that has set it",
}


def examine(device: str, facts: Facts) -> Iterator[Diagnosis]:
    """Diagnose a device by what a process with torch has found."""
    known = facts["environment"]
    if "error" in known:
        yield Diagnosis("torch", MEND, known["error"], _remedy(facts["cuda"], device))
    elif device == "cpu":
        yield Diagnosis("device", NOTE, "cpu: Triton's interpreter checks, and nothing is timed here")
    else:
        yield card(known)
        yield from _state(known)
        yield from _company(known, facts["busy"])
    for name in known.get("disturbances", []):
        remedy = _DISTURBANCES.get(name, "run without it: it is attached to this process")
        yield Diagnosis("disturbance", MEND, f"{name}: nothing is ranked", remedy)
    if known.get("variables"):
        told = ", ".join(f"{name}={value}" for name, value in known["variables"].items())
        yield Diagnosis("variables", NOTE, f"{told}: recorded, for they can move numbers")


def _remedy(cuda: str, device: str) -> str:
    if device != "cpu" and not cuda:
        return "this is a CPU build of torch: install one for CUDA (pip install torch), or say --device cpu"
    return "see that `nvidia-smi` works for this user and that torch's CUDA is one of its driver's"


def card(known: Facts) -> Diagnosis:
    """Hold a device against its data sheet."""
    name = known["gpu"]
    sheets = [one for one in map(cards.load_card, cards.card_names()) if name in one.driver_names]
    if not sheets:
        add = "add its data sheet to runner/cards for roofline, waves and a board"
        return Diagnosis("device", NOTE, f"{name}, {known['sms']} SMs: no card is known by that name", add)
    differences = {sheet.name: cards.disagreements(sheet, known) for sheet in sheets}
    best = min(differences, key=lambda sheet: len(differences[sheet]))
    if differences[best]:
        found = f"{name} differs from the card {best}: {'; '.join(differences[best])}"
        return Diagnosis(
            "device", MEND, found, "a partition (MIG) or another model gets no times of this card"
        )
    return Diagnosis("device", OK, f"{name}, as the card {best} says; CUDA {known['cuda']}")


def _state(known: Facts) -> Iterator[Diagnosis]:
    """Driver, clocks and power; where NVML is silent only that."""
    if known.get("nvml"):
        remedy = "pip install nvidia-ml-py, beside a driver with libnvidia-ml.so.1"
        yield Diagnosis("NVML", NOTE, f"{known['nvml']}: no clocks, no other processes", remedy)
        return
    yield Diagnosis("driver", OK, known["driver"])
    clock, most = known.get("sm_clock_mhz", "?"), known.get("max_sm_clock_mhz", "?")
    if known["slowdown"]:
        remedy = "cool it, or give it power: rounds under it do not count"
        yield Diagnosis("clocks", MEND, f"{clock} of {most} MHz: {known['slowdown']}", remedy)
    else:
        yield Diagnosis("clocks", OK, f"{clock} of {most} MHz now")
    limit, default = known.get("power_limit_w"), known.get("default_power_limit_w")
    capped = ", reached now" if known["power_capped"] else ""
    if limit is not None and default is not None and limit < default:
        raise_it = f"nvidia-smi -pl {default:.0f}, or compare with records of the same limit alone"
        yield Diagnosis("power", NOTE, f"limited to {limit:.0f} of {default:.0f} W{capped}", raise_it)
    elif limit is not None:
        yield Diagnosis("power", NOTE if capped else OK, f"{limit:.0f} W{capped}")
    if known.get("persistence_mode") is False:
        yield Diagnosis("persistence", NOTE, "off: each run wakes the driver", "nvidia-smi -pm 1")
    if known.get("mig"):
        yield Diagnosis("MIG", NOTE, "on: neighbours share clocks and power", "nvidia-smi -mig 0")


def _company(known: Facts, busy: str) -> Iterator[Diagnosis]:
    """Who else is there: another run, or a stranger."""
    if busy:
        found, _, remedy = busy.partition(": ")
        yield Diagnosis("lock", MEND, found, remedy)
        return
    yield Diagnosis("lock", OK, "free")
    if others := known.get("other_processes"):
        pids = ", ".join(map(str, others))
        yield Diagnosis("processes", MEND, f"{pids} compute on it too", "end them: times are disturbed")


def confinement(isolation: Facts, required: str) -> Iterator[Diagnosis]:
    """Say which level a contestant reached, and what each layer that is missing takes."""
    if "error" in isolation:
        yield Diagnosis("isolation", MEND, isolation["error"], "no contestant starts: see the line above")
        return
    level = isolation["level"]
    state = OK if level == "full" else NOTE if ISOLATION.index(level) >= ISOLATION.index(required) else MEND
    yield Diagnosis("isolation", state, level)
    for missing in isolation["missing"]:
        layer = missing.partition(":")[0]
        yield Diagnosis("isolation", NOTE if state == OK else state, missing, _SANDBOX.get(layer, ""))
