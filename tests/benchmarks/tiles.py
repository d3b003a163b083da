"""Time a solution's tiles: as it chooses them, with constants overridden, and PyTorch's layer beside them.

`python -m tests.benchmarks.tiles --problem conv2d --solution channels_last_gemm --shapes 55 --shapes 62
--math tf32 --math fp32 --try BM=256,num_warps=8 --try num_stages=4`

A `--try` overrides what the solution's function `tiles` returns, block sizes of the layout that it is given,
options of a launch and, as FOLD, what `choose_fold` returns. What the solution derives from these follows;
where it derives nothing, say the other constants too: `num_warps=8,BP=256`. `--plan` shows the tile of each
variant, without a GPU.

These are a developer's numbers: medians of CUDA events, one variant after the other, in one process, which
the solution runs in, and no judge. Before each call the L2 cache is flushed and the device sleeps until short
kernels are queued, so that the host does not time them. They choose tiles and are never records.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import geometric_mean, median
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from tabulate import tabulate
from triton.runtime.jit import KernelInterface

from runner import gpu_lock, load, plan
from runner.baselines import channels_last
from runner.contestant.build import TORCH_DTYPES, load_parameters, set_arithmetic, story
from runner.schema import DTYPES, MATHS, Cell

LAUNCH_OPTIONS = ("num_warps", "num_stages", "maxnreg")
#: Step of a reduction -> extents that a solution has padded to whole steps before `tiles` is asked.
PADDED = {"BK": ("DEPTH", "RUN"), "BI": ("CHANNELS",), "BE": ("SHIFTS",)}
#: Functions by which solutions ask a tensor's device what it has; others are planned for an RTX 4090.
DEVICE_FACTS = ("room_bytes", "device_limits")
REASON_CHARS = 100

#: Calls of one time, and what is spent on more of them where they are short.
CALLS = 10
CALLS_MS = 30.0
#: What is written between calls: more than any card's L2 cache.
FLUSH_BYTES = 256 << 20
#: While the device sleeps the host queues a call: at 2 GHz, more at less.
SLEEP_MS = 0.5
SLEEP_CYCLES = 1_000_000

#: Constant -> value.
Constants = dict[str, Any]
#: What is known of one time: `ms` and `error`, or a `failure`.
Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A solution with an override in one cell. Text and numbers, since it goes to workers."""

    problem: str
    solution: str
    cell: Cell
    override: Constants

    @property
    def name(self) -> str:
        """The override as it was given."""
        return ",".join(f"{name}={value}" for name, value in self.override.items()) or "as it is"

    @property
    def place(self) -> str:
        """Shape and arithmetic."""
        return f"{self.cell.sweep}/{self.cell.label} {self.cell.arithmetic}"


class Planned(NamedTuple):
    """A variant's launches (kernel, grid, arguments, constants) and tile, or why it is not to be timed."""

    variant: Variant
    launches: tuple[tuple[Any, ...], ...] = ()
    tile: str = ""
    failure: str = ""


class Setting(NamedTuple):
    """A cell's arguments of the constructor, its reference and its inputs."""

    init: Sequence[Any]
    reference: torch.nn.Module
    inputs: list[torch.Tensor]


@cache
def modules(problem: str, solution: str) -> tuple[ModuleType, ModuleType]:
    """Execute a problem's file and a solution's, both one's own."""
    found = load.find_problem(problem)
    text = load.find_solution(solution, found.name)
    module = ModuleType(text.name)
    module.__file__ = str(text.path)
    exec(compile(text.source, str(text.path), "exec"), module.__dict__)  # noqa: S102 - one's own
    return found.module(), module


def set_up(variant: Variant, device: str) -> Setting:
    """Return the setting of a variant's cell, the same values at every call, and switch to its arithmetic."""
    problem, cell = modules(variant.problem, variant.solution)[0], variant.cell
    set_arithmetic(cell.dtype, cell.math)
    shape = (problem.Shape(**cell.shape),) if hasattr(problem, "Shape") else ()
    init, dtype = problem.get_init_inputs(*shape), TORCH_DTYPES[cell.dtype]
    torch.manual_seed(0)
    with torch.device(device):
        reference, inputs = problem.Model(*init), problem.get_inputs(*shape)
    return Setting(init, reference.to(dtype), [x.to(dtype) for x in inputs])


def ask_gpu(ask: Callable[[torch.Tensor], object], _: torch.Tensor) -> object:
    """Return what a solution finds out about the GPU, whatever tensor it asks."""
    return ask(torch.empty(0, device="cuda"))


