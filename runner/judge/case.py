"""A cell's private side: what is asked, with what parameters, and what the answer looks like."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from runner import load
from runner.channel import MAX_OUTPUTS
from runner.judge.inputs import SCALES, TORCH_DTYPES, draw_mixture, lay_out
from runner.judge.oracle import Oracle, outputs_of
from runner.schema import Cell

#: At most this many calls make a sample,
MAX_CALLS = 32
#: and their slots this share of the device's memory: contestant, baselines and judge hold it several times.
SLOT_SHARE = 1 / 20
#: Beside inputs and outputs: three CUDA contexts, the oracle's chunks, library workspaces.
DEVICE_RESERVE_BYTES = 6 * 2**30


class ProblemFault(Exception):
    """A problem's own code fails, or its answer cannot be known."""


@contextlib.contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Have what fails in a block, but for want of memory, be the problem's fault."""
    try:
        yield
    except (ProblemFault, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ProblemFault(f"the problem's {what} raises {reason}") from error


def _watched(reference: nn.Module, device: torch.device) -> nn.Module:
    """Have a reference raise where it draws random numbers: nobody can know its answer."""
    before: list[list[bytes]] = []

    def states() -> list[bytes]:
        of_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        return [state.numpy().tobytes() for state in (torch.get_rng_state(), *of_device)]

    def enter(*_: object) -> None:
        before.append(states())

    def leave(*_: object) -> None:
        if before.pop() != states():
            raise ProblemFault("the problem's Model draws random numbers in forward: its answer is not known")

    reference.register_forward_pre_hook(enter)
    reference.register_forward_hook(leave)
    return reference


class Case:
    """A cell's private side: layouts, parameters, oracle, masters and snapshots."""

    def __init__(self, problem: load.Problem, cell: Cell, device: torch.device, entropy: bytes) -> None:
        self.problem, self.cell, self.device = problem, cell, device
        self.dtype = TORCH_DTYPES[cell.dtype]
        with _blamed("module"):
            module = problem.module()
        self.shape = problem.shape(cell.shape)
        arguments = () if self.shape is None else (self.shape,)
        self.get_inputs: Callable[[], list[Any]] = lambda: list(module.get_inputs(*arguments))
        with _blamed("get_init_inputs"):
            self.init = list(module.get_init_inputs(*arguments))
        self.fixed = getattr(module, "PARAMETERS", "fixed") == "fixed"
        self.entropy = entropy
        self.generator = torch.Generator(device)
        self._seeds = random.Random()  # noqa: S311 - seeded by the operating system's entropy, in `begin`
        self.begin(entropy)
        torch.manual_seed(_seed(entropy))
        with _blamed("Model"):
            model = module.Model(*self.init)
        with _blamed("get_inputs"), torch.device("meta"):
            specimens = self.get_inputs()
        self.inputs = lay_out([(f"input{i}", v) for i, v in enumerate(specimens)], self.dtype)
        self.parameters = lay_out(list(model.state_dict().items()), self.dtype)
        state = {
            name: v.to(device, self.dtype if v.is_floating_point() else v.dtype)
            for name, v in model.state_dict().items()
        }
        self.state = state
        self.oracle = Oracle(
            lambda: _watched(module.Model(*self.init), device), state, self.dtype, cell.arithmetic
        )
        with _blamed("Model"):
            self.expected = self._expected(module, specimens)
        given = [v for v in specimens if isinstance(v, torch.Tensor)]
        if not all(tensor.numel() for tensor in (*given, *self.expected)):
            raise ProblemFault("the problem has an input or an output without elements")
        self.output_bytes = sum(-(-y.numel() * y.element_size() // 256) * 256 for y in self.expected)
        self.reached = self._reached(module)

    def _expected(self, module: Any, specimens: list[Any]) -> list[torch.Tensor]:
        """The outputs' form, from the reference on meta tensors."""
        with torch.device("meta"):
            model = module.Model(*self.init).to(self.dtype)
        inputs = [
            v.to(self.dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for v in specimens
        ]
        return outputs_of(model, inputs)

    def _reached(self, module: Any) -> list[torch.Tensor] | None:
        if getattr(module, "BATCH_DIM", None) != 0:
            return None
        one = [
            torch.ones((1, *v.shape[1:]), dtype=v.dtype, device=self.device) if hasattr(v, "shape") else v
            for v in self.inputs.views(torch.empty(self.inputs.size, dtype=torch.uint8, device="meta"))
        ]
        return self.oracle.reached(one)

    def begin(self, entropy: bytes) -> None:
        """Begin the draws for one solution; the same entropy gives the same values in the same order."""
        self.generator.manual_seed(_seed(entropy))
        self._seeds.seed(entropy)

    @property
    def max_calls(self) -> int:
        """How many distinct inputs a sample can have."""
        if self.device.type == "cpu":
            return 1
        budget = int(SLOT_SHARE * torch.cuda.get_device_properties(self.device).total_memory)
        each = self.inputs.size + self.output_bytes
        return max(1, min(MAX_CALLS, budget // each, MAX_OUTPUTS // len(self.expected)))

    def draw(self, calls: int, block: torch.Tensor, extreme: tuple[float, float] | None = None) -> None:
        """Fill the first `calls` slots of a master block with fresh values, all of them extreme if given."""
        if self.shape is None:
            for slot in range(calls):
                self.draw_own(block, slot)
            return
        slots = block[: calls * self.inputs.size].view(calls, self.inputs.size)
        for item in self.inputs.tensors:
            samples = item.shape[0] if len(item.shape) > 1 else 1
            width = max(1, item.size // item.dtype.itemsize // max(samples, 1))
            if not item.dtype.is_floating_point:
                size = (calls * samples, width)
                drawn = torch.randint(2, size, generator=self.generator, device=self.device)
            elif extreme is not None and self.cell.dtype != "fp16":
                drawn = draw_mixture(calls * samples, width, item.dtype, self.generator, extreme, 1.0)
            else:
                scales = SCALES[self.cell.dtype]
                drawn = draw_mixture(calls * samples, width, item.dtype, self.generator, scales)
            place = slots[:, item.offset : item.offset + item.size].view(item.dtype)
            place.copy_(drawn.view(calls, -1))

    def draw_own(self, block: torch.Tensor, slot: int = 0) -> None:
        """Fill one slot by the problem's own `get_inputs`, as KernelBench would."""
        torch.manual_seed(self._seeds.getrandbits(62))
        with torch.device(self.device):
            values = self.get_inputs()
        for item, value in zip(self.inputs.items, values, strict=True):
            if isinstance(value, torch.Tensor):
                item.view(block, slot * self.inputs.size).copy_(value)

    def job(
        self, source: str, digest: str, name: str, entry: str, policies: tuple[str, ...]
    ) -> dict[str, Any]:
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


def _seed(entropy: bytes) -> int:
    return int.from_bytes(entropy[:8], "little") >> 1


def encode(value: Any) -> Any:
    """Turn constructor arguments into JSON; tuples stay tuples. Raises TypeError for anything else."""
    if isinstance(value, tuple):
        return {"tuple": [encode(v) for v in value]}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"get_init_inputs holds a {type(value).__name__}: only numbers, texts, lists and tuples travel"
    )


def make_room(device: torch.device) -> None:
    """Give back what PyTorch keeps of freed memory, where others may need it: less than half is free."""
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    if 2 * free < total:
        torch.cuda.empty_cache()


def shortage(problem: load.Problem, cell: Cell, device: torch.device) -> str:
    """Say that a device's memory cannot hold a cell, by the problem's own count of bytes; empty if it may."""
    count = getattr(problem.module(), "min_bytes", None)
    if count is None or problem.foreign:
        return ""
    needed = 4 * int(count(problem.shape(cell.shape), 4 if cell.dtype == "fp32" else 2))
    if device.type == "cuda":
        needed += DEVICE_RESERVE_BYTES
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    return f"needs about {needed >> 20} MiB of memory, {device} has {total >> 20}" if needed > total else ""
