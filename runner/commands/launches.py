"""`explain` and `profile`: launches as predicted for a card, and as counted on one."""

from __future__ import annotations

import argparse
import json
import sys

from runner import (
    agreement,
    cards,
    explain,
    explain_table,
    files,
    jsonl,
    observe,
    plan,
    profile_table,
    profiling,
    prompt,
    record,
)
from runner.commands import exits, words


def explain_launches(options: argparse.Namespace) -> int:
    """Tell all that can be known of each launch without the card."""
    problem, solutions = words.chosen(options)
    chosen = list(dict.fromkeys(options.card or [plan.TARGET_CARD]))
    targets = [plan.card(name) for name in chosen]
    dtypes, maths = words.arithmetics(options)
    shapes = options.shapes or [plan.first_sweep(problem, targets[0].sms)]
    cells = plan.plan_cells(problem, shapes, dtypes, maths, "cpu", targets[0].sms)
    folders = [options.results / card / problem.name for card in chosen]
    files = [folder / f"{solution.name}.jsonl" for folder in folders for solution in solutions]
    records = [one for file in files for one in record.read(file)[0]]
    reports = explain.explain(problem, solutions, cells, targets, options.timeout, records)
    print(explain_table.render(reports, options.format))
    return (
        exits.EXIT_FAILED if any(one.get("error") or one.get("stops") for one in reports) else exits.EXIT_DONE
    )


def profile_launches(options: argparse.Namespace) -> int:
    """Have Nsight Compute count, or tell what is known without it."""
    problem, solutions = words.chosen(options)
    dtypes, maths = words.arithmetics(options)
    sms = cards.load_card(plan.TARGET_CARD).sms
    shapes = options.shapes or [plan.first_sweep(problem, sms)]
    cells = plan.plan_cells(problem, shapes, dtypes, maths, "cuda", sms)
    of_stage = prompt.find_stage(options.stage).metrics if options.stage else ()
    named = [name.strip() for name in options.metrics.split(",") if name.strip()]
    metrics = profiling.wanted([one.name for one in of_stage], named)
    settings = observe.Settings(metrics, options.clock_control, options.cache_control, options.timeout)
    if options.output is not None:
        files.require_output(options.output)
    profiling.require_device()
    print("solutions run unconfined, with your rights: profile only files that you trust", file=sys.stderr)
    if options.against_explain:
        if options.output is not None:
            jsonl.append(options.output, [])  # whoever cannot write should hear it before, not after
        reports = agreement.compare(problem, solutions, cells, options.timeout)
        text = profile_table.differences(reports, options.format)
    else:
        each = (profiling.profile(problem, one, cells, settings, options.results) for one in solutions)
        reports = [report for found in each for report in found]
        text = profile_table.table(reports, options.format)
    data = json.dumps(reports[0] if len(reports) == 1 else reports, indent=1)
    print(data if options.format == "json" else text)
    if options.output is not None:
        if options.against_explain:
            jsonl.append(options.output, agreement.totals(reports))
        else:
            files.write(options.output, f"{data}\n")
    wrong = any("error" in report or report.get("differences") for report in reports)
    return exits.EXIT_FAILED if wrong else exits.EXIT_DONE
