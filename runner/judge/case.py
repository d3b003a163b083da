"""A cell's private side: what is asked, with what parameters, and what the answer looks like."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from runner import load
from runner.channel import MAX_OUTPUTS
from runner.judge.check import Tally, compare
from runner.judge.inputs import EXTREMES, SCALED_SHARE, SCALES, TORCH_DTYPES, Item, draw_mixture, lay_out
from runner.judge.oracle import Oracle
from runner.judge.reference import (
    Multiplications,
    ProblemFault,
    Products,
    blamed,
    is_convolution,
    outputs_of,
    watched,
)
from runner.models import construct, settle
from runner.schema import Cell

#: At most this many calls make a sample,
MAX_CALLS = 32
#: and their slots this share of the device's memory: contestant, baselines and judge hold it several times.
SLOT_SHARE = 1 / 20
#: What inputs reach is looked for with so many samples at once, of small inputs.
_REACHING_SAMPLES = 32
#: Of each input, so many elements are held against those of the draw before.
_SAMPLE = 64
#: Share by which parameters are varied that a constructor sets to one value.
_VARIED = 0.1
#: An answer to other inputs has to miss its budget this many times: a mean of answers misses by less.
DISTINCT_SHARE = 2.0
#: A frame tells of outputs of so many dimensions.
MAX_DIMENSIONS = 8
#: Beside inputs and outputs: three CUDA contexts, the oracle's chunks, library workspaces.
DEVICE_RESERVE_BYTES = 6 * 2**30


class Case:
    """A cell's private side: layouts, parameters, oracle, masters and snapshots."""

    def __init__(self, problem: load.Problem, cell: Cell, device: torch.device, entropy: bytes) -> None:
        make_room(device)
        self.problem, self.cell, self.device = problem, cell, device
        self.dtype = TORCH_DTYPES[cell.dtype]
        with blamed("module"):
            self.module = problem.module()
        self.shape = problem.shape(cell.shape)
        self._arguments = () if self.shape is None else (self.shape,)
        self.init = self._listed("get_init_inputs")
        self.encoded = [encoded("get_init_inputs", value) for value in self.init]
        self.fixed = getattr(self.module, "PARAMETERS", "fixed") == "fixed"
        self.entropy = entropy
        self.generator = torch.Generator(device)
        self._seeds = random.Random()  # noqa: S311 - seeded by the operating system's entropy, in `begin`
        self.begin(entropy)
        specimens = self._specimens()
        self.inputs = lay_out([(f"input{i}", v) for i, v in enumerate(specimens)], self.dtype)
        #: Labels, indices, masks: what of them a problem can take only its own `get_inputs` knows.
        self._whole = [item for item in self.inputs.tensors if not item.dtype.is_floating_point]
        torch.manual_seed(_seed(entropy))
        with blamed("Model"):
            model = self.module.Model(*self.init)
            state = model.state_dict()
            self.parameters = lay_out(list(state.items()), self.dtype)
        if any(value.is_complex() for value in state.values()):
            raise ProblemFault(
                "the problem's Model has complex parameters or buffers: keep two real ones instead"
            )
        _vary(model)
        self.state = {
            name: v.to(device, self.dtype if v.is_floating_point() else v.dtype) for name, v in state.items()
        }
        self.oracle = Oracle(
            lambda: construct(self.module.Model, self.init),
            self.state,
            self.dtype,
            cell.arithmetic,
            watch=lambda reference: watched(reference, device),
            exact_integers=problem.foreign,
        )
        self.expected = self._expected(specimens)
        given = [v for v in specimens if isinstance(v, torch.Tensor)]
        if not all(tensor.numel() for tensor in (*given, *self.expected)):
            raise ProblemFault("the problem has an input or an output without elements")
        self.output_bytes = sum(-(-_extent(y) * y.element_size() // 256) * 256 for y in self.expected)
        self.reached = self._reached()

    def _listed(self, function: str) -> list[Any]:
        with blamed(function):
            values = getattr(self.module, function)(*self._arguments)
        if not isinstance(values, (list, tuple)):
            raise ProblemFault(f"the problem's {function} returns a {type(values).__name__}: return a list")
        return list(values)

    def _specimens(self) -> list[Any]:
        """Inputs without values: of what cannot be drawn on meta tensors, the form of what can be drawn."""
        try:
            with torch.device("meta"):
                drawn = self._listed("get_inputs")
        except ProblemFault:
            with torch.device(self.device):
                drawn = self._listed("get_inputs")
        return [v.to("meta") if isinstance(v, torch.Tensor) else v for v in drawn]

    def _expected(self, specimens: list[Any]) -> list[torch.Tensor]:
        """The outputs' form, from the reference on meta tensors, or where it needs values on a draw.

        A stranger's strides may be those of the device's own kernels, which meta tensors do not know.
        """
        with self._products() as products:
            outputs = None if self.problem.foreign else self._expected_on_meta(specimens)
            outputs = outputs or self._expected_of_a_draw()
        if products is not None and not products.found:
            self.oracle.arithmetic = "fp32"  # what multiplies no matrices has nothing to gain from TF32
        for index, one in enumerate(outputs):
            if one.is_complex() or one.is_sparse or one.dim() > MAX_DIMENSIONS:
                form = f"a {one.layout} tensor of {one.dtype} with {one.dim()} dimensions"
                raise ProblemFault(
                    f"output {index} of the problem's Model is {form}: return dense real ones of at most "
                    f"{MAX_DIMENSIONS} dimensions"
                )
        return outputs

    def _products(self) -> contextlib.AbstractContextManager[Products | None]:
        """Look for products where they matter and no layer of the suite's own tells: that imports Dynamo."""
        layers = () if self.problem.foreign else self.oracle.exact.modules()
        multiplies = any(isinstance(one, nn.Linear) or is_convolution(one) for one in layers)
        if self.cell.arithmetic != "tf32" or multiplies:
            return contextlib.nullcontext()
        return Products()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def _multiplying(self, inputs: list[Any]) -> Iterator[None]:
        """Look for products of what the model makes itself, without Dynamo."""
        with Multiplications(inputs) as found:
            yield
        self.oracle.composed = found.composed

    def _expected_on_meta(self, specimens: list[Any]) -> list[torch.Tensor] | None:
        inputs = [
            v.to(self.dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for v in specimens
        ]
        try:
            with torch.device("meta"):
                model = settle(construct(self.module.Model, self.init), torch.device("meta"), self.dtype)
                with self._multiplying(inputs):
                    return outputs_of(model, inputs)
        except ProblemFault:
            raise
        except Exception:  # noqa: BLE001 - a problem's code, which may raise anything
            return None

    def _expected_of_a_draw(self) -> list[torch.Tensor]:
        inputs = self._drawn()
        with blamed("Model"):
            with self._multiplying(inputs):
                outputs = self.oracle.observed(inputs)
            if outputs is None:
                outputs = [
                    y.to(self.dtype) if y.is_floating_point() else y for y in self.oracle.truth(inputs)
                ]
        return [_like(y) for y in outputs]

    def _drawn(self) -> list[Any]:
        """Inputs as the problem draws them."""
        block = torch.zeros(self.inputs.size, dtype=torch.uint8, device=self.device)
        self.draw_own(block)
        return self.inputs.views(block)

    def require_distinct_answers(self) -> None:
        """Raise ProblemFault where an answer to other inputs would pass, or one constant for all.

        A dozen booleans agree by luck once in 300 times, so what does not differ is asked twice again.
        """
        if not (self._answers_differ() or (self._answers_differ() and self._answers_differ())):
            raise ProblemFault(
                f"in {self.cell.arithmetic} the problem's answers hardly depend on its inputs: one kept from "
                "others would pass"
            )

    def _answers_differ(self) -> bool:
        kept = self.oracle.truth(self._drawn())
        answers = [y.to(want.dtype) for y, want in zip(kept, self.expected, strict=True)]
        del kept
        tally = Tally()
        compare(answers, self._drawn(), self.oracle, self.reached, self.generator, tally)
        return bool(tally.wrong) and not 0 < tally.share <= DISTINCT_SHARE

    def _reached(self) -> list[torch.Tensor] | None:
        if getattr(self.module, "BATCH_DIM", None) != 0:
            return None
        generator = torch.Generator(self.device).manual_seed(_seed(self.entropy))
        masks = self.oracle.reached(self._samples(generator), generator)
        return [mask.any(dim=0, keepdim=True) for mask in masks]

    def _samples(self, generator: torch.Generator) -> Iterator[list[Any]]:
        """Yield a few samples of the inputs again and again: small, normal and positive ones by turns.

        What saturates or clips holds its outputs for some of them. Whole numbers are the problem's own.
        """
        largest = max((math.prod(item.shape[1:]) for item in self.inputs.tensors), default=1)
        rows = max(1, min(_REACHING_SAMPLES, 2**20 // max(largest, 1)))

        def sample(item: Any, own: Any, scale: float, shift: float) -> Any:
            if not isinstance(item, Item):
                return item
            if not item.dtype.is_floating_point:
                return own[:rows]
            few = (min(rows, item.shape[0]), *item.shape[1:])
            drawn = torch.empty(few, dtype=torch.float32, device=self.device)
            return drawn.normal_(generator=generator).mul_(scale).add_(shift)

        for scale, shift in itertools.cycle(((1e-3, 0.0), (1.0, 0.0), (0.1, 1.0))):
            drawn = self._own() if self._whole else self.inputs.items
            yield [sample(i, own, scale, shift) for i, own in zip(self.inputs.items, drawn, strict=True)]

    def begin(self, entropy: bytes) -> None:
        """Begin the draws for one solution; the same entropy gives the same values in the same order."""
        self.generator.manual_seed(_seed(entropy))
        self._seeds.seed(entropy)
        self._last_drawn: list[Any] = []

    @property
    def max_calls(self) -> int:
        """How many distinct inputs a sample can have."""
        if self.device.type == "cpu":
            return 1
        budget = int(SLOT_SHARE * torch.cuda.get_device_properties(self.device).total_memory)
        each = self.inputs.size + self.output_bytes
        return max(1, min(MAX_CALLS, budget // each, MAX_OUTPUTS // len(self.expected)))

    def draw(self, calls: int, block: torch.Tensor, extreme: int | None = None) -> None:
        """Fill the first `calls` slots of a master block with fresh values, all as large or small as asked.

        `extreme` counts through `EXTREMES`, again and again.
        """
        if self.shape is None:
            for slot in range(calls):
                self.draw_own(block, slot)
            return
        slots = block[: calls * self.inputs.size].view(calls, self.inputs.size)
        for item in self.inputs.tensors:
            samples = item.shape[0] if len(item.shape) > 1 else 1
            width = max(1, item.size // item.dtype.itemsize // max(samples, 1))
            if not item.dtype.is_floating_point:
                continue
            scales, share = SCALES[self.cell.dtype], SCALED_SHARE
            if extreme is not None:
                extremes = EXTREMES[self.cell.dtype]
                scales, share = extremes[extreme % len(extremes)], 1.0
            drawn = draw_mixture(calls * samples, width, item.dtype, self.generator, scales, share)
            place = slots[:, item.offset : item.offset + item.size].view(item.dtype)
            place.copy_(drawn.view(calls, -1))
        for slot in range(calls if self._whole else 0):
            for item, value in zip(self.inputs.items, self._own(), strict=True):
                if item in self._whole:
                    item.view(block, slot * self.inputs.size).copy_(value)

    def draw_own(self, block: torch.Tensor, slot: int = 0) -> None:
        """Fill one slot by the problem's own `get_inputs`, as KernelBench would."""
        with blamed("get_inputs, drawn again,"):
            for item, value in zip(self.inputs.items, self._own(), strict=True):
                if isinstance(value, torch.Tensor):
                    item.view(block, slot * self.inputs.size).copy_(value)

    def _own(self) -> list[Any]:
        """Draw by the problem's `get_inputs`, with a seed of its own each time."""
        seed = self._seeds.getrandbits(62)
        torch.manual_seed(seed)
        with torch.device(self.device):
            values = self._listed("get_inputs")
        first = [v.flatten()[:_SAMPLE].tolist() for v in values if isinstance(v, torch.Tensor)]
        drawn = any(isinstance(v, torch.Tensor) and v.is_floating_point() for v in values)
        if torch.initial_seed() != seed or (drawn and first == self._last_drawn):
            raise ProblemFault("the problem's get_inputs gives the same inputs again: have it set no seed")
        self._last_drawn = first
        return values

    def job(
        self, source: str, digest: str, name: str, entry: str, policies: tuple[str, ...]
    ) -> dict[str, Any]:
        """What a contestant is told about the cell."""
        return {
            "source": source,
            "digest": digest,
            "name": name,
            "entry": entry,
            "init": self.encoded,
            "parameters": [i.to_json() for i in self.parameters.tensors],
            "parameter_bytes": self.parameters.size,
            "inputs": [
                i.to_json() if hasattr(i, "to_json") else {"value": encoded("get_inputs", i)}
                for i in self.inputs.items
            ],
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


def encoded(function: str, value: Any) -> Any:
    """Turn what is no tensor into JSON; tuples stay tuples. Raises ProblemFault for what cannot travel."""
    if isinstance(value, tuple):
        return {"tuple": [encoded(function, v) for v in value]}
    if isinstance(value, list):
        return [encoded(function, v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ProblemFault(
        f"the problem's {function} holds a {type(value).__name__}: "
        "only numbers, texts, lists and tuples of them travel, and tensors that are inputs themselves"
    )


@torch.no_grad()
def _vary(model: nn.Module) -> None:
    """Have parameters matter that a constructor sets to one value: ones and zeros could be left out.

    Buffers stay: a layer may count in them, or mask by them.
    """
    for value in model.parameters():
        if value.is_floating_point() and value.numel() and bool((value == value.flatten()[0]).all()):
            value.mul_(1 + _VARIED * (2 * torch.rand_like(value) - 1))
            value.add_(_VARIED * torch.rand_like(value) * (value == 0))


def _like(output: torch.Tensor) -> torch.Tensor:
    """An output's form; one that repeats itself in memory has to be written out."""
    overlaps = any(n > 1 and not stride for n, stride in zip(output.shape, output.stride(), strict=True))
    if overlaps:
        return torch.empty(output.shape, dtype=output.dtype, device="meta")
    return torch.empty_strided(output.shape, output.stride(), dtype=output.dtype, device="meta")


def _extent(tensor: torch.Tensor) -> int:
    """Elements from the first to the last of a tensor, gaps counted."""
    return 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))


def make_room(device: torch.device) -> None:
    """Give back what PyTorch keeps of freed memory, where others may need it: less than half is free."""
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    if 2 * free < total:
        gc.collect()  # a cell before may lie in a cycle of references
        torch.cuda.empty_cache()


def shortage(problem: load.Problem, cell: Cell, device: torch.device) -> str:
    """Say that a device's memory cannot hold a cell, by the problem's own count of bytes; empty if it may."""
    count = getattr(problem.module(), "min_bytes", None)
    if count is None or problem.foreign:
        return ""
    with blamed("min_bytes"):
        needed = 4 * int(count(problem.shape(cell.shape), 4 if cell.dtype == "fp32" else 2))
    if device.type == "cuda":
        needed += DEVICE_RESERVE_BYTES
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    return f"needs about {needed >> 20} MiB of memory, {device} has {total >> 20}" if needed > total else ""
