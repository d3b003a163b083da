"""The suite as a library: `from runner import evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from runner import cards, devices, load, pipeline, plan
from runner.schema import Record


def evaluate(
    source: str,
    problem: str,
    *,
    shapes: Sequence[str] = (),
    dtypes: Sequence[str] = ("fp32", "fp16"),
    maths: Sequence[str] = ("tf32", "fp32"),
    device: str | None = None,
    baselines: Sequence[str] | None = None,
    results: Path | None = None,
    name: str = "candidate",
) -> list[Record]:
    """Judge a solution's source text as the command line would; returns its records.

    `problem` is a name or a path, `shapes` are as for `--shapes`, `device` is `cpu`, `cuda:N` or None
    for what there is; with an empty `baselines` nothing is timed. Records are kept in `results` if given
    and thrown away otherwise. A wrong or broken solution is a record with its status, not an exception.
    Raises `load.BadInput` for arguments that cannot be and `devices.NoDevice`.
    """
    found = load.find_problem(problem)
    chosen = devices.choose(device)
    cells = plan.plan_cells(found, shapes, dtypes, maths, chosen, cards.load_card(plan.TARGET_CARD).sms)
    timed = baselines is None or len(baselines) > 0
    with TemporaryDirectory(prefix="kernelwave-") as folder:
        request = plan.Request(
            problem=found,
            solutions=(load.Solution(name, Path(f"{name}.py"), source),),
            cells=cells,
            baselines=load.chosen_baselines(baselines or ()) if timed else (),
            device=chosen,
            results=results or Path(folder),
        )
        return list(pipeline.run(request, lambda _: None).records)
