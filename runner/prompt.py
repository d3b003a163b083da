"""A stage, a card, a solution, a profile -> the page for whoever rewrites the kernel."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from runner import cards, failures, lint, load, output_rules, prompt_metrics, roofline, stages
from runner.guidance import guidance
from runner.plan import first_sweep, plan_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from runner.schema import Cell

PAGE = """\
You optimise Triton kernels. Make the kernel below as fast as it can be on the target, and keep it correct.

# Target GPU
{card}

{guidance}
[OPTIMIZATION STAGE]

Focus: {focus}.

Metrics:
{metrics}

Rules:
{rules}

Safety:
{safety}

Autotune:
{autotune}

[WORKLOAD]
{arithmetics}
{workload}

[CURRENT CODE]
{code}
{breaches}

[NCU PROFILING METRICS]
{profile}

[WHAT FAILED LAST TIME]
{failures}

**Task**: Read the metrics and the code, decide what limits the kernel, and write the code that performs best.

OUTPUT RULES (STRICT):
{output_rules}

```python
# <optimized Triton code>
```"""

#: What an arithmetic stands for.
ARITHMETICS = {
    "tf32": "fp32 tensors; products may be as inaccurate as truncated TF32 (torch.backends.cudnn.allow_tf32)",
    "fp32": "fp32 tensors; products as accurate as fp32 (allow_tf32 is off; three products of TF32 will do)",
    "fp16": "fp16 tensors, products summed in fp32",
    "bf16": "bf16 tensors, products summed in fp32",
}
#: `runner.judge.check`, which compares; nothing here may import it.
TOLERANCE = (
    "Outputs are held against float64. The norm of a sample's error may be 1.5 times what PyTorch or the "
    "arithmetic itself loses there (more for samples of few elements), its largest error 4 times that."
)
#: What the judge asks besides (solutions/README.md), where a reader of the page sees nothing else.
CONTRACT = """\
Outputs are new contiguous tensors of the reference's shapes and dtypes; every call writes all of them.
Inputs stay as they are. Each call has new values at old addresses, scaled from 1e-9 to 1e6: no fp16 in an
fp32 cell, no values kept between calls. Parameters and buffers are the reference's, by name, else in order.
Correctness may be checked without a GPU, in Triton's interpreter: ask torch.cuda.is_available() before a
device's properties."""


def find_stage(name: str) -> stages.Stage:
    """Load a stage. Raises BadInput, with the nearest names, when there is none of that name."""
    if name not in stages.stage_names():
        raise load.unknown("stage", name, stages.stage_names())
    return stages.load_stage(name)


def find_card(name: str) -> cards.Card:
    """Load a card. Raises BadInput, with the nearest names, when there is none of that name."""
    if name not in cards.card_names():
        raise load.unknown("card", name, cards.card_names())
    return cards.load_card(name)


def page(
    problem: load.Problem,
    solution: load.Solution,
    stage: stages.Stage,
    card: cards.Card,
    *,
    shapes: Sequence[str] = (),
    dtypes: Sequence[str] = ("fp32",),
    maths: Sequence[str] = ("tf32",),
    profile: Path | None = None,
    feedback: Path | None = None,
    results: Path = load.ROOT / "results",
    predict_s: float | None = None,
) -> str:
    """Return the prompt that asks for a faster version of a solution.

    `shapes` are as for `--shapes`, without any the sweep `kernelbench`, or the first. `profile` is a file as
    `prompt_metrics.read_profile` takes it; what it lacks is predicted for the first cell, where that can be
    done, within `predict_s` seconds. What failed last time is read from `feedback`, or else from `results`.
    Raises BadInput.
    """
    shapes = shapes or [first_sweep(problem, card.sms)]
    cells = plan_cells(problem, shapes, dtypes, maths, "cpu", card.sms)
    measured = prompt_metrics.read_profile(profile) if profile else None
    if measured:
        prompt_metrics.require_fit(measured, problem, card)
    failed = (
        failures.of_feedback(failures.read_feedback(feedback))
        if feedback
        else failures.of_records(problem, solution, results)
    )
    metrics = prompt_metrics.section(stage, measured, problem, solution, cells, card, predict_s)
    return PAGE.format(**values(problem, solution, stage, card, cells, metrics, failed))


