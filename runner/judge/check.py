"""Compare outputs with the oracle: per slice and population, normwise and elementwise.

A slice is a sample (an index of dimension 0 where the problem says that samples are independent,
else the whole output); a population is the outputs that taps reach, those that none reaches, or, where
many are far below the rest of their slice, those: a budget of the larger ones would not notice their lack.
The budget is a factor times the larger of what the reference itself loses in the cell's arithmetic
and what the class model loses, so a kernel that is more accurate than the reference always passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
#: Of a slice's outputs, those under this share of their RMS are small, if they are this share of them and so
#: many. Normal ones have a thousandth there; scores beside a mask of -1e9 are all of them.
_SMALL, _SMALL_SHARE, _FEWEST_SMALL = 1e-3, 0.1, 64
_CHUNK_ELEMENTS = 2**24
_Sizes = tuple[torch.Tensor, torch.Tensor]
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

    @property
    def share(self) -> float:
        """The worst error as a share of its budget; 0 where nothing was measured."""
        return max(map(_share, self.errors), default=0.0)

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
    independent: the oracle then works in chunks of them. None: one slice, one population. Where the device
    has too little room for that, the truth waits on the host. Raises torch.OutOfMemoryError where that is
    not enough.
    """
    masks: Sequence[torch.Tensor | None] = [None] * len(outputs) if reached is None else reached
    for part_in, part_out in _chunks(inputs, outputs, sliced=reached is not None):
        for truths_on_host in (False, True):
            try:
                _compare_part(part_out, part_in, oracle, masks, generator, tally, truths_on_host)
                break
            except torch.OutOfMemoryError:
                if truths_on_host:
                    raise
            torch.cuda.empty_cache()  # out of the handler, since what it handles holds all that did fit
        if tally.wrong:
            return


def _compare_part(
    outputs: Sequence[torch.Tensor],
    inputs: Sequence[Any],
    oracle: Oracle,
    masks: Sequence[torch.Tensor | None],
    generator: torch.Generator,
    tally: Tally,
    truths_on_host: bool,
) -> None:
    """Hold some samples, or all, one answer of the oracle at a time: the largest leave room for few."""
    truths = [y.cpu() if truths_on_host else y for y in oracle.truth(inputs)]
    names = [f" of output {index}" if len(outputs) > 1 else "" for index in range(len(outputs))]
    held = [_Held(*of_one) for of_one in zip(names, outputs, truths, masks, strict=True)]
    for one in held:
        tally.wrong = tally.wrong or one.misclassed()
    if tally.wrong:
        return
    # popped in a call, since a name would hold an answer while the next is made
    answers: list[torch.Tensor | None] = list(oracle.observed(inputs) or ())
    answers = answers or [None] * len(held)
    for one in held:
        one.observe(answers.pop(0), tally)
    draws = _draws(truths, by_channel=masks[0] is not None and oracle.arithmetic == "tf32")
    if any(one.differs or one.has_small for one in held):
        draws = _MOST_DRAWS
    for draw in range(draws if any(one.is_floating or one.differs for one in held) else 0):
        oracle.perturb(generator, draw)
        model = list(oracle.class_model(inputs, generator, draw))
        for one in held:
            one.allow(model.pop(0))
    for one in held:
        if not tally.wrong:
            one.judge(oracle.parameters, tally)


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


