"""What `doctor` needs torch for: a device as a judge sees it, a sandbox tried from inside; one JSON line.

`{"busy": WHY, "cuda": VERSION, "environment": {...}, "isolation": {...}}`; what failed is `{"error": WHY}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from runner import gpu_lock
from runner.contestant import libc
from runner.judge import environment
from runner.judge.bench import Limits
from runner.judge.contestants import Contestant
from runner.judge.zygotes import Zygotes


def examine(device: str) -> dict[str, Any]:
    """Look at a device, holding it as a judge would, and at what a contestant there is kept from."""
    busy = ""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(gpu_lock.hold(gpu_lock.uuid_of(device), device))
        except gpu_lock.DeviceBusy as error:
            busy = str(error)
        return {
            "busy": busy,
            "cuda": torch.version.cuda or "",
            "environment": _attempt(environment.describe, device),
            # a contestant on the GPU would compute beside what is being measured there
            "isolation": _attempt(isolation, "cpu" if busy else device),
        }


def isolation(device: str) -> dict[str, Any]:
    """Fork one contestant, and the probe before it, as a judge does for its first cell."""
    with (
        contextlib.closing(Zygotes(device)) as zygotes,
        contextlib.closing(Contestant(zygotes, Limits().memory_bytes)) as contestant,
    ):
        return contestant.isolation


def _attempt(look: Callable[[str], dict[str, Any]], device: str) -> dict[str, Any]:
    try:
        return look(device)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a machine is the answer
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def main() -> None:
    """Examine the device named on the command line."""
    libc.die_with_parent()
    libc.prctl(libc.PR_SET_DUMPABLE)  # as the judge does: the probe tries to look into this process
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(examine(sys.argv[1])), file=out, flush=True)


if __name__ == "__main__":
    main()