def values(
    problem: load.Problem,
    solution: load.Solution,
    stage: stages.Stage,
    card: cards.Card,
    cells: Sequence[Cell],
    profile: str,
    failed: str,
) -> dict[str, str]:
    """Return what fills each placeholder of `PAGE`."""
    return {
        "card": _card(card),
        "guidance": guidance(problem.source),
        "focus": stage.focus,
        "metrics": _list(f"{one.name} ({one.target})" if one.target else one.name for one in stage.metrics),
        "rules": _list(stage.rules),
        "safety": _list([*_words("safety"), *stage.safety]),
        "autotune": _list(_words("autotune")),
        "arithmetics": _arithmetics(cells, solution),
        "workload": _workloads(cells, problem, card),
        "code": _fenced(solution.source, "python"),
        "breaches": _breaches(solution),
        "profile": profile,
        "failures": failed,
        "output_rules": "\n".join(f"{n}. {text}" for n, text in enumerate(_words("output"), start=1)),
    }


def _list(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def _words(section: str) -> list[str]:
    return [f"{rule.text} [{rule.name}]" for rule in output_rules.OUTPUT_RULES if rule.section == section]


def _card(card: cards.Card) -> str:
    peaks = [
        f"{name.upper()} {'CUDA core' if name == 'fp32' else 'Tensor Core'} TFLOPS: {tflops:g}, dense"
        for name, tflops in card.peak_tflops.items()
    ]
    return _list(
        [
            f"Name: {card.title}",
            f"Architecture: {card.architecture}",
            f"Compute capability: {'.'.join(map(str, card.compute_capability))}",
            f"SMs: {card.sms}",
            f"Memory bandwidth: {card.dram_gb_per_s:g} GB/s",
            *peaks,
            f"Registers per thread, at most: {cards.MAX_REGISTERS_PER_THREAD}",
            f"Registers per SM: {card.registers_per_sm}",
            f"Threads per block, at most: {cards.MAX_THREADS_PER_PROGRAM}",
            f"Threads per SM, at most: {card.max_threads_per_sm}",
            f"Warp size: {cards.WARP_THREADS}",
            f"Warps per SM, at most: {card.max_warps_per_sm}",
            f"Shared memory per SM: {card.shared_bytes_per_sm // cards.KIB} KB",
            f"Shared memory per block, at most: {card.shared_bytes_per_program // cards.KIB} KB",
            f"L2 cache, shared by all SMs: {card.l2_bytes // cards.MIB} MB",
        ]
    )


def _arithmetics(cells: Iterable[Cell], solution: load.Solution) -> str:
    """Say what each arithmetic asked for means, which the code does not declare, and what may be lost."""
    header = lint.read_header(solution.source)
    declared = {*header.dtypes} - {"fp32"} | ({*header.maths} if "fp32" in header.dtypes else set())
    asked = dict.fromkeys(cell.arithmetic for cell in cells)
    undeclared = ", which the code below does not declare"
    lines = (f"{one}: {ARITHMETICS[one]}{'' if one in declared else undeclared}." for one in asked)
    return "\n".join([*lines, TOLERANCE, CONTRACT])


def _breaches(solution: load.Solution) -> str:
    broken = failures.breaches(output_rules.findings(solution.source, bind=True))
    if not broken:
        return "This code keeps all rules of this page."
    return f"This code breaks rules of this page, which an answer may not:\n{_list(broken)}"


def _workloads(cells: Sequence[Cell], problem: load.Problem, card: cards.Card) -> str:
    """List the cells; what a stranger's file asks for stands nowhere but in it."""
    shapes = _list(dict.fromkeys(_workload(cell, problem, card) for cell in cells))
    if not problem.foreign:
        return shapes
    source = _fenced(problem.source, "python")
    return f"{shapes}\n\nThe problem, whose `Model` the answer has to match:\n\n{source}"


def _workload(cell: Cell, problem: load.Problem, card: cards.Card) -> str:
    fields = " ".join(f"{name}={value}" for name, value in cell.shape.items())
    text = f"{cell.sweep}/{cell.label}: {fields}".rstrip(": ")
    if problem.foreign or not hasattr(problem.outline, "flops"):
        return text
    shape = problem.shape(cell.shape)
    flops = problem.outline.flops(shape)
    fewest_bytes = problem.outline.min_bytes(shape, 4 if cell.dtype == "fp32" else 2)
    bound = roofline.bound_us(flops, fewest_bytes, card, cell.arithmetic)
    return (
        f"{text}; {flops / 1e9:.4g} GFLOP, at least {fewest_bytes / 1e6:.4g} MB in {cell.dtype}; "
        f"no faster than {bound.time_us:.4g} us here in {cell.arithmetic}, by {bound.limiter}"
    )


def _fenced(text: str, language: str) -> str:
    """Fence a text with more backticks than it has in a row."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
