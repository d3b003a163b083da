"""The suite as a library: `from runner import evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from runner import devices, load, pipeline, plan
from runner.arguments import MOST
from runner.schema import CALL_S, Record


def evaluate(
    source: str,
    problem: str | Path,
    *,
    shapes: str | Sequence[str] = (),
    dtypes: str | Sequence[str] = ("fp32", "fp16"),
    maths: str | Sequence[str] = ("tf32", "fp32"),
    device: str | None = None,
    baselines: str | Sequence[str] | None = None,
    results: str | Path | None = None,
    name: str = "candidate",
    card: str = plan.TARGET_CARD,
    timeout_s: float = CALL_S,
    memory_bytes: int | None = None,
    quick: bool = False,
    ranked: bool = False,
    sms: int = 0,
) -> list[Record]:
    """Judge a solution's source text as the command line would; returns its records.

    `problem` is a name or a path, `shapes` are as for `--shapes`, `device` is `cpu`, `cuda:N` or None
    for what there is; with an empty `baselines` nothing is timed. Where several names may stand, a text is
    one. Records are kept in the folder `results` if given, as the command line keeps them, and thrown away
    otherwise. `card` is the one that the sweep `waves` is placed for; `timeout_s` is for a call;
    `memory_bytes` are of the host, half of its memory and at most 8 GiB unless said; `quick`, `ranked` and
    `sms` are as the options of that name. A wrong or broken solution is a record with its status, not an
    exception.
    Raises `load.BadInput` for arguments that cannot be, a text that no file could hold among them (NUL bytes,
    surrogates, more than 1 MiB), `devices.NoDevice`, and where `results` is given `record.ResultsBusy` and
    `record.ResultsUnwritable`.
    """
    found, solution = load.find_problem(str(problem)), load.solution_of(source, name)
    chosen = devices.choose(device)
    cells = plan.plan_cells(found, load.as_names(shapes), dtypes, maths, chosen, plan.card(card).sms)
    timed = baselines is None or len(baselines) > 0
    for limit, value, kind, most in (
        ("timeout_s", timeout_s, (int, float), MOST),
        ("memory_bytes", memory_bytes, int, MOST * 2**30),
        ("sms", sms or None, int, MOST),
    ):
        _require_positive(limit, value, kind, most)
    if quick and ranked:
        raise load.BadInput("quick and ranked exclude each other: leave one out")
    with TemporaryDirectory(prefix="kernelwave-") as folder:
        request = plan.Request(
            problem=found,
            solutions=(solution,),
            cells=cells,
            baselines=load.chosen_baselines(baselines or ()) if timed else (),
            device=chosen,
            results=Path(results or folder),
            limits=plan.limits(
                timeout_s=timeout_s, memory_bytes=memory_bytes, quick=quick, ranked=ranked, sms=sms
            ),
        )
        return list(pipeline.run(request, lambda _: None).records)


def _require_positive(name: str, value: float | None, kind: type | tuple[type, ...], most: float) -> None:
    is_one = isinstance(value, kind) and not isinstance(value, bool)
    if value is not None and not (is_one and 0 < value <= most):
        what = "whole number" if kind is int else "number"
        raise load.BadInput(f"{name}={value!r:.60} is not a positive {what} up to {most}")