@contextmanager
def overridden(variant: Variant) -> Iterator[tuple[ModuleType, set[str]]]:
    """Have a solution choose by an override; yields it and, once it has chosen, the constants there are.

    Its `tiles` raises BadInput where the override names others.
    """
    _, solution = modules(variant.problem, variant.solution)
    choose: Any = getattr(solution, "tiles", None)
    override = variant.override
    folds = {"FOLD"} if hasattr(solution, "choose_fold") else set()
    names = {*LAUNCH_OPTIONS, *folds}
    if choose is None and override:
        raise load.BadInput(f"solution '{solution.__name__}' has no function tiles: leave --try out")

    def tiles(*facts: Any) -> Constants:
        tile, layout = choose(*facts), facts[0] if isinstance(facts[0], dict) else {}
        names.update(tile, (name for name in layout if name.startswith("B")))
        for name in override.keys() - names:
            there = ", ".join(sorted(names))
            raise load.BadInput(f"unknown constant '{name}': {solution.__name__} has {there}")
        return {**tile, **{name: value for name, value in override.items() if name != "FOLD"}}

    changed: Constants = {"tiles": tiles} if choose else {}
    if torch.cuda.is_available():
        # tensors without memory are to be planned for as those of the GPU are
        asks = ((name, getattr(solution, name, None)) for name in DEVICE_FACTS)
        changed |= {name: partial(ask_gpu, ask) for name, ask in asks if ask}
    if folds & override.keys():
        changed["choose_fold"] = lambda *_: override["FOLD"]
    with ExitStack() as stack:
        for name, function in changed.items():
            stack.enter_context(mock.patch.object(solution, name, function))
        yield solution, names


def call_on_meta(variant: Variant, seen: Callable[..., Any]) -> set[str]:
    """Call a variant on tensors without memory; returns the constants there are.

    Instead of a launch `seen` is called, with kernel, grid, arguments and constants, tensors as dtypes.
    """

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            seen(kernel, grid, [a.dtype if isinstance(a, torch.Tensor) else a for a in arguments], constants)

        return launch

    given, caught = set_up(variant, "meta"), mock.patch.object(KernelInterface, "__getitem__", launcher)
    with torch.device("meta"), torch.no_grad(), caught, overridden(variant) as (solution, names):
        solution.ModelNew(*given.init).to(TORCH_DTYPES[variant.cell.dtype])(*given.inputs)
    return names


def plan_variant(variant: Variant) -> Planned:
    """Return what a variant launches, or why it cannot be. Raises BadInput for constants there are not."""
    launches: list[tuple[Any, ...]] = []
    try:
        names = call_on_meta(variant, lambda kernel, *launch: launches.append((kernel.__name__, *launch)))
    except load.BadInput:
        raise
    except Exception as error:  # noqa: BLE001 - that a solution cannot plan it is an answer
        return Planned(variant, failure=story(error)[:REASON_CHARS])
    tiled = max((constants for *_, constants in launches), key=lambda c: len(names & c.keys()))
    tile = " ".join(f"{name}={tiled[name]}" for name in sorted(names & tiled.keys()))
    cut = [
        f"{step}={tiled[step]} does not divide {extent}={tiled[extent]}"
        for step, extents in PADDED.items()
        for extent in extents
        if {step, extent} <= tiled.keys() and tiled[extent] % tiled[step]
    ]
    return Planned(variant, tuple(launches), tile, ", ".join(cut))


def plan_cell(variants: Sequence[Variant]) -> list[Planned]:
    """Plan the variants of a cell; one that launches what an earlier one does is not to be timed."""
    found: list[Planned] = []
    for one in map(plan_variant, variants):
        twin = next((p.variant.name for p in found if p.launches and p.launches == one.launches), "")
        found.append(one._replace(failure=f"launches what '{twin}' does") if twin else one)
    return found


def compile_variant(variant: Variant) -> str:
    """Compile a variant into Triton's cache; returns what went wrong, or nothing. Runs in a worker."""
    try:
        call_on_meta(
            variant, lambda kernel, grid, args, constants: kernel.warmup(*args, grid=grid, **constants)
        )
    except Exception as error:  # noqa: BLE001 - not every tile can be compiled
        return story(error)[:REASON_CHARS]
    return ""


