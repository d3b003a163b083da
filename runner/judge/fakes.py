"""Answers that a judge must refuse, made from right ones.

A fake is computed in float64, so that its one fault is all that tells it from the truth, and raises
NotApplicable where there is nothing to get wrong: no bias to ignore, no second sample to mix up. Those of
this module need the right answer alone; those of `fake_layers` change the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from runner.judge.oracle import Oracle
from runner.judge.reference import outputs_of

#: What the first axes of an output hold.
_NAMES = (("sample", "samples"), ("channel", "channels"))


class NotApplicable(Exception):
    """There is nothing to get wrong here; the reason in a few words."""


@dataclass(frozen=True)
class Asked:
    """One call: its inputs in the cell's dtype, the right answer in float64, and other calls' answers."""

    oracle: Oracle
    inputs: list[Any]
    truth: list[torch.Tensor]
    first: list[torch.Tensor]
    other: list[torch.Tensor]

    def again(
        self,
        inputs: Sequence[Any] | None = None,
        change: Callable[[nn.Module], object] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> list[torch.Tensor]:
        """Answer as the reference would in `dtype` with other inputs or after a change of the model."""
        model = copy.deepcopy(self.oracle.exact).to(dtype)
        with torch.no_grad():
            if change is not None:
                change(model)
        values = self.inputs if inputs is None else inputs
        return outputs_of(model, [v.to(dtype) if is_floating(v) else v for v in values])

    def each(self, change: Callable[[torch.Tensor], object]) -> list[torch.Tensor]:
        """Copy the truth and change each output in place."""
        copies = [y.clone() for y in self.truth]
        for y in copies:
            change(y)
        return copies

    def floating(self) -> torch.Tensor:
        """Return the first floating input."""
        found: torch.Tensor | None = next((v for v in self.inputs if is_floating(v)), None)
        if found is None:
            raise NotApplicable("no floating input")
        return found


Answer = Callable[[Asked], list[torch.Tensor]]


def is_floating(value: object) -> bool:
    """Whether a value is a tensor of floating numbers."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def constant() -> Iterator[tuple[str, Answer]]:
    """Answers that hardly depend on the call: wrong even where they happen to be right."""
    yield "zeros", lambda a: [torch.zeros_like(y) for y in a.truth]
    yield "ones", lambda a: [torch.ones_like(y) for y in a.truth]
    yield "mean", lambda a: [_mean(y, list(range(y.dim()))) for y in a.truth]
    yield "mean of each channel", lambda a: [_mean(y, [d for d in range(y.dim()) if d != 1]) for y in a.truth]
    yield "input ignored", lambda a: a.again([v * 0 if is_floating(v) else v for v in a.inputs])
    yield "first answer for ever", lambda a: a.first
    yield "another call's answer", lambda a: a.other
    yield "unwritten buffer", lambda a: [_noise(y) for y in a.truth]
    yield "input passed through", lambda a: [_fill(y, a.floating()) for y in a.truth]
    yield "input squared", lambda a: [_fill(y, a.floating().double().square()) for y in a.truth]
    yield "mean of the input", lambda a: [torch.full_like(y, float(a.floating().mean())) for y in a.truth]


def _mean(y: torch.Tensor, over: list[int]) -> torch.Tensor:
    mean = y.double().mean(over, keepdim=True)
    if mean.numel() == y.numel():
        raise NotApplicable("a mean of one element")
    return mean.expand_as(y).to(y.dtype).contiguous()


def _noise(y: torch.Tensor) -> torch.Tensor:
    rms = y.double().square().mean().sqrt()
    return (rms * torch.randn(y.shape, dtype=torch.float64, device=y.device)).to(y.dtype)


def _fill(y: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Spread values over the form of y, again from the start where they do not suffice."""
    flat = values.flatten()
    return flat.repeat(-(-y.numel() // flat.numel()))[: y.numel()].view_as(y).to(y.dtype)


def incomplete(dimensions: int) -> Iterator[tuple[str, Answer]]:
    """Right answers of which a part is left out or misplaced; outputs have so many dimensions."""
    yield "one element left out", lambda a: a.each(_drop_element)
    for axis in range(dimensions):
        name, names = (
            _NAMES[axis] if axis < len(_NAMES) else (f"line of axis {axis}", f"lines of axis {axis}")
        )
        yield f"last {name} left out", partial(_along, axis, lambda y: y[-1].zero_())
        yield f"first half of {names} left out", partial(_along, axis, lambda y: y[: len(y) // 2].zero_())
        yield f"every other {name} left out", partial(_along, axis, lambda y: y[1::2].zero_())
        yield f"last {name} repeats its neighbour", partial(_along, axis, lambda y: y[-1].copy_(y[-2]))
        yield f"{names} shifted by one", partial(_along, axis, lambda y: y.copy_(y.roll(1, 0)))
    yield "last axes exchanged", lambda a: [_exchanged(y) for y in a.truth]


def _along(axis: int, change: Callable[[torch.Tensor], object], asked: Asked) -> list[torch.Tensor]:
    """Change one sample alone where the axis lies within samples: the others must not hide it."""

    def one(y: torch.Tensor) -> None:
        if axis >= y.dim() or y.shape[axis] < 2:
            raise NotApplicable(f"axis {axis} has one element")
        change(y if axis == 0 else y[-1].transpose(0, axis - 1))

    return asked.each(one)


def _drop_element(y: torch.Tensor) -> None:
    flat = y.view(-1)
    flat[int((flat != 0).to(torch.uint8).argmax())] = 0


def _exchanged(y: torch.Tensor) -> torch.Tensor:
    if y.dim() < 4 or y.shape[-1] != y.shape[-2] or y.shape[-1] == 1:
        raise NotApplicable("the last two axes cannot be exchanged")
    return y.transpose(-1, -2).contiguous()


#: Right values in a wrong form, or with one place that is no number; from outputs in the cell's dtype.
Spoil = Callable[[list[torch.Tensor]], list[torch.Tensor]]


def spoiled() -> Iterator[tuple[str, Spoil]]:
    """Right values in a wrong form, and numbers that are none."""
    yield "a wider dtype", lambda ys: [y.double() for y in ys]
    yield "one output fewer", lambda ys: ys[:-1]
    yield "one output more", lambda ys: [*ys, ys[0]]
    yield "one dimension more", lambda ys: [y[None] for y in ys]
    yield "one element for all", lambda ys: [_spread(y) for y in ys]
    yield "NaN everywhere", partial(_put, torch.nan, slice(None))
    yield "one NaN", partial(_put, torch.nan, -1)
    yield "one infinity", partial(_put, torch.inf, -1)


def _spread(y: torch.Tensor) -> torch.Tensor:
    if y.numel() == 1:
        raise NotApplicable("one element is all")
    return y.view(-1)[0].expand(y.shape)


def _put(value: float, where: int | slice, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    if not any(y.is_floating_point() for y in outputs):
        raise NotApplicable("whole numbers")
    changed = [y.clone() for y in outputs]
    for y in changed:
        if y.is_floating_point():
            y.view(-1)[where] = value
    return changed
