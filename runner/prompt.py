"""A stage, a card, a solution, a profile -> the page for whoever rewrites the kernel."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from runner import cards, load, prompt_metrics, record, roofline, stages
from runner.guidance import guidance
from runner.output_rules import OUTPUT_RULES
from runner.plan import plan_cells
from runner.schema import HARMLESS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from runner.schema import Cell, Record

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
{workload}

[CURRENT CODE]
{code}

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

#: Failures and characters of their details that fit a page.
MAX_FAILURES = 5
DETAIL_CHARS = 600


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
    profile: Path | None = None,
    results: Path = load.ROOT / "results",
    predict_s: float | None = None,
) -> str:
    """Return the prompt that asks for a faster version of a solution.

    `shapes` are as for `--shapes`, without any the problem's `kernelbench` sweep. `profile` is a file as
    `prompt_metrics.read_profile` takes it; what it lacks is predicted for the first shape, where that can be
    done, within `predict_s` seconds. What failed last time is read from `results`. Raises BadInput.
    """
    cells = plan_cells(problem, shapes or ["kernelbench"], ("fp32",), ("tf32",), "cpu", card.sms)
    measured = prompt_metrics.read_profile(profile) if profile else {}
    metrics = prompt_metrics.section(stage, measured, (problem, solution, cells[0], card), predict_s)
    return PAGE.format(**values(problem, solution, stage, card, cells, metrics, results))


def values(
    problem: load.Problem,
    solution: load.Solution,
    stage: stages.Stage,
    card: cards.Card,
    cells: Iterable[Cell],
    profile: str,
    results: Path,
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
        "workload": _list(_workload(cell, problem, card) for cell in cells),
        "code": _fenced(solution.source, "python"),
        "profile": profile,
        "failures": _failures(problem, solution, results),
        "output_rules": "\n".join(f"{n}. {text}" for n, text in enumerate(_words("output"), start=1)),
    }


def _list(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def _words(section: str) -> list[str]:
    return [f"{rule.text} [{rule.name}]" for rule in OUTPUT_RULES if rule.section == section]


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


def _workload(cell: Cell, problem: load.Problem, card: cards.Card) -> str:
    fields = " ".join(f"{name}={value}" for name, value in cell.shape.items())
    text = f"{cell.sweep}/{cell.label}: {fields}".rstrip(": ")
    if problem.foreign or not hasattr(problem.outline, "flops"):
        return text
    shape = problem.shape(cell.shape)
    flops, fewest_bytes = problem.outline.flops(shape), problem.outline.min_bytes(shape, 4)
    bound = roofline.bound_us(flops, fewest_bytes, card, cell.arithmetic)
    return (
        f"{text}; {flops / 1e9:.4g} GFLOP, at least {fewest_bytes / 1e6:.4g} MB in fp32; "
        f"no faster than {bound.time_us:.4g} us here, by {bound.limiter}"
    )


def _fenced(text: str, language: str) -> str:
    """Fence a text with more backticks than it has in a row."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _failures(problem: load.Problem, solution: load.Solution, results: Path) -> str:
    """Say which recorded cells of this very code failed, each reason once."""
    latest: dict[str, Record] = {}
    for path in sorted(results.glob(f"*/{problem.name}/{solution.name}.jsonl")):
        for one in record.read(path)[0]:
            key = f"{one.card} {one.cell.key}"
            if one.solution_digest == solution.digest and one.problem_digest == problem.digest:
                latest[key] = max(one, latest.get(key, one), key=record.recency)
    reasons: dict[str, list[Record]] = {}
    for one in latest.values():
        if one.failed and one.status not in HARMLESS:
            reasons.setdefault(f"{one.status}: {one.failed.reason}", []).append(one)
    if not latest:
        return "This code has not been run."
    if not reasons:
        return f"Nothing: all {len(latest)} recorded cells of this code passed."
    return "\n".join(_failure(reason, cells) for reason, cells in list(reasons.items())[:MAX_FAILURES])


def _failure(reason: str, cells: list[Record]) -> str:
    first, failed = cells[0].cell, cells[0].failed
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    detail = failed.detail[-DETAIL_CHARS:].strip() if failed else ""
    lines = "".join(f"\n    {line}" for line in detail.splitlines())
    return f"- {first.sweep}/{first.label} {first.arithmetic}{more}: {reason}{lines}"
