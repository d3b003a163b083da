"""One cell, from inputs to a result: build, check, and on a GPU time.

The referee keeps what neighbouring cells share: the contestant of each solution, and the trusted
contestant that holds the baselines, which stays built while several solutions run on one cell.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch

from runner import load, measure
from runner.channel import MAX_OUTPUTS, Call
from runner.judge import check
from runner.judge.contestants import Contestant, Foul, Zygotes
from runner.judge.inputs import SCALES, TORCH_DTYPES, Layout, draw_mixture, lay_out
from runner.judge.oracle import Oracle, outputs_of
from runner.schema import Cell, Checked, Failed, Launch, Status, Timed

#: At most this many calls make a sample, and the slots of all of them fit in this much memory.
MAX_CALLS = 64
#: of the device's memory: contestant, baselines and judge each hold that much several times
SLOT_SHARE = 1 / 20
#: Outputs up to this are copied whole inside the window.
FENCE_BYTES = 4 * 2**20
LINE_BYTES = 128
#: Beside inputs and outputs: three CUDA contexts, the oracle's chunks, library workspaces.
DEVICE_RESERVE_BYTES = 6 * 2**30
CHECK_CALLS = {"cpu": 2, "cuda": 3}
FULL_CHECK_EVERY = 16
#: The judge's smallest operation takes 35 us alone and up to 2.4 ms behind a foreign kernel.
IDLE_US = 250.0
IDLE_TRIES = 20


@dataclass(frozen=True)
class Limits:
    """Seconds that a phase may take."""

    build_s: float = 120.0
    call_s: float = 60.0
    timing_s: float = 2.0
    target: float = 0.01


@dataclass(frozen=True)
class Ruling:
    """What the referee found about one cell."""

    failed: Failed | None
    checked: Checked | None = None
    timed: Timed | None = None
    isolation: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


class Case:
    """A cell's private side: layouts, parameters, oracle, masters and snapshots."""

    def __init__(self, problem: load.Problem, cell: Cell, device: torch.device, entropy: bytes) -> None:
        self.problem, self.cell, self.device = problem, cell, device
        self.dtype = TORCH_DTYPES[cell.dtype]
        module = problem.module()
        self.shape = problem.shape(cell.shape)
        arguments = () if self.shape is None else (self.shape,)
        self.get_inputs: Callable[[], list[Any]] = lambda: list(module.get_inputs(*arguments))
        self.init = list(module.get_init_inputs(*arguments))
        self.fixed = getattr(module, "PARAMETERS", "fixed") == "fixed"
        self.generator = torch.Generator(device).manual_seed(int.from_bytes(entropy[:8], "little") >> 1)
        torch.manual_seed(int.from_bytes(entropy[8:], "little") >> 1)
        model = module.Model(*self.init)
        with torch.device("meta"):
            specimens = self.get_inputs()
        self.inputs = lay_out([(f"input{i}", v) for i, v in enumerate(specimens)], self.dtype)
        self.parameters = lay_out(list(model.state_dict().items()), self.dtype)
        state = {name: v.to(device, self.dtype if v.is_floating_point() else v.dtype) for name, v in model.state_dict().items()}
        self.state = state
        self.oracle = Oracle(lambda: module.Model(*self.init), state, self.dtype, cell.arithmetic)
        self.expected = self._expected(module, specimens)
        self.output_bytes = sum(-(-y.numel() * y.element_size() // 256) * 256 for y in self.expected)
        self.reached = self._reached(module)

    def _expected(self, module: Any, specimens: list[Any]) -> list[torch.Tensor]:
        """The outputs' form, from the reference on meta tensors."""
        with torch.device("meta"):
            model = module.Model(*self.init).to(self.dtype)
        inputs = [v.to(self.dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in specimens]
        return outputs_of(model, inputs)

    def _reached(self, module: Any) -> list[torch.Tensor] | None:
        if getattr(module, "BATCH_DIM", None) != 0:
            return None
        one = [
            torch.ones((1, *v.shape[1:]), dtype=v.dtype, device=self.device) if hasattr(v, "shape") else v
            for v in self.inputs.views(torch.empty(self.inputs.size, dtype=torch.uint8, device="meta"))
        ]
        return self.oracle.reached(one)

    @property
    def max_calls(self) -> int:
        """How many distinct inputs a sample can have."""
        if self.device.type == "cpu":
            return 1
        budget = int(SLOT_SHARE * torch.cuda.get_device_properties(self.device).total_memory)
        each = self.inputs.size + self.output_bytes
        return max(1, min(MAX_CALLS, budget // each, MAX_OUTPUTS // len(self.expected)))

    def draw(self, calls: int, block: torch.Tensor) -> None:
        """Fill the first `calls` slots of a master block with fresh values."""
        if self.shape is None:
            for slot in range(calls):
                self.draw_own(block, slot)
            return
        slots = block[: calls * self.inputs.size].view(calls, self.inputs.size)
        for item in self.inputs.tensors:
            samples = item.shape[0] if len(item.shape) > 1 else 1
            width = max(1, item.size // item.dtype.itemsize // max(samples, 1))
            if item.dtype.is_floating_point:
                scales = SCALES[self.cell.dtype]
                drawn = draw_mixture(calls * samples, width, item.dtype, self.generator, scales)
            else:
                drawn = torch.randint(2, (calls * samples, width), generator=self.generator, device=self.device)
            place = slots[:, item.offset : item.offset + item.size].view(item.dtype)
            place.copy_(drawn.view(calls, -1))

    def draw_own(self, block: torch.Tensor, slot: int = 0) -> None:
        """Fill one slot by the problem's own `get_inputs`, as KernelBench would."""
        torch.manual_seed(secrets.randbits(62))
        with torch.device(self.device):
            values = self.get_inputs()
        for item, value in zip(self.inputs.items, values, strict=True):
            if isinstance(value, torch.Tensor):
                item.view(block, slot * self.inputs.size).copy_(value)

    def job(self, source: str, digest: str, name: str, entry: str, policies: tuple[str, ...]) -> dict[str, Any]:
        """What a contestant is told about the cell."""
        return {
            "source": source,
            "digest": digest,
            "name": name,
            "entry": entry,
            "init": encode(self.init),
            "parameters": [i.to_json() for i in self.parameters.tensors],
            "parameter_bytes": self.parameters.size,
            "inputs": [i.to_json() if hasattr(i, "to_json") else {"value": i} for i in self.inputs.items],
            "slot_bytes": self.inputs.size,
            "slots": self.max_calls,
            "arena_bytes": 2 * self.output_bytes + 4096,
            "dtype": self.cell.dtype,
            "math": self.cell.math,
            "policies": policies,
            "prepare": self.fixed and not policies,
        }


def encode(value: Any) -> Any:
    """Turn constructor arguments into JSON; tuples stay tuples. Raises TypeError for anything else."""
    if isinstance(value, tuple):
        return {"tuple": [encode(v) for v in value]}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"get_init_inputs holds a {type(value).__name__}: only numbers, texts, lists and tuples travel")


class Bench:
    """The judge's side of a call: write inputs, ring, wait, snapshot, all under one clock."""

    def __init__(self, case: Case, limits: Limits) -> None:
        self.case, self.limits = case, limits
        self.cuda = case.device.type == "cuda"
        self.max_calls = case.max_calls
        self.seats: dict[str, tuple[Contestant, int]] = {}
        self.seated: dict[int, int] = {}
        self.known: dict[str, tuple[bytes, Fence]] = {}
        self.snapshots: list[torch.Tensor] = []
        self.fence = Fence([], self.snapshots)
        self.master = torch.empty(case.inputs.size * self.max_calls, dtype=torch.uint8, device=case.device)
        self.tail = min([64, *(i.size for i in case.inputs.tensors)])
        self.checker: Callable[[int], None] = lambda _: None
        if self.cuda:
            self.l2_bytes = int(torch.cuda.get_device_properties(case.device).L2_cache_size)
            self.sweep = torch.ones(3 * self.l2_bytes // 4, dtype=torch.float32, device=case.device)

    def join(self, variant: str, contestant: Contestant, seat: int) -> None:
        """Make a variant known: a seat in a contestant."""
        self.seats[variant] = (contestant, seat)
        self.seated.setdefault(contestant.identity, 0)

    def process_of(self, variant: str) -> str:
        """Name the variant's process."""
        return str(self.seats[variant][0].identity)

    def l2(self, calls: int) -> str:
        """Cold after the sweep for single calls; rotating slots keep a batch cold beyond twice L2."""
        footprint = calls * (self.case.inputs.size + self.case.output_bytes)
        return "cold" if calls == 1 or footprint > 2 * self.l2_bytes else "warm"

    def fresh(self, calls: int) -> None:
        """Draw new inputs for the next calls; all variants of a round get the same values."""
        self.case.draw(calls, self.master)

    def sample(self, variant: str, calls: int) -> measure.Window:
        """Time `calls` calls; the solution's are checked and then overwritten."""
        window_us, claim_ns = self.call(variant, Call.FORWARD, calls)
        issue_ns = self.seats[variant][0].issue_ns
        if variant == measure.SOLUTION:
            self.checker(calls)
            self.poison()
        return measure.Window(window_us, claim_ns / 1e3, issue_ns / 1e3)

    def null(self, variant: str, calls: int) -> float:
        """Time an empty call under the same snapshot."""
        return self.call(variant, Call.NULL, calls)[0]

    def call(self, variant: str, kind: Call, calls: int) -> tuple[float, int]:
        """Ring once; returns the window in us and the claim in ns.

        The window opens before the inputs are complete and closes after the judge's own copy of the
        outputs, or of random lines of large ones, so work done early has no inputs and an answer that
        comes early has no outputs.
        """
        contestant, seat = self.seats[variant]
        if self.seated[contestant.identity] != seat:
            contestant.ring(Call.SELECT, seat=seat)
            contestant.wait("select", self.limits.call_s)
            self.seated[contestant.identity] = seat
        used = calls * self.case.inputs.size
        mapped, master = contestant.blocks[1][:used].view(calls, -1), self.master[:used].view(calls, -1)
        mapped[:, self.tail :].copy_(master[:, self.tail :])
        mapped[:, : self.tail].random_(0, 256)
        if self.cuda:
            self._settle()
        start = time.perf_counter_ns()
        mapped[:, : self.tail].copy_(master[:, : self.tail])
        if self.cuda:
            torch.cuda.synchronize()
        contestant.ring(kind, calls)
        claim_ns = contestant.wait("call", self._deadline_s(kind))
        if kind != Call.NULL:
            self._look(variant, contestant, calls)
        fence = self.fence
        fence.close()
        if self.cuda:
            torch.cuda.synchronize()
        window_us = (time.perf_counter_ns() - start) / 1e3
        if kind != Call.NULL and not fence.holds():
            raise Foul(Status.VIOLATION, "check", "the output was still being written after the answer")
        return window_us, claim_ns

    def _deadline_s(self, kind: Call) -> float:
        """A first call compiles."""
        return self.limits.build_s if kind == Call.WITNESS else self.limits.call_s

    def _settle(self) -> None:
        """Make L2 cold and the device idle; raises Disturbed while somebody else keeps it busy."""
        torch.sum(self.sweep)
        torch.cuda.synchronize()
        for _ in range(IDLE_TRIES):
            start = time.perf_counter_ns()
            self.sweep[:1].add_(0.0)
            torch.cuda.synchronize()
            if time.perf_counter_ns() - start < IDLE_US * 1e3:
                return
        raise measure.Disturbed("the device is not idle")

    def _look(self, variant: str, contestant: Contestant, calls: int) -> None:
        """Find the outputs; views are made once for as long as a variant's outputs stay where they are."""
        raw = contestant.raw_outputs(calls)
        known = self.known.get(variant)
        if known is None or known[0] != raw:
            known = self.known[variant] = (raw, Fence(self._views(contestant, raw, calls), self.snapshots))
        self.fence = known[1]

    def _views(self, contestant: Contestant, raw: bytes, calls: int) -> list[torch.Tensor]:
        outputs = contestant.outputs(raw)
        wrong = check.form([(o.dtype, o.shape, o.strides) for o in outputs], self.case.expected * calls)
        if wrong:
            raise Foul(Status.WRONG, "check", wrong)
        return [contestant.view(o) for o in outputs]

    def prove_outputs(self, variant: str) -> None:
        """Prove that the buffers behind the last outputs are the contestant's own; spoils the outputs."""
        contestant, _ = self.seats[variant]
        first = {o.block: o for o in contestant.outputs(self.known[variant][0])}
        for out in first.values():
            contestant.prove(out, self.limits.call_s)

    def poison(self) -> None:
        """Overwrite the outputs, which the contestant still holds, with plausible random values."""
        for view in self.fence.views:
            if view.is_floating_point():
                view.normal_(generator=self.case.generator)
            else:
                view.random_(0, 2, generator=self.case.generator)

    def require_intact_inputs(self, contestant: Contestant, calls: int) -> None:
        """Compare the mapped inputs with the private master copy, or raise Foul."""
        used = calls * self.case.inputs.size
        if not torch.equal(contestant.blocks[1][:used], self.master[:used]):
            raise Foul(Status.VIOLATION, "check", "the inputs were changed")


class Fence:
    """The judge's copy of a call's outputs, begun inside the window.

    Small outputs are copied whole before the clock stops. Of large ones random lines are, and the
    rest right after it: the copy then has to agree with those lines. Outputs hold random values
    before the call, so an answer sent while a share f of the lines was missing passes with
    probability (1 - f) to the number of lines, which is at least 32768.
    """

    def __init__(self, views: list[torch.Tensor], snapshots: list[torch.Tensor]) -> None:
        self.views = views
        self.snapshots = snapshots
        for index, view in enumerate(views):
            if index == len(snapshots) or (snapshots[index].shape, snapshots[index].stride()) != (view.shape, view.stride()):
                room = torch.empty_strided(view.shape, view.stride(), dtype=view.dtype, device=view.device)
                snapshots[index : index + 1] = [room]
        total = sum(v.numel() * v.element_size() for v in views)
        self.step = -(-total // FENCE_BYTES) if all(v.is_contiguous() for v in views) else 1
        self.lines = [_lines(v) for v in views] if self.step > 1 else []
        self.taken = [torch.empty_like(rows[:: self.step]) for rows in self.lines]
        self.offset = 0

    def close(self) -> None:
        """Enqueue what belongs inside the window."""
        if self.step > 1:
            self.offset = secrets.randbelow(self.step)
            for taken, rows in zip(self.taken, self.lines, strict=True):
                chosen = rows[self.offset :: self.step]
                taken[: len(chosen)].copy_(chosen)
        elif self.views:
            torch._foreach_copy_(self.snapshots[: len(self.views)], self.views)  # noqa: SLF001 - one launch for all

    def holds(self) -> bool:
        """Complete the copy; whether it agrees with what was taken inside the window."""
        if self.step == 1:
            return True
        for taken, rows, view, room in zip(self.taken, self.lines, self.views, self.snapshots, strict=False):
            room.copy_(view)
            chosen = _lines(room)[self.offset :: self.step]
            if len(rows) and not torch.equal(taken[: len(chosen)], chosen):
                return False
        return True


def _lines(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as lines of 128 bytes; a shorter rest at the end is left to the full copy."""
    flat = tensor.view(-1).view(torch.uint8)
    return flat[: len(flat) // LINE_BYTES * LINE_BYTES].view(-1, LINE_BYTES)


class Referee:
    """Rules on cells of one problem on one device."""

    def __init__(self, device: str, limits: Limits) -> None:
        self.device = torch.device(device)
        self.limits = limits
        self.zygotes = Zygotes(device)
        self.memory_bytes = min(8 * 2**30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") // 2)
        self.contestants: dict[str, Contestant] = {}
        self.case: Case | None = None
        self.trusted: Contestant | None = None
        self.trusted_case: Case | None = None

    def rule(self, problem: load.Problem, solution: load.Solution, cell: Cell, baselines: tuple[str, ...], entropy: bytes) -> Ruling:
        """Build, check and time one solution on one cell."""
        unsupported = self._prepare_case(problem, cell, entropy)
        if unsupported is not None:
            return Ruling(unsupported)
        case = self._current()
        flags: list[str] = []
        isolation: dict[str, Any] = {}
        checked: Checked | None = None
        try:
            contestant = self._contestant(solution)
            isolation = contestant.isolation
            bench = Bench(case, self.limits)
            bench.join(measure.SOLUTION, contestant, 0)
            checked = self._check(bench, contestant, solution)
            timed = None
            if case.device.type == "cuda" and baselines and cell.sweep != "hidden":
                timed = self._time(bench, baselines, flags)
            contestant.leave(self.limits.call_s)
        except Foul as foul:
            self._dismiss(solution)
            return Ruling(Failed(foul.status, foul.stage, foul.reason, foul.detail), isolation=isolation)
        if bench.seats[measure.SOLUTION][0].copied_outputs:
            flags.append("copied_output")
        return Ruling(None, checked, timed, isolation, tuple(flags))

    def _current(self) -> Case:
        assert self.case is not None  # noqa: S101 - set by _prepare_case
        return self.case

    def _prepare_case(self, problem: load.Problem, cell: Cell, entropy: bytes) -> Failed | None:
        """Make the cell's private side, shared by solutions that follow on the same cell."""
        if self.case is not None and self.case.cell == cell and self.case.problem.digest == problem.digest:
            return None
        self.case = None
        self._release_trusted()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            needed = _estimated_bytes(problem, cell)
            total = torch.cuda.get_device_properties(self.device).total_memory
            if needed > total:
                reason = f"needs about {needed >> 20} MiB of device memory, the card has {total >> 20}"
                return Failed(Status.UNSUPPORTED, "plan", reason)
        self.case = Case(problem, cell, self.device, entropy)
        return None

    def _contestant(self, solution: load.Solution) -> Contestant:
        known = self.contestants.get(solution.digest)
        if known is None:
            known = self.contestants[solution.digest] = Contestant(self.zygotes, self.memory_bytes)
        return known

    def _dismiss(self, solution: load.Solution) -> None:
        contestant = self.contestants.pop(solution.digest, None)
        if contestant is not None:
            contestant.close()

    def _seat(self, contestant: Contestant, job: dict[str, Any]) -> float | None:
        """Build a job in a contestant and hand it the parameters."""
        case = self._current()
        contestant.build(job, 2 if case.device.type == "cuda" else 3, self.limits.build_s)
        for item in case.parameters.tensors:
            item.view(contestant.blocks[0]).copy_(case.state[item.name])
        if case.device.type == "cuda":
            torch.cuda.synchronize()
        return contestant.load(self.limits.build_s)

    def _check(self, bench: Bench, contestant: Contestant, solution: load.Solution) -> Checked:
        """Check several calls in full: the first on the problem's own inputs, the others on the mixture."""
        case = bench.case
        prepare_us = self._seat(contestant, case.job(solution.source, solution.digest, solution.name, "ModelNew", ()))
        tally = check.Tally()
        close = False
        calls = CHECK_CALLS[case.device.type]
        for index in range(calls):
            if index:
                bench.fresh(1)
            else:
                case.draw_own(bench.master)
            bench.call(measure.SOLUTION, Call.FORWARD if index else Call.WITNESS, 1)
            self._hold(bench, contestant, tally, 0)
            if index == 0:
                close = tally.kernelbench_close
                bench.prove_outputs(measure.SOLUTION)
            bench.poison()
        return Checked(tally.errors, close, calls, tuple(_launch(f.text, f.args) for f in contestant.launches), prepare_us)

    def _hold(self, bench: Bench, contestant: Contestant, tally: check.Tally, call: int, sample: int | None = None) -> None:
        """Hold one call's snapshot against the oracle: all of it, or one sample."""
        case = bench.case
        bench.require_intact_inputs(contestant, call + 1)
        count = len(case.expected)
        outputs = bench.snapshots[call * count : (call + 1) * count]
        inputs = case.inputs.views(bench.master, call * case.inputs.size)
        if sample is not None:
            part = slice(sample, sample + 1)
            outputs = [y[part] for y in outputs]
            inputs = [x[part] if isinstance(x, torch.Tensor) else x for x in inputs]
        check.compare(outputs, inputs, case.oracle, case.reached, case.generator, tally)
        if tally.wrong:
            raise Foul(Status.WRONG, "check", tally.wrong)

    def _time(self, bench: Bench, baselines: tuple[str, ...], flags: list[str]) -> Timed | None:
        """Time the solution against the baselines, checking what is timed."""
        try:
            trusted = self._trusted(baselines)
        except Foul as foul:
            last = foul.detail.strip().rpartition("\n")[2]
            flags.append(f"no_baseline: {foul.reason} {last}".strip())
            return None
        for seat, name in enumerate(baselines):
            bench.join(name, trusted, seat)
        bench.seated[trusted.identity] = -1
        rng = random.Random(secrets.randbits(64))  # noqa: S311 - an order, no secret
        inspector = _Inspector(self, bench, rng)
        bench.checker = inspector.inspect
        eligible = [b for b in baselines if import_module(f"runner.baselines.{b}").HEADLINE]
        settings = measure.Settings(target=self.limits.target, budget_s=self.limits.timing_s)
        timed = measure.measure(bench, baselines, eligible, rng, settings)
        inspector.thorough = True
        bench.fresh(timed.samples[0].calls)
        bench.sample(measure.SOLUTION, timed.samples[0].calls)
        samples = tuple(replace(s, config={**s.config, **self._config(s.variant)}) for s in timed.samples)
        return replace(timed, samples=samples, checked_calls=inspector.checked)

    def _config(self, variant: str) -> dict[str, Any]:
        """What a row must say of a variant: TF32, and for baselines cuDNN's flags and the layout."""
        config: dict[str, Any] = {"allow_tf32": self._current().cell.arithmetic != "fp32"}
        if variant != measure.SOLUTION:
            module = import_module(f"runner.baselines.{variant}")
            config |= {**module.FLAGS, "layout": module.LAYOUT}
        return config

    def _trusted(self, baselines: tuple[str, ...]) -> Contestant:
        """The baselines' process, built for the current cell."""
        case = self._current()
        if self.trusted is not None and self.trusted_case is case:
            return self.trusted
        if self.trusted is None:
            self.trusted = Contestant(self.zygotes, self.memory_bytes)
        try:
            source, digest = case.problem.source, case.problem.digest
            self._seat(self.trusted, case.job(source, digest, "reference", "Model", baselines))
        except Foul:
            self.trusted.close()
            self.trusted = None
            raise
        self.trusted_case = case
        return self.trusted

    def _release_trusted(self) -> None:
        if self.trusted is not None and self.trusted_case is not None:
            try:
                self.trusted.leave(self.limits.call_s)
            except Foul:
                self.trusted.close()
                self.trusted = None
        self.trusted_case = None

    def close(self) -> None:
        """Let all processes go."""
        for contestant in (*self.contestants.values(), *([self.trusted] if self.trusted else [])):
            contestant.close()
        self.zygotes.close()


class _Inspector:
    """Checks timed calls after the fact: the first, the last and one sample in sixteen in full, a random
    slice of a random call of every other one.
    """

    def __init__(self, referee: Referee, bench: Bench, rng: random.Random) -> None:
        self.referee, self.bench, self.rng = referee, bench, rng
        self.seen = 0
        self.checked = 0
        self.thorough = False

    def inspect(self, calls: int) -> None:
        """Check what was just timed, or raise Foul."""
        full = self.thorough or self.seen == 0 or self.rng.randrange(FULL_CHECK_EVERY) == 0
        self.seen += 1
        case, tally = self.bench.case, check.Tally()
        contestant, _ = self.bench.seats[measure.SOLUTION]
        call = self.rng.randrange(calls)
        if full:
            self.referee._hold(self.bench, contestant, tally, call)  # noqa: SLF001 - two parts of one judge
        elif case.reached is not None:
            sample = self.rng.randrange(len(case.expected[0]))
            self.referee._hold(self.bench, contestant, tally, call, sample)  # noqa: SLF001
        else:
            return
        self.checked += 1


def _launch(kernel: str, args: tuple[int, ...]) -> Launch:
    x, y, z, warps, registers, spills, shared = args[:7]
    known = registers >= 0
    return Launch(kernel, (x, y, z), warps, registers if known else None, spills if known else None, shared if shared >= 0 else None)


def _estimated_bytes(problem: load.Problem, cell: Cell) -> int:
    """Device memory of a cell by the problem's own count of bytes, before anything is allocated."""
    count = getattr(problem.module(), "min_bytes", None)
    if count is None or problem.foreign:
        return 0
    one = int(count(problem.shape(cell.shape), 4 if cell.dtype == "fp32" else 2))
    return 4 * one + DEVICE_RESERVE_BYTES
