"""The judge's process: requests on standard input, answers on standard output, one JSON line each.

`{"problem": PATH, "name": NAME, "solution": {...}, "cell": {...}, "baselines": [...], "limits": {...}}`
is answered by `{"ruling": {...}, "entropy": HEX}`. The first line out is `{"environment": {...}}`.
Both ends are trusted; what contestants print never comes near these descriptors.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from runner import load
from runner.contestant import libc
from runner.judge import environment
from runner.judge.bench import Limits
from runner.judge.referee import Referee, Ruling
from runner.schema import Cell, Failed, Status, to_json


def answer(referee: Referee, request: dict[str, Any]) -> dict[str, Any]:
    """Rule on one request; the harness's own failures are rulings too."""
    entropy = os.urandom(16)
    problem = load.Problem(
        request["name"], Path(request["problem"]), load.read_source(Path(request["problem"]))
    )
    solution = load.Solution(
        request["solution"]["name"], Path(request["solution"]["path"]), request["solution"]["source"]
    )
    shape = {k: tuple(v) if isinstance(v, list) else v for k, v in request["cell"].pop("shape").items()}
    cell = Cell(shape=shape, **request["cell"])
    referee.limits = Limits(**request["limits"])
    try:
        ruling = referee.rule(problem, solution, cell, tuple(request["baselines"]), entropy)
    except torch.OutOfMemoryError as error:
        ruling = Ruling(
            Failed(Status.UNSUPPORTED, "judge", "the judge ran out of device memory", str(error)[:500])
        )
    except Exception as error:  # noqa: BLE001 - a fault of the harness is an answer, not the end of the sweep
        ruling = Ruling(
            Failed(Status.ERROR, "judge", f"{type(error).__name__}: {error}", traceback.format_exc()[-2000:])
        )
    return {"ruling": to_json(ruling), "entropy": referee.entropy_of(entropy)}


def main() -> None:
    """Serve requests until standard input ends."""
    libc.die_with_parent()
    libc.prctl(libc.PR_SET_DUMPABLE)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing but answers may reach the command line
    device = sys.argv[1]
    torch.set_num_threads(1 if device != "cpu" else max(1, torch.get_num_threads()))
    if device != "cpu":
        torch.cuda.set_device(torch.device(device))
    referee = Referee(device, Limits())
    print(json.dumps({"environment": environment.describe(device)}), file=out)
    try:
        for line in sys.stdin:
            print(json.dumps(answer(referee, json.loads(line))), file=out)
    finally:
        referee.close()


if __name__ == "__main__":
    main()
