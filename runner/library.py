"""The suite as a library: `from runner import evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from runner import cards, devices, load, pipeline, plan
from runner.schema import Record


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
) -> list[Record]:
    """Judge a solution's source text as the command line would; returns its records.

    `problem` is a name or a path, `shapes` are as for `--shapes`, `device` is `cpu`, `cuda:N` or None
    for what there is; with an empty `baselines` nothing is timed. Where several names may stand, a text is
    one. Records are kept in the folder `results` if given, as the command line keeps them, and thrown away
    otherwise. A wrong or broken solution is a record with its status, not an exception.
    Raises `load.BadInput` for arguments that cannot be and `devices.NoDevice`.
    """
    found, solution = load.find_problem(str(problem)), load.solution_of(source, name)
    chosen = devices.choose(device)
    sms = cards.load_card(plan.TARGET_CARD).sms
    cells = plan.plan_cells(found, load.as_names(shapes), dtypes, maths, chosen, sms)
    timed = baselines is None or len(baselines) > 0
    with TemporaryDirectory(prefix="kernelwave-") as folder:
        request = plan.Request(
            problem=found,
            solutions=(solution,),
            cells=cells,
            baselines=load.chosen_baselines(baselines or ()) if timed else (),
            device=chosen,
            results=Path(results or folder),
        )
        return list(pipeline.run(request, lambda _: None).records)
