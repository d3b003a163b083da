"""Answers of layers that disregard or lose something, and honest ones that only round otherwise.

Layers are known by what PyTorch shows of them (parameters, `stride`, `groups`), never a problem by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from runner.judge.fakes import Answer, Asked, NotApplicable, is_floating
from runner.judge.reference import is_convolution

#: A scale this many units wrong is past the budget of any slice; a unit is what the class may lose.
_WRONG_UNITS = 16
_UNIT = {"tf32": 2.0**-10, "fp32": 2.0**-17, "fp16": 2.0**-11, "bf16": 2.0**-8}
#: Arithmetic -> the lower ones that a shortcut could take.
_LOWER = {
    "tf32": ("bf16", "fp16"),
    "fp32": ("tf32", "bf16", "fp16"),
    "fp16": ("bf16", "fp8"),
    "bf16": ("fp8",),
}
_STORED = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
#: Arguments of a layer and what they are when nobody asks.
_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
#: A reduction is rounded this often where it must not be rounded at all.
_PARTS = 32
#: Taps that are dropped one after another, the first and the last among them.
_TAPS = 8


def forgetful(model: nn.Module, used: dict[str, torch.Tensor]) -> Iterator[tuple[str, Answer]]:
    """Answers without a parameter: wrong even where they happen to be right, as with a bias of zero.

    `used` says of each parameter which elements any output depends on.
    """
    for place, module in model.named_modules():
        for own in module._parameters:  # noqa: SLF001 - named_parameters leaves out a missing bias
            name = f"{place}.{own}" if place else own
            yield f"{name} ignored", partial(_without, name, used.get(name))


def ignorant(model: nn.Module, used: dict[str, torch.Tensor]) -> Iterator[tuple[str, Answer]]:
    """Answers of a layer that disregards a channel, a tap, an argument, or the order of one of them."""
    yield "last input channel ignored", _last_channel
    yield "inputs of another group", partial(_other_group, model)
    for name, value in model.named_parameters():
        if value.dim() > 2:
            for tap in _taps(used[name]):
                text = ", ".join(map(str, tap))
                yield f"tap [{text}] of {name} dropped", partial(_reweighted, name, partial(_drop, tap))
            yield f"{name} flipped", partial(_reweighted, name, lambda w: w.flip(*range(2, w.dim())))
            yield f"{name} transposed", partial(_reweighted, name, _transposed)
    for place, module in model.named_modules():
        for argument, default in _DEFAULTS.items():
            if hasattr(module, argument):
                yield f"{argument} of {place} ignored", partial(_at_default, place, argument, default)


def _last_channel(asked: Asked) -> list[torch.Tensor]:
    x = asked.floating().clone()
    if x.dim() < 2:
        raise NotApplicable("no input channels")
    x[:, -1] = 0
    return asked.again([x if v is asked.floating() else v for v in asked.inputs])


def _other_group(model: nn.Module, asked: Asked) -> list[torch.Tensor]:
    groups = max(getattr(module, "groups", 1) for module in model.modules())
    if groups == 1:
        raise NotApplicable("one group")
    x = asked.floating()
    moved = x.roll(x.shape[1] // groups, 1)
    return asked.again([moved if v is x else v for v in asked.inputs])


def _without(name: str, used: torch.Tensor | None, asked: Asked) -> list[torch.Tensor]:
    if used is None:
        raise NotApplicable("the layer has none")
    if not used.any():
        raise NotApplicable("no output depends on it")
    return asked.again(change=lambda model: model.get_parameter(name).zero_())


def _taps(used: torch.Tensor) -> list[tuple[int, ...]]:
    """Choose among the taps that any output uses, evenly; a tap is an index of the kernel's axes."""
    places = used.any(0).any(0).nonzero().tolist()
    step = max(1, (len(places) - 1) / (_TAPS - 1))
    chosen = dict.fromkeys(round(i * step) for i in range(_TAPS) if round(i * step) < len(places))
    return [tuple(places[i]) for i in chosen]


def _drop(tap: tuple[int, ...], weight: torch.Tensor) -> torch.Tensor:
    kept = weight.clone()
    kept.movedim((0, 1), (-2, -1))[tap] = 0
    return kept


def _transposed(weight: torch.Tensor) -> torch.Tensor:
    if weight.dim() < 4 or weight.shape[-1] != weight.shape[-2]:
        raise NotApplicable("a kernel that cannot be transposed")
    return weight.transpose(-1, -2)


def _reweighted(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], asked: Asked
) -> list[torch.Tensor]:
    def reweight(model: nn.Module) -> None:
        weight = model.get_parameter(name)
        weight.copy_(change(weight.clone()))

    return asked.again(change=reweight)


def _at_default(place: str, argument: str, default: int, asked: Asked) -> list[torch.Tensor]:
    """Treat an argument as its default; the answer is cut or filled up to the form that was asked for."""

    def reset(model: nn.Module) -> None:
        module = model.get_submodule(place)
        given = getattr(module, argument)
        plain = (default,) * len(given) if isinstance(given, tuple) else default
        if given == plain:
            raise NotApplicable(f"{argument} is {default}")
        setattr(module, argument, plain)

    try:
        return [_fit(y, like) for y, like in zip(asked.again(change=reset), asked.truth, strict=True)]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # no output is left, or an output padding that this stride forbids
        raise NotApplicable(f"no layer without this {argument}") from error


