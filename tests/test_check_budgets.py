"""Budgets worked out by hand: what the comparator allows, to the digit, from errors that are made up.

No layer is computed here, so all of it takes a fraction of a second: `test_check_mutants` runs it against
several hundred comparators that are slightly wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch

from runner.judge import check
from runner.judge.oracle import Oracle
from runner.schema import PopulationError

#: Every output is this where nothing else is said: sums with small whole numbers are exact in any dtype.
LEVEL = 64.0
HALF_FLOOR = torch.finfo(torch.float16).smallest_normal
FLOOR = torch.finfo(torch.float32).smallest_normal


@dataclass
class Told:
    """An oracle that answers as it is told; its inputs are numbers of samples, and a text."""

    truths: list[torch.Tensor]
    own: list[torch.Tensor] | None
    drawn: list[list[torch.Tensor]]
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    arithmetic: str = "tf32"
    asked: list[list[int]] = field(default_factory=list)
    draws: list[tuple[str, int]] = field(default_factory=list)

    def truth(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        samples, text = inputs
        assert text == "as given"
        self.asked.append(samples.tolist())
        return [y[samples] if y.dim() else y for y in self.truths]

    def observed(self, inputs: Sequence[Any]) -> list[torch.Tensor] | None:
        return None if self.own is None else [y[inputs[0]] if y.dim() else y for y in self.own]

    def perturb(self, _: torch.Generator, draw: int) -> None:
        self.draws.append(("perturb", draw))

    def class_model(self, inputs: Sequence[Any], _: torch.Generator, draw: int) -> list[torch.Tensor]:
        self.draws.append(("model", draw))
        errors = self.drawn[min(draw, len(self.drawn) - 1)]
        return [(y + e)[inputs[0]] if y.dim() else y + e for y, e in zip(self.truths, errors, strict=True)]


def hold(oracle: Told, outputs: list[torch.Tensor], reached: torch.Tensor | None = None) -> check.Tally:
    """Compare; `reached` is the mask of every output."""
    tally = check.Tally()
    samples = torch.arange(len(outputs[0]) if outputs[0].dim() else 1)
    masks = None if reached is None else [reached] * len(outputs)
    told = cast("Oracle", oracle)
    check.compare(outputs, [samples, "as given"], told, masks, torch.Generator(), tally)
    return tally


def judged(
    error: torch.Tensor,
    own: torch.Tensor | float = 0.0,
    drawn: Sequence[torch.Tensor | float] = (0.0,),
    *,
    truth: torch.Tensor | None = None,
    reached: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **parameters: torch.Tensor,
) -> check.Tally:
    """Judge an answer of errors in [slice, element], when the reference and each draw make theirs."""
    true = torch.full(error.shape, LEVEL, dtype=torch.float64) if truth is None else truth.double()
    wide = [[torch.as_tensor(e, dtype=torch.float64).expand(error.shape)] for e in drawn]
    oracle = Told([true], [(true + own).to(dtype)], wide, parameters)
    return hold(oracle, [(true + error).to(dtype)], reached)


def at(elements: int, *errors: float) -> torch.Tensor:
    """One slice of so many elements, of which the first have errors."""
    return torch.tensor([[*errors, *[0.0] * (elements - len(errors))]], dtype=torch.float64)


def near(value: float) -> object:
    """As exact as a square root in fp32 is, however small."""
    return pytest.approx(value, rel=1e-6, abs=0.0)


def budget(tally: check.Tally, population: str = "reached") -> PopulationError:
    (found,) = (one for one in tally.errors if one.population == population)
    return found


def test_a_budget_comes_from_the_larger_of_two_errors() -> None:
    """Of 16 elements, whose factor is 1.5 (1 + 3 / 4); the class is drawn four times."""
    none, one, two, four = (at(16, error) for error in (0.0, 1.0, 2.0, 4.0))
    for own, drawn, norm, peak in (
        (two, (one,), 2.0, 2.0),
        (one, (two,), 2.0, 2.0),
        (two, (two,), 2.0, 2.0),
        (-two, (-one,), 2.0, 2.0),
        (at(16, 3.0, 4.0), (none,), 5.0, 4.0),
        # each draw is an honest answer
        (none, (four, none), 4.0, 4.0),
        (none, (none, four, none), 4.0, 4.0),
        (none, (none, one, four, two), 4.0, 4.0),
        # the least, where nothing is perturbed
        (none, (none,), 4e-6 * LEVEL, 1e-6 * LEVEL),
    ):
        found = budget(judged(none, own, drawn))
        assert found.normwise_budget == near(2.625 * norm / (4 * LEVEL))
        assert found.elementwise_budget == near(4 * peak / LEVEL)


def test_luck_is_granted_to_small_slices() -> None:
    for elements, factor in ((1, 6.0), (4, 3.75), (9, 3.0), (36, 2.25), (900, 1.65)):
        found = budget(judged(at(elements), at(elements, 1.0)))
        assert found.normwise_budget == near(factor / (LEVEL * elements**0.5))


def test_errors_are_measured_beside_the_truth() -> None:
    found = budget(judged(at(16, 3.0, -4.0), at(16, 8.0)))
    assert (found.normwise, found.elementwise) == (5.0 / (4 * LEVEL), 4.0 / LEVEL)
    found = budget(judged(at(4, HALF_FLOOR), truth=at(4), dtype=torch.float16))
    assert (found.normwise, found.elementwise) == (1.0, 2.0)


def test_a_budget_may_be_used_up() -> None:
    """Nine elements have a factor of 3; the reference loses 1, in one element or in all."""
    for own, limit in ((at(9, 1.0), 3.0), (torch.ones(1, 9), 4.0)):
        assert not judged(at(9, 0.0, limit), own).wrong
        assert judged(at(9, 0.0, -1.125 * limit), own).wrong == (
            f"values: {LEVEL - 1.125 * limit:.6g} instead of 64 at [0, 1]"
        )


def test_the_place_is_that_of_the_largest_error() -> None:
    assert judged(at(9, 2.0, 0.0, -8.0, 4.0)).wrong == "values: 56 instead of 64 at [0, 2]"
    reached = torch.tensor([[False, True, True]])
    error = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    assert judged(error, reached=reached).wrong == "values: 68 instead of 64 at [1, 2]"


def test_every_slice_has_a_budget_of_its_own() -> None:
    """The worst slice is told, be it by its norm or by one element."""
    all_reached = torch.ones(1, 9, dtype=torch.bool)
    own = torch.cat([torch.ones(1, 9), at(9, 8.0)])
    for error, norm, peak in (
        # shares of the norm's budget and of an element's: 0.33 and 0.75 before 0.5 and 0.38
        (torch.cat([at(9, 3.0), at(9, 12.0)]), 3.0, 3.0),
        # 0.79 and 0.59 before 0.71 and 0.75
        (torch.cat([at(9, 3.0, *[2.0] * 8), at(9, 19.0)]), 19.0, 19.0),
    ):
        found = judged(error, own, reached=all_reached)
        assert not found.wrong
        assert budget(found).normwise == near(norm / (3 * LEVEL))
        assert budget(found).elementwise == near(peak / LEVEL)
    # neither the other's size nor its errors excuse a slice; as one slice they would
    error = torch.cat([at(9), at(9, 4.0)])
    own = torch.cat([at(9, 8.0), at(9, 1.0)])
    assert judged(error, own, reached=all_reached).wrong.endswith("at [1, 0]")
    assert not judged(error, own).wrong


def test_only_what_taps_reach_counts_in_a_slice() -> None:
    """Nine of 18 elements, beside which the others are huge and wrong."""
    reached = torch.arange(18)[None] % 2 == 0
    truth = torch.where(reached, LEVEL, 1e6)
    found = judged(at(18, 3.0), at(18, 1.0, 500.0), (at(18, 0.0, 500.0),), truth=truth, reached=reached)
    assert not found.wrong
    expected = PopulationError("reached", 1 / 64, 1 / 64, 3 / 64, 4 / 64)
    assert budget(found) == expected
    nothing = judged(at(4), reached=torch.zeros(1, 4, dtype=torch.bool))
    assert budget(nothing).normwise_budget == near(6.0)  # of the floor, beside the floor


def test_what_is_flushed_is_granted_where_it_is_flushed() -> None:
    """Below the smallest normal number an output may become zero; from there on it may not."""
    for small, granted in ((HALF_FLOOR / 2, 1.0), (-HALF_FLOOR / 2, 1.0), (HALF_FLOOR, 0.0)):
        truth = at(9, small, small, small, small) + at(9, 0, 0, 0, 0, 1, 1, 1, 1, 1)
        found = budget(judged(at(9), truth=truth, dtype=torch.float16))
        size = float(truth.norm())
        norm, peak = (2 * granted * HALF_FLOOR + 1e-6 * size, granted * HALF_FLOOR + 1e-6)
        assert found.normwise_budget == near(3 * norm / size)
        assert found.elementwise_budget == near(4 * peak / (size / 3))
    # beside what the reference loses
    found = budget(judged(at(9), at(9, 0.0, 0.5), truth=at(9, 0.0, 1.0), dtype=torch.float16))
    floor = HALF_FLOOR * 8**0.5
    assert found.normwise_budget == near(3 * (0.5 + floor))
    assert found.elementwise_budget == near(4 * (0.5 + HALF_FLOOR) * 3)


#: Whether taps reach each of four elements.
HALF_REACHED = torch.tensor([[True, True, False, False]])


def test_what_no_tap_reaches_has_one_rounding() -> None:
    """And the smallest normal number, which is all that zero has."""
    for dtype in (torch.float32, torch.float16):
        info = torch.finfo(dtype)
        for value, step in ((0.0, info.smallest_normal), (1.0, info.eps)):
            truth = torch.tensor([[LEVEL, LEVEL, value, value]], dtype=torch.float64)
            for steps in (0, 1, -1, 1.25, -3):
                answer = (truth + at(4, 0.0, 0.0, steps * step)).to(dtype)
                share = float((answer - truth).abs().max()) / (info.eps * value + info.smallest_normal)
                bias = torch.tensor([1.0])
                found = judged(
                    answer - truth, 0.5, (0.5,), truth=truth, reached=HALF_REACHED, dtype=dtype, bias=bias
                )
                assert budget(found, "structural") == PopulationError("structural", 0.0, 1.0, share, 1.0)
                assert bool(found.wrong) == (share > 1.0) == (abs(steps) > 1 + value / 2)


def test_a_constant_that_is_computed_may_lose_more() -> None:
    """Four times the worst that is lost there, of reference and class, beside the rounding."""
    truth = torch.tensor([[LEVEL, LEVEL, 3.0, 3.0]] * 3, dtype=torch.float64)
    weight, count = torch.full((1, 1), 3.0), torch.tensor([3])
    rounding = 3 * torch.finfo(torch.float32).eps
    for own, drawn in (((9.0, 0.0, 0.25, 0.0), 0.125), ((9.0, 0.0, 0.0, -0.125), -0.25)):
        loss = at(4, *own).repeat(3, 1)
        for error, wrong in ((1.0, False), (-1.0, False), (1.125, True)):
            answer = torch.cat([at(4), at(4, 0.0, 0.0, 0.0, error), at(4)])
            found = judged(
                answer, loss, (drawn,), truth=truth, reached=HALF_REACHED, weight=weight, count=count
            )
            share = abs(error) / (1.0 + rounding)
            assert budget(found, "structural").elementwise == near(share)
            assert found.wrong == (
                "values where no tap reaches: 4.125 instead of 3 at [1, 3]" if wrong else ""
            )
            # the element of a vector is copied, as zero is
            bias = torch.tensor([2.0, 3.0])
            found = judged(answer, loss, (drawn,), truth=truth, reached=HALF_REACHED, bias=bias)
            assert found.wrong.startswith("values where no tap reaches: ")


def test_what_is_computed_in_any_sample_is_computed() -> None:
    for first in (0.0, 3.0, 5.0):
        truth = torch.tensor([[LEVEL, LEVEL, 3.0, first], [LEVEL, LEVEL, 3.0, 5.0]], dtype=torch.float64)
        error = torch.cat([at(4), at(4, 0.0, 0.0, 0.0, 0.5)])
        found = judged(error, 0.125, (0.125,), truth=truth, reached=HALF_REACHED, bias=torch.tensor([3.0]))
        assert not found.wrong


def test_a_constant_within_a_rounding_is_measured_by_it() -> None:
    """Exactly one rounding of 2, which is computed, and of 0, which is copied."""
    truth = torch.tensor([[LEVEL, LEVEL, 2.0, 0.0]], dtype=torch.float64)
    for error in (at(4, 0.0, 0.0, 2.0**-22), at(4, 0.0, 0.0, 0.0, FLOOR)):
        found = judged(error, 0.5, (0.5,), truth=truth, reached=HALF_REACHED)
        assert budget(found, "structural").elementwise == 1.0
        assert not found.wrong
    zeros = torch.tensor([[LEVEL, LEVEL, 0.0, 0.0]], dtype=torch.float64)
    both = judged(at(4, 0.0, 0.0, FLOOR, 2 * FLOOR), truth=zeros, reached=HALF_REACHED)
    assert both.wrong.endswith(" instead of 0 at [0, 3]")


def test_the_main_population_is_told_before_the_constants() -> None:
    both = judged(at(4, 9.0, 0.0, 9.0), reached=HALF_REACHED)
    assert both.wrong == "values: 73 instead of 64 at [0, 0]"
    assert [one.population for one in both.errors] == ["reached"]
    all_reached = judged(at(4), reached=torch.ones(1, 4, dtype=torch.bool))
    assert [one.population for one in all_reached.errors] == ["reached"]


BEYOND = 1e300


def test_classes_of_numbers_are_compared_by_position() -> None:
    """Also where the truth is finite and only its rounding is not."""
    truth = torch.tensor([[math.nan, math.inf, -math.inf, BEYOND, -BEYOND, 1.0]], dtype=torch.float64)
    right = truth.float()
    oracle = Told([truth], [right], [[torch.zeros(1, 6, dtype=torch.float64)]])
    assert not hold(oracle, [right]).wrong
    assert budget(hold(oracle, [right])).normwise == 0.0
    values = (math.nan, math.inf, -math.inf, 1.0)
    for place in range(6):
        for value in values:
            answer = right.clone()
            answer[0, place] = value
            if torch.equal(answer.nan_to_num(9.0), right.nan_to_num(9.0)):
                continue
            said = hold(oracle, [answer]).wrong
            assert (
                said
                == f"NaN or infinity: {value:.6g} instead of {float(truth[0, place]):.6g} at [0, {place}]"
            )


def beside(large: int, small: int, value: float = 2.0**-5, other: float = 0.0) -> torch.Tensor:
    """One slice of so many outputs of 64, so many small ones, and one other."""
    row = [*[LEVEL] * large, *[value] * small, other]
    return torch.tensor([row], dtype=torch.float64)


def without_small(truth: torch.Tensor) -> torch.Tensor:
    return -truth * (truth.abs() < 1.0)


def test_small_outputs_have_a_budget_of_their_own() -> None:
    """The large ones may lose 1, which is 32 small ones; those lose 2**-10, and may lose what they do."""
    truth = beside(64, 64)
    small = (truth < 1.0) & (truth > 0.0)
    own = torch.where(small, 2.0**-10, 1.0)
    wrong = judged(without_small(truth), own, truth=truth)
    assert wrong.wrong == "values: 0 instead of 0.03125 at [0, 64]"
    for factor, passes in ((2.0625, True), (2.125, False)):  # 1.5 (1 + 3 / 8)
        found = judged(small * factor * 2.0**-10, own, truth=truth)
        assert bool(found.wrong) != passes
        errors = budget(found, "small")
        assert errors.normwise == near(factor / 32)
        assert errors.normwise_budget == near(2.0625 / 32)
        assert errors.elementwise == near(factor / 32)
        assert errors.elementwise_budget == near(4.0 / 32)
        assert budget(found).normwise_budget > 0.02
    one = torch.zeros_like(truth)
    for place, error, passes in ((70, 4.0, True), (70, 4.125, False), (3, 64.0, True)):
        found = judged(one.index_fill(1, torch.tensor(place), error * 2.0**-10), own, truth=truth)
        assert bool(found.wrong) != passes


def test_few_outputs_are_not_small() -> None:
    """Fewer than 64, or than a tenth of a slice; nor are zeros, or what is a thousandth of the RMS."""
    for truth, has_small in (
        (beside(64, 64), True),
        (beside(64, 63), False),
        (beside(575, 64), True),
        (beside(576, 64), False),
        (beside(64, 64, 0.0), False),
        (beside(64, 64, 0.0, 2.0**-5), False),
        (beside(63, 64, 0.0449, LEVEL), True),
        (beside(63, 64, 0.0456, LEVEL), False),
        (beside(64, 64, -(2.0**-5)), True),
    ):
        found = judged(without_small(truth), (truth >= 1.0) * 1.0, truth=truth)
        assert {one.population for one in found.errors} == {"reached", *["small"] * has_small}
        assert bool(found.wrong) == has_small


def test_small_outputs_are_those_of_each_slice() -> None:
    """Of two slices one has some, and another has what is small beside the first."""
    truth = torch.cat([beside(64, 64), beside(0, 128, 2.0**-5)])
    error = torch.zeros_like(truth)
    error[1] = 2.0**-9
    own = error.clone()
    own[0] = 0.25
    assert not judged(error, own, truth=truth, reached=torch.ones(()) > 0).wrong
    error[0, 64:128] = -(2.0**-5)
    found = judged(error, own, truth=truth, reached=torch.ones(()) > 0)
    assert found.wrong == ""
    own[0, 64:128] = 2.0**-8
    found = judged(error, own, truth=truth, reached=torch.ones(()) > 0)
    assert found.wrong == "values: 0 instead of 0.03125 at [0, 64]"
    oracle = Told([truth], [(truth + own).float()], [[own]])
    hold(oracle, [truth.float()], torch.ones(()) > 0)
    assert len(oracle.draws) == 2 * 16


def test_what_no_tap_reaches_is_not_small() -> None:
    truth = beside(64, 128)
    for limit, has_small in ((64 + 63, False), (64 + 64, True)):
        reached = torch.arange(193) < limit
        found = judged(truth * 0, 1.0, truth=truth, reached=reached)
        assert {one.population for one in found.errors} == {"reached", "structural", *["small"] * has_small}


def test_a_class_error_that_is_no_number_grants_nothing() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        found = budget(judged(at(16), 0.0, (at(16, bad),)))
        assert found.elementwise_budget == near(4e-6)


def test_whole_numbers_are_equal_or_wrong() -> None:
    truth = torch.tensor([1, 2, 3])
    oracle = Told([truth], [truth], [[truth * 0]])
    assert not hold(oracle, [truth.clone()]).wrong
    assert hold(oracle, [torch.tensor([1, 2, 9])]).wrong == "values: 9 instead of 3 at [2]"
    # or what the reference says in the cell's own arithmetic, as of the largest of near ones
    oracle = Told([truth], [torch.tensor([1, 7, 3])], [[truth * 0]])
    assert not hold(oracle, [torch.tensor([1, 7, 3])]).wrong
    assert hold(oracle, [torch.tensor([7, 2, 3])]).wrong == "values: 7 instead of 1 at [0]"
    assert not hold(Told([truth], [truth + 1], [[truth * 0 + 5]]), [truth.clone()]).wrong


def test_whole_numbers_may_be_what_a_draw_of_the_class_says() -> None:
    """The largest of near ones is another one where operands lose something: each of them, by any draw."""
    truth = torch.tensor([[1, 2, 3]])
    nothing = [torch.zeros_like(truth)]
    for draw in (0, 7, 15):
        drawn = [*[nothing] * draw, [torch.tensor([[0, 6, 0]])], *[nothing] * 15]
        oracle = Told([truth], [truth], [*drawn[:15], [torch.tensor([[0, 0, 5]])]] if draw < 15 else drawn)
        assert not hold(oracle, [torch.tensor([[1, 8, 3]])]).wrong
        assert len(oracle.draws) == 2 * 16
        assert hold(oracle, [torch.tensor([[7, 8, 3]])]).wrong == "values: 7 instead of 1 at [0, 0]"
        assert hold(oracle, [torch.tensor([[1, 9, 3]])]).wrong == "values: 9 instead of 2 at [0, 1]"
        both = hold(oracle, [torch.tensor([[1, 8, 8]])]).wrong
        assert both == ("" if draw < 15 else "values: 8 instead of 3 at [0, 2]")


def test_one_of_two_outputs_that_is_off_is_not_forgotten() -> None:
    truth = torch.tensor([1, 2, 3])
    oracle = Told([truth, truth], None, [[truth * 0, truth * 0]])
    wrong = hold(oracle, [torch.tensor([1, 2, 9]), truth]).wrong
    assert wrong == "values: 9 instead of 3 at [2] of output 0"
    # truth values, too
    truth = torch.tensor([True, False])
    assert hold(Told([truth], None, [[truth.double()]]), [~truth]).wrong


def test_the_first_wrong_output_is_told() -> None:
    truth = torch.full((2, 3), LEVEL, dtype=torch.float64)
    oracle = Told([truth, truth], None, [[truth * 0, truth * 0]])
    right, wrong, worse = truth.float(), truth.float() + 1, truth.float() + 2
    assert hold(oracle, [right, wrong]).wrong.startswith("values: 65")
    assert hold(oracle, [wrong, right]).wrong.startswith("values: 65")
    assert hold(oracle, [wrong, worse]).wrong.startswith("values: 65")
    assert hold(oracle, [right, wrong]).wrong.endswith("at [0, 0] of output 1")


def test_a_wrong_value_has_the_digits_by_which_it_differs() -> None:
    truth = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    oracle = Told([truth], [truth.float()], [[truth * 0]], {"bias": torch.ones(1)})
    unreached = torch.zeros((1, 2), dtype=torch.bool)

    def said(value: float) -> str:
        return hold(oracle, [torch.tensor([[1.0, value]])], unreached).wrong.partition(": ")[2]

    assert said(1.25) == "1.25 instead of 1 at [0, 1]"
    assert said(1.001953125) == "1.00195 instead of 1 at [0, 1]"
    assert said(1 + 5 * 2**-23) == "1.0000005960464478 instead of 1 at [0, 1]"


def test_an_output_is_held_against_its_own_truth_and_errors() -> None:
    truths = [torch.full((2, 9), level, dtype=torch.float64) for level in (LEVEL, 2 * LEVEL)]
    own = [truths[0].float(), truths[1].float() + 1]
    oracle = Told(truths, own, [[truths[0] * 0, truths[1] * 0 + 2]])
    found = hold(oracle, [truths[0].float(), truths[1].float()])
    assert not found.wrong
    assert hold(oracle, [truths[0].float() + 2, truths[1].float()]).wrong.startswith("values: 66")
    assert not hold(oracle, [truths[0].float(), truths[1].float() + 2]).wrong


def test_a_class_is_drawn_until_it_is_no_luck() -> None:
    for shapes, draws in (
        (((1, 64),), 1),
        (((1, 63),), 2),
        (((5, 32),), 2),
        (((1, 31),), 3),
        (((3, 4),), 16),
        (((2, 1),), 16),
        (((1, 64), (1, 16)), 4),
        (((1, 0),), 16),
        (((),), 16),
    ):
        truths = [torch.ones(shape, dtype=torch.float64) for shape in shapes]
        oracle = Told(truths, None, [[y * 0 for y in truths]])
        assert check._draws(truths, by_channel=False) == draws
        if shapes == ((1, 0),):
            continue
        hold(oracle, [y.float() for y in truths])
        assert oracle.draws == [(what, draw) for draw in range(draws) for what in ("perturb", "model")]


def test_a_class_is_drawn_for_as_many_channels_as_are_no_luck() -> None:
    for shapes, draws in (
        (((2, 1, 99),), 16),
        (((2, 2, 99),), 8),
        (((2, 7, 99),), 3),
        (((2, 15, 99),), 2),
        (((2, 16, 99),), 1),
        (((2, 16, 3),), 2),
        (((2, 99),), 1),
        (((99,),), 16),
        (((2, 16, 99), (2, 8, 99)), 2),
        (((2, 0, 99),), 16),
    ):
        truths = [torch.ones(shape, dtype=torch.float64) for shape in shapes]
        oracle = Told(truths, None, [[y * 0 for y in truths]])
        assert check._draws(truths, by_channel=True) == draws
        if shapes == ((2, 0, 99),):
            continue
        hold(oracle, [y.float() for y in truths], torch.ones((), dtype=torch.bool))
        assert oracle.draws == [(what, draw) for draw in range(draws) for what in ("perturb", "model")]


def test_only_what_truncates_is_drawn_for_channels() -> None:
    truth = torch.ones((2, 1, 99), dtype=torch.float64)
    for arithmetic, reached, draws in (
        ("tf32", torch.ones(()) > 0, 16),
        ("fp32", torch.ones(()) > 0, 1),
        ("fp16", torch.ones(()) > 0, 1),
        ("tf32", None, 1),
    ):
        oracle = Told([truth], None, [[truth * 0]], arithmetic=arithmetic)
        hold(oracle, [truth.float()], reached)
        assert len(oracle.draws) == 2 * draws


def test_chunks_have_as_many_samples_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, shapes, chunks in (
        (6, ((5, 3),), [[0, 1], [2, 3], [4]]),
        (6, ((5, 3), (5, 6)), [[0], [1], [2], [3], [4]]),
        (2, ((4, 1),), [[0, 1], [2, 3]]),
        (2, ((4, 9),), [[0], [1], [2], [3]]),
        (99, ((4, 9),), [[0, 1, 2, 3]]),
    ):
        monkeypatch.setattr(check, "_CHUNK_ELEMENTS", limit)
        truths = [torch.ones(shape, dtype=torch.float64) for shape in shapes]
        oracle = Told(truths, None, [[y * 0 for y in truths]])
        answers = [y.float() for y in truths]
        assert not hold(oracle, answers, torch.ones((), dtype=torch.bool)).wrong
        assert oracle.asked == chunks
        oracle.asked.clear()
        assert not hold(oracle, answers).wrong
        assert oracle.asked == [list(range(shapes[0][0]))]
    parts = check._chunks([torch.arange(3)], [torch.ones(3, 0)], sliced=True)
    assert [len(outputs[0]) for _, outputs in parts] == [3]


def test_kernelbench_compares_with_the_reference() -> None:
    """By atol = rtol; an output of 1 may be off by twice as much."""
    for dtype, tolerance in (
        (torch.float32, 1e-4),
        (torch.float64, 1e-4),
        (torch.float16, 1e-2),
        (torch.bfloat16, 1e-2),
    ):
        for value, allowed in ((0.0, tolerance), (1.0, 2 * tolerance)):
            for share, close in ((0.8, True), (1.2, False)):
                truth = torch.full((1, 4), value, dtype=torch.float64)
                error = at(4, share * allowed)
                found = judged(error, 0.0, (9.0,), truth=truth, dtype=dtype)
                assert not found.wrong
                assert found.kernelbench_close == close
    # without a reference, with the truth; and once off is off
    truth = torch.ones(2, 4, dtype=torch.float64)
    oracle = Told([truth, truth], None, [[truth * 9, truth * 9]])
    right, off = truth.float(), truth.float() + 1
    assert hold(oracle, [right, right]).kernelbench_close
    assert not hold(oracle, [off, right]).kernelbench_close


def test_the_tally_keeps_the_worst_of_each_population() -> None:
    """By the larger of two shares, here of budgets of 4 and 2; the first of equals."""
    tally = check.Tally()
    for normwise, elementwise, kept in (
        (1.0, 1.0, 1.0),
        (1.9, 0.9, 1.0),
        (2.4, 0.1, 0.1),
        (0.1, 1.4, 1.4),
        (2.8, 0.2, 1.4),
    ):
        tally.add(PopulationError("reached", normwise, 4.0, elementwise, 2.0))
        tally.add(PopulationError("structural", 0.0, 1.0, 0.0, 1.0))
        assert [(one.population, one.elementwise) for one in tally.errors] == [
            ("reached", kept),
            ("structural", 0.0),
        ]
    assert not tally.wrong
    assert tally.kernelbench_close


WANT = torch.empty(2, 3, 4, 5)
LAST = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
FORMS: tuple[tuple[list[tuple[str, tuple[int, ...], tuple[int, ...]]], list[torch.Tensor], str], ...] = (
    ([("float32", (2, 3, 4, 5), (60, 20, 5, 1))], [WANT], ""),
    ([("float32", (2, 3, 4, 5), (60, 20, 5, 1))], [LAST], ""),
    ([("float32", (2, 3, 4, 5), LAST.stride())], [LAST], ""),
    ([("float32", (2, 3, 4, 5), LAST.stride())], [WANT], "strides [60, 1, 15, 3] instead of contiguous"),
    ([("float32", (2, 3, 4, 5), (60, 20, 5, 0))], [WANT], "strides"),
    ([("float32", (2, 3, 4, 5), (0, 0, 0, 0))], [WANT], "strides"),
    ([("float32", (2, 3, 4, 5), (0, 20, 5, 1))], [WANT], "strides"),
    ([("float32", (2, 3, 5, 4), (60, 20, 4, 1))], [WANT], "shape [2, 3, 5, 4] instead of [2, 3, 4, 5]"),
    ([("float32", (2, 3, 20), (60, 20, 1))], [WANT], "shape"),
    ([("float32", (1, 2, 3, 4, 5), (120, 60, 20, 5, 1))], [WANT], "shape"),
    ([("float16", (2, 3, 4, 5), (60, 20, 5, 1))], [WANT], "dtype float16 instead of float32"),
    ([("float64", (2, 3, 4, 5), (60, 20, 5, 1))], [WANT], "dtype"),
    ([], [WANT], "0 outputs instead of 1"),
    ([("float32", (2, 3, 4, 5), (60, 20, 5, 1))] * 2, [WANT], "2 outputs instead of 1"),
    ([("float32", (1, 3), (999, 1))], [torch.empty(1, 3)], ""),  # one element has no stride
    ([("float32", (), ())], [torch.empty(())], ""),
)


def test_form() -> None:
    for outputs, expected, complaint in FORMS:
        found = check.form(outputs, expected)
        assert found.startswith(complaint) if complaint else not found


def test_how_much_is_looked_at_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slices of eight: in columns of one, two, and four, the last looked at alone or not."""
    truth = torch.full((2, 8), LEVEL, dtype=torch.float64)
    own, error = truth * 0, truth * 0
    own[0, 1], own[1, 6] = 3.0, 4.0
    error[0, 2], error[1, 3], error[1, 5] = 6.0, 6.0, 5.0
    reached = torch.tensor([[True] * 7 + [False]])
    for chunk in (2**24, 1, 4, 6, 8):
        monkeypatch.setattr(check, "_CHUNK_ELEMENTS", chunk)
        for mask in (None, reached):
            found = budget(judged(error, own, reached=mask))
            count = 16 if mask is None else 7
            assert not judged(error, own, reached=mask).wrong
            norms = (math.hypot(6, 6, 5), 5.0) if mask is None else (6.0, 3.0)
            size = LEVEL * math.sqrt(count)
            assert found.normwise == near(norms[0] / size)
            assert found.normwise_budget == near(1.5 * (1 + 3 / math.sqrt(count)) * norms[1] / size)
            assert found.elementwise == near(6.0 / LEVEL)
        wrong = judged(error * 4, own)
        assert wrong.wrong == f"values: {LEVEL + 24:.6g} instead of {LEVEL:.6g} at [0, 2]"
        assert judged(own * 0 + (own == 4) * 50, own / 8).wrong.endswith(" at [1, 6]")
        spoilt = error * 0
        spoilt[1, 4] = math.nan
        assert judged(spoilt).wrong.endswith(f"nan instead of {LEVEL:.6g} at [1, 4]")
        far = truth * 0
        far[0, 0] = 1.0
        assert not judged(far, far * 0, (far * 8,)).kernelbench_close
        numbers = torch.arange(16).reshape(2, 8)
        off = numbers.clone()
        off[1, 5] = 0
        assert (
            hold(Told([numbers], None, [[numbers * 0]]), [off]).wrong == "values: 0 instead of 13 at [1, 5]"
        )