def clock(call: Callable[[], object]) -> float:
    """Return the median of calls in milliseconds, behind a sleeping kernel and with L2 flushed."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    # the first calls may compile or search
    call()
    once_ms = clock_once(call, flush)
    return median(clock_once(call, flush) for _ in range(CALLS + int(CALLS_MS / (once_ms + SLEEP_MS))))


def clock_once(call: Callable[[], object], flush: torch.Tensor) -> float:
    """Return the milliseconds between events around one call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    torch.cuda._sleep(SLEEP_CYCLES)
    begin.record()
    call()
    end.record()
    end.synchronize()
    elapsed_ms: float = begin.elapsed_time(end)
    return elapsed_ms


def timed(model: Callable[..., torch.Tensor], inputs: list[torch.Tensor], truth: torch.Tensor) -> Row:
    """Return a model's time and the relative Frobenius error of its first image, or why it has none."""
    try:
        error = ((model(*inputs)[:1].double() - truth).norm() / truth.norm()).item()
        return {"ms": clock(lambda: model(*inputs)), "error": error}
    except Exception as failed:  # noqa: BLE001 - shared memory, say, is checked by the launch
        return {"failure": story(failed)[:REASON_CHARS]}


def time_pytorch(given: Setting, truth: torch.Tensor) -> Iterator[tuple[str, Row]]:
    """Time PyTorch's layer, also in channels-last with conversions where there is that layout, and a fill."""
    yield "cudnn", timed(given.reference, given.inputs, truth)
    output = torch.empty_like(given.reference(*given.inputs))
    yield "fill", {"ms": clock(lambda: output.fill_(1.0))}
    if given.inputs[0].dim() in channels_last.LAYOUTS:
        yield "channels_last", timed(channels_last.wrap(given.reference), given.inputs, truth)


def time_variant(variant: Variant, given: Setting, truth: torch.Tensor) -> Row:
    """Time a variant with the weights of the reference."""
    with overridden(variant) as (solution, _):
        model = solution.ModelNew(*given.init).to("cuda", TORCH_DTYPES[variant.cell.dtype])
        load_parameters(model, given.reference.state_dict())
        return timed(model, given.inputs, truth)


def time_cell(
    plans: Sequence[Planned], builds: dict[tuple[str, str], Future[str]], end_s: float
) -> Iterator[tuple[str, Row]]:
    """Yield name and row of all that is timed in a cell; no variant begins after `end_s`."""
    given = set_up(plans[0].variant, "cuda")
    torch.backends.cudnn.benchmark = False
    truth = copy.deepcopy(given.reference).double()(*(x[:1].double() for x in given.inputs))
    torch.backends.cudnn.benchmark = True
    yield from time_pytorch(given, truth)
    # the builds of every cell: nothing compiles while a variant is timed
    wait(builds.values(), timeout=max(0.0, end_s - time.monotonic()))
    for variant, _, tile, failure in plans:
        if failure or time.monotonic() > end_s:
            yield variant.name, {"failure": failure or "no time was left"}
        else:
            broken = builds[variant.place, variant.name].result()
            row = {"failure": broken} if broken else time_variant(variant, given, truth)
            yield variant.name, {"tile": tile, **row}


def time_all(cells: Sequence[Sequence[Planned]], output: Path | None, end_s: float) -> None:
    """Time cell by cell; a row is in the file before its table is shown."""
    todo = [one.variant for plans in cells for one in plans if not one.failure]
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    print(*about.values())
    workers = max(1, min(len(todo), (os.cpu_count() or 2) - 2))
    found: dict[tuple[str, str], list[float]] = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool, torch.no_grad():
        builds = {(variant.place, variant.name): pool.submit(compile_variant, variant) for variant in todo}
        for plans in cells:
            variant, rows = plans[0].variant, []
            for name, row in time_cell(plans, builds, end_s):
                rows.append({"variant": name, **row})
                if output:
                    line = {**about, "solution": variant.solution, "cell": variant.cell.key, **rows[-1]}
                    with output.open("a") as file:
                        print(json.dumps(line), file=file)
            print(f"\n{variant.place}\n{table(rows)}", flush=True)
            for name, speedup in speedups(rows).items():
                found.setdefault((variant.cell.arithmetic, name), []).append(speedup)
            torch.cuda.empty_cache()
        pool.shutdown(cancel_futures=True)
    print(f"\n{means(found)}")


