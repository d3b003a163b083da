"""What the runner itself costs on the host: `python -m pytest tests/benchmarks --benchmark-enable`.

`make test` runs each once, to see that it works; times are for `pytest-benchmark compare`, never asserted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from runner import channel, load, record
from runner.channel import Call, Frame, Kind, Page
from runner.judge import check
from runner.judge.case import Case
from runner.judge.inputs import SCALES, draw_mixture
from runner.schema import Cell

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [["--help"], ["list"]], ids=" ".join)
def test_the_command_line_starts(benchmark: BenchmarkFixture, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "runner", *arguments]
    benchmark(subprocess.run, command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def test_a_doorbell_is_rung(benchmark: BenchmarkFixture) -> None:
    fd = channel.sealed_memory("page", channel.PAGE_BYTES)
    page = Page(fd)
    os.close(fd)

    def ring() -> None:
        page.ask(1, Call.FORWARD, 64)
        page.answer(1, 1000, 1)

    benchmark(ring)


def test_a_frame_goes_both_ways(benchmark: BenchmarkFixture) -> None:
    ours, theirs = channel.pair()

    def exchange() -> None:
        channel.send(ours, Frame(Kind.GO, seq=1))
        channel.receive(theirs)

    with ours, theirs:
        benchmark(exchange)


def test_descriptors_of_a_batch_are_parsed(benchmark: BenchmarkFixture) -> None:
    outputs = [
        channel.Output(2, 4096 * i, "float32", (16, 64, 32, 32), (65536, 1024, 32, 1)) for i in range(64)
    ]
    benchmark(channel.parse_outputs, channel.pack_outputs(outputs))


def test_a_million_inputs_are_drawn(benchmark: BenchmarkFixture) -> None:
    generator = torch.Generator().manual_seed(1)
    benchmark(draw_mixture, 16, 65536, torch.float32, generator, SCALES["fp32"])


def test_a_smoke_cell_is_checked(benchmark: BenchmarkFixture) -> None:
    problem = load.find_problem("convtranspose2d")
    shape = problem.sweeps(128)["smoke"]["groups"]
    case = Case(problem, Cell("smoke", "groups", shape, "fp32", "tf32"), torch.device("cpu"), bytes(16))
    block = torch.empty(case.inputs.size, dtype=torch.uint8)
    case.draw(1, block)
    inputs = case.inputs.views(block)
    outputs = case.oracle.observed(inputs)
    assert outputs is not None
    benchmark(check.compare, outputs, inputs, case.oracle, case.reached, case.generator, check.Tally())


def test_a_results_file_is_read(benchmark: BenchmarkFixture) -> None:
    file = next(ROOT.glob("results/h*/convtranspose2d/phase_gemm.jsonl"))
    records, problems = benchmark(record.read, file)
    assert records
    assert not problems