def test_many_small_errors_may_be_more_than_one_large() -> None:
    """The reference loses 2 in one of 16 elements, by which a norm of 5.25 is allowed and 8 in each."""
    own = at(16, 2.0)
    assert not judged(torch.full((1, 16), 1.3), own).wrong
    assert judged(torch.full((1, 16), 1.32), own).wrong


def test_a_class_is_drawn_where_any_output_is_no_integer() -> None:
    numbers, values = torch.arange(64).reshape(1, 64), torch.ones((1, 64), dtype=torch.float64)
    alone, both = Told([numbers], None, []), Told([numbers, values], None, [[numbers * 0, values * 0]])
    assert not hold(alone, [numbers]).wrong
    assert not hold(both, [numbers, values.float()]).wrong
    assert (alone.draws, both.draws) == ([], [("perturb", 0), ("model", 0)])
    assert hold(both, [numbers + 1, values.float()]).wrong
    assert len(both.draws) == 2 * (1 + 16)


def test_a_share_is_the_worst_of_all_populations() -> None:
    tally = check.Tally()
    assert tally.share == 0.0
    tally.add(PopulationError("reached", 1.0, 2.0, 3.0, 4.0))
    tally.add(PopulationError("structural", 0.0, 1.0, 0.5, 1.0))
    assert tally.share == 0.75


@dataclass
class Cramped(Told):
    """An oracle beside which there is no room so many times."""

    failures: int = 1

    def class_model(self, inputs: Sequence[Any], generator: torch.Generator, draw: int) -> list[torch.Tensor]:
        if self.failures:
            self.failures -= 1
            raise torch.OutOfMemoryError("out of memory")
        return super().class_model(inputs, generator, draw)


def test_the_truth_waits_on_the_host_where_the_device_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda y: (told.append("waits"), cpu(y))[1])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.append("emptied"))
    truth = torch.full((1, 64), LEVEL, dtype=torch.float64)
    for failures, expected in ((0, []), (1, ["emptied", "waits"])):
        told.clear()
        found = hold(Cramped([truth], None, [[truth * 0]], failures=failures), [truth.float() + 1])
        assert found.wrong
        assert told == expected
    with pytest.raises(torch.OutOfMemoryError):
        hold(Cramped([truth], None, [[truth * 0]], failures=2), [truth.float()])
    assert told == ["emptied", "waits"] * 2
