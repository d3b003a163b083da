"""The judge's process: requests on standard input, answers on standard output, one JSON line each.

`{"problem": PATH, "name": NAME, "solution": {...}, "cell": {...}, "baselines": [...], "limits": {...}}`
is answered by `{"ruling": {...}, "entropy": HEX, "lost": WHY}`; with a `"rival": {...}` in the place of
baselines the two solutions are timed against each other. `lost` is empty unless the GPU answers the judge
no more, which then ends. The first line out is `{"environment": {...}}`, `{"busy": WHY}` where another
process has the GPU, or `{"unusable": WHY}`.
Both ends are trusted; what contestants print never comes near these descriptors.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

import torch

from runner import gpu_lock, load
from runner.contestant import libc
from runner.contestant.sandbox import OPEN_FILES
from runner.judge import ceilings, environment
from runner.judge.bench import Limits
from runner.judge.referee import Referee, Ruling
from runner.judge.reference import ProblemFault
from runner.schema import PROBLEM, Cell, Failed, Status, to_json


def answer(referee: Referee, request: dict[str, Any]) -> dict[str, Any]:
    """Rule on one request; the harness's own failures are rulings too."""
    entropy = os.urandom(16)
    problem = load.Problem(
        request["name"], Path(request["problem"]), load.read_source(Path(request["problem"]))
    )
    solution = _solution(request["solution"])
    shape = {k: tuple(v) if isinstance(v, list) else v for k, v in request["cell"].pop("shape").items()}
    cell = Cell(shape=shape, **request["cell"])
    referee.limits = Limits(**request["limits"])
    try:
        if "rival" in request:
            ruling = referee.compare(problem, (solution, _solution(request["rival"])), cell, entropy)
        else:
            ruling = referee.rule(problem, solution, cell, tuple(request["baselines"]), entropy)
    except (ProblemFault, load.BadInput) as fault:
        ruling = Ruling(Failed(Status.ERROR, PROBLEM, str(fault)))
    except torch.OutOfMemoryError as error:
        reason = "the judge ran out of device memory: the plan has room, so others may hold it"
        ruling = Ruling(Failed(Status.ERROR, "judge", reason, str(error)[:500]))
    except Exception as error:  # noqa: BLE001 - a fault of the harness is an answer, not the end of the sweep
        ruling = Ruling(
            Failed(Status.ERROR, "judge", f"{type(error).__name__}: {error}", traceback.format_exc()[-2000:])
        )
    lost = "" if ruling.timed is not None else _lost(referee.device)
    if lost:
        # no solution can do that to another process's context: whatever was found is the machine's doing
        detail = ruling.failed.detail if ruling.failed else ""
        ruling = Ruling(Failed(Status.ERROR, "judge", f"the GPU is lost: {lost}", detail))
    return {"ruling": to_json(ruling), "entropy": referee.entropy_of(entropy), "lost": lost}


def _lost(device: torch.device) -> str:
    """Why this process can use its GPU no more, or nothing."""
    if device.type == "cpu":
        return ""
    try:
        torch.ones(1, device=device).item()
    except torch.OutOfMemoryError:
        return ""
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""


def _solution(text: dict[str, str]) -> load.Solution:
    return load.Solution(text["name"], Path(text["path"]), text["source"])


def _raise_open_files() -> None:
    """Have more descriptors than a contestant may park on its way to nobody.

    The kernel counts a user's descriptors in flight, over all processes, and lets nobody send another whose
    limit is lower than that (unix(7), ETOOMANYREFS).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 64 * OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, 64 * OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def main() -> None:
    """Serve requests until standard input ends."""
    libc.die_with_parent()
    libc.prctl(libc.PR_SET_DUMPABLE)
    _raise_open_files()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing but answers may reach the command line
    device = sys.argv[1]
    try:
        with gpu_lock.hold(gpu_lock.uuid_of(device), device):
            serve(device, out)
    except BrokenPipeError:  # whoever asked is gone, by Ctrl-C perhaps, and has said so
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # for what is left to flush
    except gpu_lock.DeviceBusy as busy:
        print(json.dumps({"busy": str(busy)}), file=out)


def serve(device: str, out: TextIO) -> None:
    """Say what the device is, then answer request after request."""
    why = environment.unusable(device)
    if why:
        print(json.dumps({"unusable": why}), file=out)
        return
    torch.set_num_threads(1 if device != "cpu" else max(1, torch.get_num_threads()))
    described = environment.describe(device)
    sys.stderr.writelines(f"warning: {line}\n" for line in environment.warnings(described))
    if device != "cpu":
        torch.cuda.set_device(torch.device(device))
        described["ceilings"] = ceilings.measure(torch.device(device))
    gc.freeze()  # what is there now stays: a collection before each measurement need not look through it
    referee = Referee(device, Limits())
    try:
        print(json.dumps({"environment": described}), file=out)
        for line in sys.stdin:
            answered = answer(referee, json.loads(line))
            print(json.dumps(answered), file=out)
            if answered["lost"]:
                sys.exit(f"the GPU is lost: {answered['lost']}")
    finally:
        referee.close()


if __name__ == "__main__":
    main()
