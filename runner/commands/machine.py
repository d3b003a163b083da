"""`selftest` and `doctor`: what this machine's numbers are worth, and what it can measure at all."""

from __future__ import annotations

import argparse
import sys

from runner import devices, doctor, jsonl, selftest
from runner.commands import exits


def run_selftest(options: argparse.Namespace) -> int:
    """Run the parts named and mark what passes."""
    selftest.require_parts(options.part)
    device = devices.choose(options.device)
    if device == "cpu":
        raise devices.NoDevice("selftest times kernels: it needs a CUDA device; see `doctor`")
    if options.output:
        jsonl.append(options.output, [])  # whoever cannot write should hear it before, not after
    findings = []
    for finding in selftest.run(device, options.part):
        print(selftest.line(finding), file=sys.stderr)
        if options.output:
            jsonl.append(options.output, [finding])
        findings.append(finding)
    print(selftest.table(findings, options.format))
    return exits.EXIT_FAILED if any(one["passed"] is False for one in findings) else exits.EXIT_DONE


def examine(options: argparse.Namespace) -> int:
    """Examine the machine and say how to mend what is missing."""
    report = doctor.examine(devices.choose(options.device), options.require, options.results)
    print(doctor.render(report, options.format))
    return exits.EXIT_DONE if report.ready else exits.EXIT_FAILED
