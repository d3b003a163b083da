"""What this machine can and cannot measure, and how to mend it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner import devices, diagnosis, doctor_device, doctor_host
from runner.diagnosis import MEND, OK, Diagnosis
from runner.load import ROOT

#: Two imports of torch, a context on the GPU and a probe take under 20 s; a cold disk may double it.
ANSWER_S = 120.0
_NODE = Path("/dev/nvidiactl")


@dataclass(frozen=True)
class Report:
    """The device, all that was looked at, and the facts behind it."""

    device: str
    found: tuple[Diagnosis, ...]
    facts: dict[str, Any]

    @property
    def ready(self) -> bool:
        """Whether nothing is missing that changes what can be measured on the device."""
        return all(one.state != MEND for one in self.found)


def examine(device: str, required: str, results: Path) -> Report:
    """Examine `cpu` or `cuda:N`; `required` is the isolation level that is enough."""
    facts = ask(device)
    found = [
        Diagnosis("python", OK, sys.version.split()[0]),
        *doctor_host.examine(device, results),
        *_hidden_gpu(device),
        *(doctor_device.examine(device, facts) if "environment" in facts else ()),
        *doctor_device.confinement(facts["isolation"], required),
    ]
    return Report(device, tuple(found), facts)


def ask(device: str) -> dict[str, Any]:
    """Have a process with torch look at a device; of one that fails, its last words are the error."""
    command = [sys.executable, "-m", "runner.judge.examine", device]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=ANSWER_S, check=False
        )
        facts: dict[str, Any] = json.loads(child.stdout)
    except subprocess.TimeoutExpired:
        return {"isolation": {"error": f"no answer from a process with torch in {ANSWER_S:.0f} s"}}
    except ValueError:
        last = (child.stderr.strip() or f"it ended with code {child.returncode}").splitlines()[-1]
        return {"isolation": {"error": f"no process with torch starts: {last}"}}
    return facts


def _hidden_gpu(device: str) -> Iterator[Diagnosis]:
    """Find a GPU that has a device node and that CUDA's driver does not count, which then goes unused."""
    if device == "cpu" and _NODE.exists() and not devices.count():
        remedy = "see that `nvidia-smi` works for this user, and that CUDA_VISIBLE_DEVICES names a GPU"
        yield Diagnosis("GPU", MEND, f"{_NODE} is here, but CUDA counts no GPU", remedy)


def render(report: Report, fmt: str) -> str:
    """Show a report as `table` or `json`."""
    if fmt == "json":
        found = [asdict(one) for one in report.found]
        return json.dumps(
            {"device": report.device, "ready": report.ready, "found": found, **report.facts}, indent=1
        )
    wrong = sum(one.state == MEND for one in report.found)
    does = "solutions are checked and nothing is timed" if report.device == "cpu" else "solutions are timed"
    verdict = f"{wrong} to mend" if wrong else f"ready: {does}"
    return "\n".join([*diagnosis.lines(report.found), f"{report.device}: {verdict}"])