def _draws(truths: Sequence[torch.Tensor], *, by_channel: bool) -> int:
    fewest = min(max(1, t[0].numel() if t.dim() else 1) for t in truths)
    draws = -(-_MIN_CLASS_ERRORS // fewest)
    if by_channel:
        channels = min(max(1, t.shape[1] if t.dim() > 1 else 1) for t in truths)
        draws = max(draws, -(-_MIN_CLASS_CHANNELS // channels))
    return min(draws, _MOST_DRAWS)


class _Held:
    """An output beside its truth, while answers that an honest kernel may give pass by.

    All is [slices, elements of one], and looked at in chunks of columns: what is kept of an answer is its
    norm and its largest error per slice.
    """

    def __init__(
        self, name: str, out: torch.Tensor, truth: torch.Tensor, reached: torch.Tensor | None
    ) -> None:
        self.name, self.out, self.truth = name, out, truth
        self.is_floating = out.is_floating_point()
        slices = 1 if reached is None else len(out)
        self._out, self._truth = out.reshape(slices, -1), truth.reshape(slices, -1)
        every = torch.ones((1, 1), dtype=torch.bool, device=out.device).expand(1, self._out.shape[1])
        self._mask = every if reached is None else reached.expand(1, *out.shape[1:]).reshape(1, -1)
        #: Answers are kept only where outputs that no tap reaches may need them.
        self._answers: list[torch.Tensor] | None = None if bool(self._mask.all()) else []
        #: What answers lose, by population.
        self._allowed: dict[str, list[_Sizes]] = {"reached": [], "small": []}
        self._bound = self._bound_of_small() if self.is_floating else torch.zeros(slices)
        #: Whole numbers that nobody has answered yet, where there are any.
        self._odd: torch.Tensor | None = None

    @property
    def differs(self) -> bool:
        """Whether whole numbers are others than the truth and the reference say."""
        return self._odd is not None and bool(self._odd.any())

    @property
    def has_small(self) -> bool:
        """Whether many outputs are far below the rest: their errors are those of a few, and no luck."""
        return bool(self._bound.any())

    def misclassed(self) -> str:
        """NaN and infinities must match by position; looked at before any subtraction."""
        for part in self._parts() if self.is_floating else ():
            out, expected = self._out[:, part], self._expected(part)
            same = (out.isnan() == expected.isnan()) & (out.isposinf() == expected.isposinf())
            same &= out.isneginf() == expected.isneginf()
            if not bool(same.all()):
                return f"NaN or infinity: {self._told(~same, part)}"
        return ""

    def observe(self, seen: torch.Tensor | None, tally: Tally) -> None:
        """Allow what the reference loses itself, and tell whether KernelBench would take it for that."""
        answers = self._rows_of(seen)
        if self.is_floating:
            tolerance = _KERNELBENCH_TOLERANCE.get(self.out.dtype, 1e-4)
            tally.kernelbench_close &= all(
                torch.allclose(self._out[:, part], answers(part), atol=tolerance, rtol=tolerance)
                for part in self._parts()
            )
            self._allow(seen)
            return
        self._odd = torch.ones_like(self._out, dtype=torch.bool)
        self.allow(None)
        self.allow(seen)

    def allow(self, answer: torch.Tensor | None) -> None:
        """Allow what an honest answer loses, or where there is none the truth; of whole numbers its own."""
        if self._odd is None:
            self._allow(answer)
            return
        answers = self._rows_of(answer)
        for part in self._parts():
            self._odd[:, part] &= self._out[:, part] != answers(part)

    def judge(self, parameters: dict[str, torch.Tensor], tally: Tally) -> None:
        """Hold the output against what was allowed."""
        if self._odd is not None:
            if self.differs:
                tally.wrong = f"values: {self._told(self._odd, slice(None))}"
            return
        for population in self._populations():
            self._hold_main(population, tally)
        if self._answers is not None and not tally.wrong:
            self._hold_structural(parameters, tally)

    def _allow(self, answer: torch.Tensor | None) -> None:
        answers = self._rows_of(answer)
        for population in self._populations():
            sizes = self._sizes(lambda part: self._error(answers(part), part), population)
            self._allowed[population].append(sizes)
        if self._answers is not None:
            self._answers.append(self._expected(slice(None)) if answer is None else answer)

    def _hold_main(self, population: str, tally: Tally) -> None:
        """Normwise and elementwise, per slice."""
        floor = torch.finfo(self.out.dtype).smallest_normal
        # an output so small may be flushed to zero; the others gain nothing from that
        flushed = self._sizes(lambda part: (self._true(part).abs() < floor).double() * floor, population)
        error = self._sizes(lambda part: self._error(self._out[:, part], part), population)
        size = self._sizes(self._true, population)
        may_norm, may_peak = (
            torch.stack([*(sizes[i] for sizes in self._allowed[population]), _UNPERTURBED * size[i]]).amax(
                dim=0
            )
            + flushed[i]
            + _TINY
            for i in (0, 1)
        )
        count = self._counted(lambda part: self._within(population, part)).clamp(min=1)
        factor = NORMWISE_FACTOR * (1.0 + _LUCK / count.sqrt())
        norm_share, peak_share = error[0] / (factor * may_norm), error[1] / (ELEMENTWISE_FACTOR * may_peak)
        row = int(torch.maximum(norm_share, peak_share).argmax())
        scale = max(float(size[0][row]), floor)
        rms = scale / math.sqrt(float(count[row]))
        tally.add(
            PopulationError(
                population=population,
                normwise=float(error[0][row]) / scale,
                normwise_budget=float((factor * may_norm)[row]) / scale,
                elementwise=float(error[1][row]) / rms,
                elementwise_budget=ELEMENTWISE_FACTOR * float(may_peak[row]) / rms,
            )
        )
        if not tally.wrong and not (float(norm_share[row]) <= 1.0 and float(peak_share[row]) <= 1.0):
            tally.wrong = f"values: {self._worst(population, float(error[1].max()))}"

    def _hold_structural(self, parameters: dict[str, torch.Tensor], tally: Tally) -> None:
        """An output that no tap reaches is zero or a parameter, up to one rounding of the dtype.

        If the reference computes it, as a second layer does with the bias of a first, it may also lose what
        the class loses of such outputs.
        """
        every, mask, info = slice(None), ~self._mask, torch.finfo(self.out.dtype)
        size = _finite(self._true(every)).abs()
        unit = info.eps * size + info.smallest_normal
        off = _finite(self._error(self._out, every)).abs() * mask
        if bool((off > unit).any()):
            # to tell is slow, and most answers need no more than a rounding
            computed = mask & ~_is_copy(self._true(every), parameters).all(dim=0)
            rows = [self._rows_of(answer)(every) for answer in self._answers or ()]
            losses = [_UNPERTURBED * size, *(_finite(self._error(answer, every)) for answer in rows)]
            unit = unit + computed * ELEMENTWISE_FACTOR * max(
                float((e * computed).abs().max()) for e in losses
            )
        units = off / unit
        worst = float(units.max())
        tally.add(PopulationError("structural", 0.0, 1.0, worst, 1.0))
        if not worst <= 1.0:
            tally.wrong = f"values where no tap reaches: {self._told(units > 1.0, every)}"

    def _parts(self) -> Iterator[slice]:
        slices, columns = self._out.shape
        step = _CHUNK_ELEMENTS // slices  # of which there are as many only if they are as small
        return (slice(at, at + step) for at in range(0, columns, step))

    def _true(self, part: slice) -> torch.Tensor:
        return self._truth[:, part].to(self.out.device)

    def _expected(self, part: slice) -> torch.Tensor:
        return self._true(part).to(self.out.dtype)

    def _rows_of(self, answer: torch.Tensor | None) -> Callable[[slice], torch.Tensor]:
        """Columns of an answer, or, where there is none, of the truth as the output's dtype has it."""
        if answer is None:
            return self._expected
        rows = answer.reshape(self._out.shape)
        return lambda part: rows[:, part]

    def _error(self, answer: torch.Tensor, part: slice) -> torch.Tensor:
        return answer.double() - self._true(part)

    def _populations(self) -> tuple[str, ...]:
        return ("reached", "small") if self.has_small else ("reached",)

    def _within(self, population: str, part: slice) -> torch.Tensor:
        """Which of some columns a population has; broadcasts over slices where it is the same in all."""
        return self._mask[:, part] if population == "reached" else self._below(self._bound, part)

    def _below(self, bound: torch.Tensor, part: slice) -> torch.Tensor:
        size = self._true(part).abs()
        return self._mask[:, part] & (size < bound[:, None]) & (size > 0)

    def _bound_of_small(self) -> torch.Tensor:
        """Below what an output of each slice is small; 0 where a slice has few such outputs, or none."""
        count = self._counted(lambda part: self._mask[:, part])
        norm, _ = self._sizes(self._true, "reached")
        bound = _SMALL * norm / count.clamp(min=1).sqrt()
        small = self._counted(lambda part: self._below(bound, part))
        return bound * ((small >= _FEWEST_SMALL) & (small >= _SMALL_SHARE * count))

    def _counted(self, within: Callable[[slice], torch.Tensor]) -> torch.Tensor:
        """How many elements there are of each slice, as float64."""
        counts = [within(part).expand(len(self._out), -1).sum(dim=1) for part in self._parts()]
        return torch.stack(counts).sum(dim=0).double()

    def _sizes(self, values: Callable[[slice], torch.Tensor], population: str) -> _Sizes:
        """Norm and largest per slice of values in float64, [slices, columns], of a population."""
        squares = torch.zeros(len(self._out), dtype=torch.float64, device=self.out.device)
        peaks = squares.clone()
        for part in self._parts():
            some = _finite(values(part)) * self._within(population, part)
            squares += some.square().sum(dim=1)
            peaks = torch.maximum(peaks, some.abs().amax(dim=1))
        return squares.sqrt(), peaks

    def _worst(self, population: str, peak: float) -> str:
        for part in self._parts():
            off = _finite(self._error(self._out[:, part], part)).abs() * self._within(population, part)
            if bool((off == peak).any()):
                return self._told(off == peak, part)
        return ""

    def _told(self, wrong: torch.Tensor, part: slice) -> str:
        """Name the first of the elements of some columns that are wrong."""
        row, column = divmod(int(wrong.flatten().byte().argmax()), wrong.shape[1])
        at = row * self._out.shape[1] + (part.start or 0) + column
        place: list[int] = []
        for extent in reversed(self.out.shape):
            at, index = divmod(at, extent)
            place.insert(0, index)
        out, truth = (float(y[tuple(place)]) for y in (self.out, self.truth))
        digits = 6 if f"{out:.6g}" != f"{truth:.6g}" else 17
        return f"{out:.{digits}g} instead of {truth:.{digits}g} at {place}{self.name}"


def _finite(error: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(error, nan=0.0, posinf=0.0, neginf=0.0)


def _is_copy(truth: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    """Whether each value is zero or an element of a vector of parameters: nothing was computed."""
    vectors = [value for value in parameters.values() if value.dim() == 1 and value.is_floating_point()]
    return torch.isin(truth, torch.cat([truth.new_zeros(1), *(v.to(truth.dtype) for v in vectors)]))