def speedups(rows: list[Row]) -> dict[str, float]:
    """Return by variant how many times as fast it is as the faster of PyTorch's layouts."""
    times = {row["variant"]: row["ms"] for row in rows if "ms" in row}
    best = min((times[name] for name in ("cudnn", "channels_last") if name in times), default=math.nan)
    return {name: best / ms for name, ms in times.items()}


def means(found: dict[tuple[str, str], list[float]]) -> str:
    """Show geometric means of speed-ups by arithmetic and variant, over the cells each was timed in."""
    lines = [
        {
            "arithmetic": arithmetic,
            "variant": name,
            "cells": len(ratios),
            "speed-up": f"{geometric_mean(ratios):.2f}",
        }
        for (arithmetic, name), ratios in found.items()
    ]
    text: str = tabulate(lines, headers="keys", disable_numparse=True)
    return text


def table(rows: list[Row]) -> str:
    """Show the rows of a cell, the fastest first, beside the faster of PyTorch's layouts and the fill."""
    faster = speedups(rows)
    lines = [
        {
            "variant": row["variant"],
            "ms": f"{row['ms']:.4f}" if "ms" in row else "-",
            "speed-up": f"{faster[row['variant']]:.2f}" if "ms" in row else "-",
            "x fill": f"{faster['fill'] / faster[row['variant']]:.2f}" if "ms" in row else "-",
            "error": f"{row['error']:.1e}" if "error" in row else "-",
            "tile": row.get("failure") or row.get("tile", ""),
        }
        for row in sorted(rows, key=lambda row: row.get("ms", float("inf")))
    ]
    text: str = tabulate(lines, headers="keys", disable_numparse=True)
    return text


def plan_table(cells: Sequence[Sequence[Planned]]) -> str:
    """Show tile and grids of every variant, or why it is not to be timed."""
    lines = [
        {
            "cell": variant.place,
            "variant": variant.name,
            "tile": failure or tile,
            "grids": " ".join("x".join(map(str, grid)) for _, grid, *_ in launches),
        }
        for plans in cells
        for variant, launches, tile, failure in plans
    ]
    text: str = tabulate(lines, headers="keys", disable_numparse=True)
    return text


def parse_override(text: str) -> Constants:
    """Read `BM=256,num_warps=8,SWAP=True`. Raises BadInput for what is neither a whole number nor a flag."""
    found = re.findall(r"(\w+)=(\d{1,9}|True|False)(?:,|$)", text)
    if not found or ",".join(map("=".join, found)) != text:
        raise load.BadInput(f"--try '{text}': give CONSTANT=VALUE,... with whole numbers, True or False")
    return {name: value == "True" if value.isalpha() else int(value) for name, value in found}


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks.tiles")
    made.add_argument("--problem", required=True, metavar="NAME|PATH")
    made.add_argument("--solution", required=True, metavar="NAME|PATH")
    made.add_argument("--shapes", action="append", required=True, metavar="SWEEP|LABEL|k=v,...")
    made.add_argument("--dtype", action="append", choices=DTYPES, help="default: fp32")
    made.add_argument("--math", action="append", choices=MATHS, help="of fp32 cells; default: tf32")
    made.add_argument("--try", action="append", default=[], dest="overrides", metavar="CONSTANT=VALUE,...")
    made.add_argument("--seconds", type=float, default=60, metavar="S", help="begin no variant after this")
    made.add_argument("--plan", action="store_true", help="show what would be launched, without a GPU")
    made.add_argument("-o", "--output", type=Path, metavar="FILE", help="append a line of JSON for each time")
    return made


def main(words: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    options = parser().parse_args(words)
    end_s = time.monotonic() + options.seconds
    try:
        problem = load.find_problem(options.problem)
        solution = load.find_solution(options.solution, problem.name)
        arithmetics = options.dtype or ["fp32"], options.math or ["tf32"]
        found = plan.plan_cells(problem, options.shapes, *arithmetics, "cuda", sms=128)
        overrides = [{}, *map(parse_override, options.overrides)]
        paths = str(problem.path.absolute()), str(solution.path.absolute())
        cells = [plan_cell([Variant(*paths, cell, one) for one in overrides]) for cell in found]
        if options.plan:
            print(plan_table(cells))
        elif not torch.cuda.is_available():
            raise load.BadInput("no GPU to time tiles on: --plan shows what would be launched")
        else:
            with gpu_lock.hold(gpu_lock.uuid_of("cuda:0"), "cuda:0"):
                time_all(cells, options.output, end_s)
    except (load.BadInput, gpu_lock.DeviceBusy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
