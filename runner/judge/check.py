"""Compare outputs with the oracle: per slice and population, normwise and elementwise.

A slice is a sample (an index of dimension 0 where the problem says that samples are independent,
else the whole output); a population is the outputs that taps reach, or those that none reaches.
The budget is a factor times the larger of what the reference itself loses in the cell's arithmetic
and what the class model loses, so a kernel that is more accurate than the reference always passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from runner.judge.oracle import Oracle
from runner.schema import PopulationError

#: Normwise: 1.5 for large slices; a slice of n elements may be unlucky by about 3 / sqrt(n).
NORMWISE_FACTOR = 1.5
ELEMENTWISE_FACTOR = 4.0
_LUCK = 3.0
#: Keeps a budget of zero from being divided by.
_TINY = torch.finfo(torch.float32).smallest_normal
#: What an output may lose of itself, whatever the class model says: that one knows nothing of what sums
#: lose, and perturbs no integers. 4096 positive fp32 numbers, added one after another, lose up to 2e-6.
_UNPERTURBED = 1e-6
#: The class model is drawn until its errors are no luck either: so many of them. In TF32 what a weight loses
#: moves all outputs of its channel alike where inputs are alike: so many channels, too.
_MIN_CLASS_ERRORS, _MIN_CLASS_CHANNELS, _MOST_DRAWS = 64, 16, 16
_CHUNK_ELEMENTS = 2**24
#: KernelBench: atol = rtol, by precision.
_KERNELBENCH_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-2}


@dataclass
class Tally:
    """The worst errors so far, as shares of their budgets, over slices, calls and outputs."""

    worst: dict[str, PopulationError] = field(default_factory=dict)
    kernelbench_close: bool = True  # over the calls since it was last set
    wrong: str = ""

    @property
    def errors(self) -> tuple[PopulationError, ...]:
        """The worst of each population."""
        return tuple(self.worst.values())

    def add(self, error: PopulationError) -> None:
        """Keep the worst."""
        known = self.worst.get(error.population)
        if known is None or _share(error) > _share(known):
            self.worst[error.population] = error


def _share(error: PopulationError) -> float:
    return max(error.normwise / error.normwise_budget, error.elementwise / error.elementwise_budget)


def form(
    outputs: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]], expected: Sequence[torch.Tensor]
) -> str:
    """Compare (dtype, shape, strides) of outputs with expected ones; returns what is wrong, or ''."""
    if len(outputs) != len(expected):
        return f"{len(outputs)} outputs instead of {len(expected)}"
    for (dtype, shape, strides), want in zip(outputs, expected, strict=True):
        name = str(want.dtype).removeprefix("torch.")
        if dtype != name:
            return f"dtype {dtype} instead of {name}"
        if shape != tuple(want.shape):
            return f"shape {list(shape)} instead of {list(want.shape)}"
        allowed = (_strides(shape, _contiguous(shape)), _strides(shape, want.stride()))
        if _strides(shape, strides) not in allowed:
            return f"strides {list(strides)} instead of contiguous"
    return ""


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def _strides(shape: tuple[int, ...], strides: Sequence[int]) -> tuple[int, ...]:
    return tuple(s for n, s in zip(shape, strides, strict=True) if n > 1)


def compare(
    outputs: Sequence[torch.Tensor],
    inputs: Sequence[Any],
    oracle: Oracle,
    reached: Sequence[torch.Tensor] | None,
    generator: torch.Generator,
    tally: Tally,
) -> None:
    """Hold `outputs` against the oracle on the same inputs, into `tally`.

    `reached` has a mask per output that broadcasts over samples, and means that samples are
    independent: the oracle then works in chunks of them. None: one slice, one population.
    """
    for part_in, part_out in _chunks(inputs, outputs, sliced=reached is not None):
        truths = oracle.truth(part_in)
        observed = oracle.observed(part_in)
        by_channel = reached is not None and oracle.arithmetic == "tf32"
        classes = _class_errors(oracle, part_in, truths, generator, by_channel=by_channel)
        for index, (out, truth) in enumerate(zip(part_out, truths, strict=True)):
            mask = None if reached is None else reached[index]
            seen = None if observed is None else observed[index]
            errors = [drawn[index] for drawn in classes]
            _compare_one(out, truth, seen, errors, mask, oracle.parameters, tally)
            if tally.wrong:
                return


def _chunks(
    inputs: Sequence[Any], outputs: Sequence[torch.Tensor], *, sliced: bool
) -> Iterator[tuple[list[Any], list[torch.Tensor]]]:
    if not sliced:
        yield list(inputs), list(outputs)
        return
    batch = len(outputs[0])
    each = max(max(y.numel() // batch, 1) for y in outputs)
    step = max(1, _CHUNK_ELEMENTS // each)
    for start in range(0, batch, step):
        part = slice(start, start + step)
        yield [x[part] if isinstance(x, torch.Tensor) else x for x in inputs], [y[part] for y in outputs]


def _class_errors(
    oracle: Oracle,
    inputs: Sequence[Any],
    truths: Sequence[torch.Tensor],
    generator: torch.Generator,
    *,
    by_channel: bool,
) -> list[list[torch.Tensor]]:
    fewest = min(max(1, t[0].numel() if t.dim() else 1) for t in truths)
    draws = -(-_MIN_CLASS_ERRORS // fewest)
    if by_channel:
        channels = min(max(1, t.shape[1] if t.dim() > 1 else 1) for t in truths)
        draws = max(draws, -(-_MIN_CLASS_CHANNELS // channels))
    found = []
    for draw in range(min(draws, _MOST_DRAWS)):
        oracle.perturb(generator, draw)
        model = oracle.class_model(inputs, generator, draw)
        found.append([y - t.double() for y, t in zip(model, truths, strict=True)])
    return found


def _compare_one(
    out: torch.Tensor,
    truth: torch.Tensor,
    observed: torch.Tensor | None,
    class_errors: list[torch.Tensor],
    reached: torch.Tensor | None,
    parameters: dict[str, torch.Tensor],
    tally: Tally,
) -> None:
    expected = truth.to(out.dtype)
    if not out.is_floating_point():
        off = out != expected if observed is None else (out != expected) & (out != observed)
        if bool(off.any()):
            tally.wrong = f"values: {_first(off, out, truth)}"
        return
    tally.wrong = _classes(out, expected, truth)
    if tally.wrong:
        return
    if observed is None:
        observed = expected
    tolerance = _KERNELBENCH_TOLERANCE.get(out.dtype, 1e-4)
    tally.kernelbench_close &= bool(torch.allclose(out, observed, atol=tolerance, rtol=tolerance))
    error = _finite(out.double() - truth)
    rounding = _UNPERTURBED * _finite(truth)
    allowed = [_finite(observed.double() - truth), *map(_finite, class_errors), rounding]
    everywhere = torch.ones((), dtype=torch.bool, device=out.device)
    main = everywhere if reached is None else reached
    slices = reached is not None
    _hold_main(error, truth, allowed, main, out, tally, slices=slices)
    if reached is not None and not tally.wrong and not bool(reached.all()):
        _hold_structural(error, truth, allowed, ~reached, out, parameters, tally)


def _classes(out: torch.Tensor, expected: torch.Tensor, truth: torch.Tensor) -> str:
    """NaN and infinities must match by position; checked before any subtraction."""
    same = (out.isnan() == expected.isnan()) & (out.isposinf() == expected.isposinf())
    same &= out.isneginf() == expected.isneginf()
    return "" if bool(same.all()) else f"NaN or infinity: {_first(~same, out, truth)}"


def _finite(error: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(error, nan=0.0, posinf=0.0, neginf=0.0)


def _hold_main(
    error: torch.Tensor,
    truth: torch.Tensor,
    allowed: list[torch.Tensor],
    mask: torch.Tensor,
    out: torch.Tensor,
    tally: Tally,
    *,
    slices: bool,
) -> None:
    """Normwise and elementwise, per slice; `allowed` are errors that an honest kernel may make."""
    floor = torch.finfo(out.dtype).smallest_normal
    # an output so small may be flushed to zero; the others gain nothing from that
    flushed = (truth.abs() < floor) * floor

    def norm(x: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = torch.linalg.vector_norm(_rows(x * mask, slices), dim=1)
        return total

    def peak(x: torch.Tensor) -> torch.Tensor:
        return _rows((x * mask).abs(), slices).amax(dim=1)

    size = _finite(truth)
    count = _rows(mask.expand_as(truth), slices).sum(dim=1).clamp(min=1)
    may_norm = torch.stack([norm(e) for e in allowed]).amax(dim=0) + norm(flushed) + _TINY
    may_peak = torch.stack([peak(e) for e in allowed]).amax(dim=0) + peak(flushed) + _TINY
    factor = NORMWISE_FACTOR * (1.0 + _LUCK / count.sqrt())
    total, worst = norm(error), peak(error)
    norm_share, peak_share = total / (factor * may_norm), worst / (ELEMENTWISE_FACTOR * may_peak)
    row = int(torch.maximum(norm_share, peak_share).argmax())
    scale = max(float(norm(size)[row]), floor)
    rms = scale / math.sqrt(float(count[row]))
    tally.add(
        PopulationError(
            population="reached",
            normwise=float(total[row]) / scale,
            normwise_budget=float((factor * may_norm)[row]) / scale,
            elementwise=float(worst[row]) / rms,
            elementwise_budget=ELEMENTWISE_FACTOR * float(may_peak[row]) / rms,
        )
    )
    if not (float(norm_share[row]) <= 1.0 and float(peak_share[row]) <= 1.0):
        off = (error * mask).abs()
        tally.wrong = f"values: {_first(off == off.max(), out, truth)}"


def _hold_structural(
    error: torch.Tensor,
    truth: torch.Tensor,
    allowed: list[torch.Tensor],
    mask: torch.Tensor,
    out: torch.Tensor,
    parameters: dict[str, torch.Tensor],
    tally: Tally,
) -> None:
    """An output that no tap reaches is zero or a parameter, up to one rounding of the dtype.

    If the reference computes it, as a second layer does with the bias of a first, it may also lose what the
    class loses of such outputs.
    """
    info = torch.finfo(out.dtype)
    unit = info.eps * _finite(truth).abs() + info.smallest_normal
    off = (error * mask).abs()
    if bool((off > unit).any()):
        # the same in every sample; to tell is slow, and most answers need no more than a rounding
        computed = mask & ~_is_copy(truth[:1], parameters)
        unit = unit + computed * ELEMENTWISE_FACTOR * max(float((e * computed).abs().max()) for e in allowed)
    units = off / unit
    worst = float(units.max())
    tally.add(PopulationError("structural", 0.0, 1.0, worst, 1.0))
    if not worst <= 1.0:
        tally.wrong = f"values where no tap reaches: {_first(units > 1.0, out, truth)}"


def _is_copy(truth: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    """Whether each value is zero or an element of a vector of parameters: nothing was computed."""
    vectors = [value for value in parameters.values() if value.dim() == 1 and value.is_floating_point()]
    return torch.isin(truth, torch.cat([truth.new_zeros(1), *(v.to(truth.dtype) for v in vectors)]))


def _rows(x: torch.Tensor, slices: bool) -> torch.Tensor:
    return x.reshape(len(x), -1) if slices else x.reshape(1, -1)


def _first(wrong: torch.Tensor, out: torch.Tensor, truth: torch.Tensor) -> str:
    place = [int(i) for i in wrong.nonzero()[0]]
    at = tuple(place)
    return f"{float(out[at]):.6g} instead of {float(truth[at]):.6g} at {place}"
