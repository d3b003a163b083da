"""Records -> KernelBench's `eval_results.json`: for each problem's number a list of samples.

Each is a `KernelExecResult` of `eval.py` there with a `sample_id`; `eval_from_generations.py` keeps them so.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.export import REFERENCE, Export, Json, hardware, reason, stats_ms
from runner.load import BadInput
from runner.record import recency
from runner.schema import PROTOCOL, Record, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The arithmetic of KernelBench's own runs: fp32 tensors, convolutions in TF32, as PyTorch ships them.
ARITHMETIC = "tf32"
#: The sweep `kernelbench` labels its rows by their numbers in this level.
LEVEL = 1


@dataclass(frozen=True)
class Words:
    """A status as two flags and the name in `metadata` under which its reason stands."""

    compiled: bool
    correctness: bool
    reason: str


_PASSED = Words(compiled=True, correctness=True, reason="")
_INCORRECT = Words(compiled=True, correctness=False, reason="correctness_issue")
_FAILED = Words(compiled=True, correctness=False, reason="runtime_error")
_NOT_COMPILED = Words(compiled=False, correctness=False, reason="compilation_error")
#: What becomes there of a process that dies or is late, whatever it was doing.
_LOST = Words(compiled=False, correctness=False, reason="error")

#: Each status in KernelBench's words; None where it says nothing of the solution.
STATUS: dict[Status, Words | None] = {
    Status.PASS: _PASSED,
    Status.WRONG: _INCORRECT,
    Status.VIOLATION: _INCORRECT,
    Status.MISSING: _LOST,
    Status.TIMEOUT: _LOST,
    Status.CRASH: _FAILED,
    Status.OOM: _FAILED,
    Status.BUILD: _NOT_COMPILED,
    Status.INVALID: _INCORRECT,
    Status.UNSUPPORTED: None,
    Status.NOT_COVERED: None,
    Status.ERROR: None,
}


def eval_results(records: Sequence[Record], arithmetic: str | None = None) -> Export:
    """Write the newest result of each text on each problem; a problem's samples are in the order of names.

    A file is about one card and one arithmetic, by default `tf32`. Raises BadInput for several cards.
    """
    cards = sorted({one.card for one in records})
    if len(cards) > 1:
        raise BadInput(f"eval results are about one card, not {', '.join(cards)}: name it with --card")
    samples: defaultdict[int, dict[tuple[str, str], Json]] = defaultdict(dict)
    left_out: Counter[str] = Counter()
    for one in sorted(records, key=recency):
        outcome = eval_result(one, arithmetic or ARITHMETIC)
        if isinstance(outcome, str):
            left_out[outcome] += 1
            continue
        of_problem, text = samples[int(one.cell.label)], (one.solution, one.solution_digest)
        left_out["measured again later"] += text in of_problem
        of_problem[text] = outcome
    file = {
        str(number): [{"sample_id": n, **texts[text]} for n, text in enumerate(sorted(texts))]
        for number, texts in sorted(samples.items())
    }
    count = sum(map(len, file.values()))
    return Export(json.dumps(file, indent=4, allow_nan=False), count, +left_out)


def eval_result(record: Record, arithmetic: str = ARITHMETIC) -> Json | str:
    """Return a record as a KernelExecResult, or why there is none.

    Times are in milliseconds, as KernelBench's code has them (a comment there says us), and -1 where there
    are none. The reference is `eager`. `correctness` is this suite's verdict; what KernelBench's own
    tolerance says stands in `metadata` as `kernelbench_close`.
    """
    if record.cell.sweep != "kernelbench" or not record.cell.label.isdecimal():
        return "no problem of KernelBench"
    if record.cell.arithmetic != arithmetic:
        return f"not {arithmetic}"
    if record.protocol != PROTOCOL:
        return f"not of protocol {PROTOCOL}"
    words = STATUS[record.status]
    if words is None:
        return str(record.status)
    runtime_ms, reference_ms = stats_ms(record, "solution"), stats_ms(record, REFERENCE)
    return {
        "compiled": words.compiled,
        "correctness": words.correctness,
        "metadata": _metadata(record, words),
        "runtime": runtime_ms.get("mean", -1.0),
        "runtime_stats": runtime_ms,
        "ref_runtime": reference_ms.get("mean", -1.0),
        "ref_runtime_stats": reference_ms,
    }


def _metadata(record: Record, words: Words) -> Json:
    return {
        "hardware": hardware(record),
        "level": LEVEL,
        "precision": record.cell.dtype,
        "arithmetic": record.cell.arithmetic,
        "solution": record.solution,
        "solution_digest": record.solution_digest,
        "status": record.status,
        "flags": record.flags,
        **({"kernelbench_close": record.checked.kernelbench_close} if record.checked else {}),
        **({words.reason: reason(record)} if words.reason else {}),
    }