def _fit(y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    fitted = torch.zeros_like(like)
    part = fitted
    for axis, (had, wanted) in enumerate(zip(y.shape, like.shape, strict=True)):
        y, part = (tensor.narrow(axis, 0, min(had, wanted)) for tensor in (y, part))
    part.copy_(y)
    return fitted


def imprecise(arithmetic: str, *, wide: bool) -> Iterator[tuple[str, Answer]]:
    """Answers in less than the cell's arithmetic; `wide` says that inputs take the range of fp32."""
    for lower in _LOWER[arithmetic]:
        if lower == "fp16" and arithmetic == "tf32" and not wide:
            yield "operands in fp16", _no_wide_inputs
        else:
            yield f"operands in {lower}", partial(_lowered, lower)
    yield "scaled by 1 + eps", partial(_scaled, 1 + _WRONG_UNITS * _UNIT[arithmetic])
    yield "accumulated in the dtype", _accumulated


def _no_wide_inputs(_: Asked) -> list[torch.Tensor]:
    raise NotApplicable("its own inputs have a range that fp16 holds, with the digits of TF32")


def _scaled(factor: float, asked: Asked) -> list[torch.Tensor]:
    return [(y * factor).to(y.dtype) for y in asked.truth]


def _lowered(lower: str, asked: Asked) -> list[torch.Tensor]:
    """Lose digits of operands: of inputs and weights, but of no bias, which is added and not multiplied."""

    def lose(value: torch.Tensor) -> torch.Tensor:
        if lower == "tf32":
            return (value.float().contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32).double()
        return value.float().to(_STORED[lower]).double()

    def lower_weights(model: nn.Module) -> None:
        for value in model.parameters():
            if value.dim() > 1:
                value.copy_(lose(value))

    return asked.again([lose(v) if is_floating(v) else v for v in asked.inputs], lower_weights)


def _accumulated(asked: Asked) -> list[torch.Tensor]:
    """Round partial sums of the last convolution's reduction to the cell's dtype."""
    if asked.oracle.dtype == torch.float32:
        raise NotApplicable("fp32 accumulates in fp32")
    layers = [(n, m) for n, m in asked.oracle.exact.named_modules() if is_convolution(m)]
    if not layers:
        raise NotApplicable("no layer whose reduction can be parted")
    order, terms = _reduction(layers[-1][1])
    if terms < 2 * _PARTS:
        raise NotApplicable("a short reduction")
    if _rounds_often(asked):
        raise NotApplicable("the reference accumulates so itself")
    parts = order * _PARTS // (int(order.max()) + 1)
    total = [torch.zeros_like(y) for y in asked.truth]
    for part in range(_PARTS):
        some = asked.again(change=partial(_only, layers[-1][0], parts == part, part == 0))
        total = [(y + more).to(asked.oracle.dtype).double() for y, more in zip(total, some, strict=True)]
    return total


def _reduction(layer: Any) -> tuple[torch.Tensor, int]:
    """Number the terms that an output sums over, for each weight; and how many of them there are."""
    weight, groups = layer.weight, layer.groups
    terms = weight[: len(weight) // groups, 0] if layer.transposed else weight[0]
    order = torch.arange(terms.numel(), device=weight.device).view_as(terms)
    if not layer.transposed:
        return order[None], terms.numel()
    # an output pixel meets one tap in as many as the stride has phases
    return order.repeat(groups, *[1] * (order.dim() - 1))[:, None], terms.numel() // math.prod(layer.stride)


def _rounds_often(asked: Asked) -> bool:
    """Whether the reference loses more than twice what one rounding of its outputs does."""
    for own, y in zip(asked.oracle.observed(asked.inputs) or [], asked.truth, strict=True):
        if (own.double() - y).norm() > 2 * (y.to(own.dtype).double() - y).norm():
            return True
    return False


def _only(name: str, chosen: torch.Tensor, biased: bool, model: nn.Module) -> None:
    layer = model.get_submodule(name)
    layer.get_parameter("weight").mul_(chosen)
    if not biased and layer.bias is not None:
        layer.get_parameter("bias").zero_()


def without(name: str, place: tuple[int, ...]) -> Answer:
    """Leave one element of a parameter, or of the first sample of an input, out of account."""

    def drop(tensor: torch.Tensor) -> torch.Tensor:
        tensor[place] = 0
        return tensor

    def answer(asked: Asked) -> list[torch.Tensor]:
        if not name.startswith("input"):
            return asked.again(change=lambda model: drop(model.get_parameter(name)))
        values = list(asked.inputs)
        number = int(name.removeprefix("input"))
        values[number] = drop(values[number].clone())
        return asked.again(values)

    return answer


def honest(arithmetic: str) -> Iterator[tuple[str, Answer]]:
    """Answers that no judge may refuse."""
    yield "float64, rounded once", lambda a: a.truth
    yield "the reference in this arithmetic", _own
    yield "fp32, channels in two halves", _in_halves
    if arithmetic == "tf32":
        yield "operands truncated to TF32", partial(_lowered, "tf32")


def _own(asked: Asked) -> list[torch.Tensor]:
    observed = asked.oracle.observed(asked.inputs)
    if observed is None:
        raise NotApplicable("PyTorch has no kernel for this dtype here")
    return observed


def _in_halves(asked: Asked) -> list[torch.Tensor]:
    """Sum over the even and the odd input channels apart: another order of the same reduction."""
    x = asked.floating()
    if x.dim() < 2:
        raise NotApplicable("no input channels")
    even = (torch.arange(x.shape[1], device=x.device) % 2 == 0).view(-1, *[1] * (x.dim() - 2))

    def summed(dtype: torch.dtype) -> list[torch.Tensor]:
        parts = (x * even, x * ~even, x * 0)
        answers = [asked.again([p if v is x else v for v in asked.inputs], dtype=dtype) for p in parts]
        return [a + (b - constant) for a, b, constant in zip(*answers, strict=True)]

    if not all(map(torch.allclose, summed(torch.float64), asked.truth)):
        raise NotApplicable("no linear operator")
    return summed(torch.float32)
