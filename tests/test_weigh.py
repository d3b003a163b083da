"""What a record says of what ran: the class of its arithmetic, and whose kernels took the time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import CHECKED, record, timed

from runner import load, weigh
from runner.arithmetic import MISMATCH
from runner.schema import NOT_RANKED, Kernel, Launch, Record

OURS = load.find_problem("convtranspose2d")


def ran(*kernels: tuple[str, float], arithmetic: str = "tf32", error: float = 3e-4) -> Record:
    """Weigh a timed answer of a TF32 cell whose kernels, by library, took these us."""
    traced = tuple(
        Kernel(f"k{i}", name, 1, us, (1, 1, 1), 128, 32, 0) for i, (name, us) in enumerate(kernels)
    )
    first = replace(CHECKED.errors[0], normwise=error)
    launches = (Launch("k0", (1, 1, 1), 4, 32, 0, 0, tuple(arithmetic.split())),)
    checked = replace(CHECKED, errors=(first, CHECKED.errors[1]), launches=launches)
    return weigh._witnessed(record(), OURS, checked, replace(timed(), kernels={"solution": traced}))


def arithmetic(made: Record) -> str:
    assert made.timed is not None
    return made.timed.arithmetic


def test_a_kernel_of_the_cells_class_is_not_flagged() -> None:
    made = ran(("triton", 90.0), ("pytorch", 10.0))
    assert (arithmetic(made), made.flags) == ("tf32", ())


def test_a_class_that_the_cell_does_not_admit_is_flagged_unless_the_error_denies_it() -> None:
    made = ran(("triton", 90.0), arithmetic="fp16 fp32")
    assert (arithmetic(made), made.flags) == ("fp16", (f"{NOT_RANKED}: {MISMATCH}",))
    made = ran(("triton", 90.0), arithmetic="fp16 fp32", error=1e-6)
    assert (arithmetic(made), made.flags) == ("fp32", ())


@pytest.mark.parametrize("library", ["cudnn", "inductor", "cutlass", ""])
def test_what_has_no_ptx_makes_the_class_unknown(library: str) -> None:
    assert arithmetic(ran(("triton", 90.0), (library, 1.0))) == "unknown"


@given(st.lists(st.tuples(st.sampled_from(["", "triton", "cudnn", "cuda"]), st.floats(0.1, 1e4)), min_size=1))
def test_libraries_are_flagged_from_half_of_the_time_on(kernels: list[tuple[str, float]]) -> None:
    library_us = sum(us for name, us in kernels if name in ("cudnn", "cuda"))
    more = library_us / sum(us for _, us in kernels) > 0.5
    assert ("library" in ran(*kernels).flags) is more


def test_a_problem_may_set_its_own_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "library" in ran(("cudnn", 60.0), ("triton", 40.0)).flags
    monkeypatch.setattr(OURS.outline, "LIBRARY_SHARE", 0.7, raising=False)
    assert "library" not in ran(("cudnn", 60.0), ("triton", 40.0)).flags


def test_without_a_trace_nobody_is_accused() -> None:
    assert ran().flags == ()
