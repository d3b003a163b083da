"""Where a cell's time goes, in one line; what the boundary costs needs a GPU."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.judge import boundary

PHASES_S = {"oracle": 0.0, "build": 0.31, "pilot": 0.42, "rounds": 1.01, "busy_in_rounds": 0.606, "cell": 2.0}


def test_the_longest_phase_comes_first_and_what_has_no_name_is_told_too() -> None:
    assert boundary.where(PHASES_S) == (
        "2.00 s: rounds 1.01 s, the GPU at work for 60%; pilot 0.42 s; build 0.31 s; elsewhere 0.26 s"
    )
    assert boundary.where({}) == "no times"


seconds = st.floats(0.0, 100.0)


@given(st.dictionaries(st.sampled_from(["build", "pilot", "rounds", "trace"]), seconds), seconds)
def test_the_parts_told_make_up_the_cell(parts_s: dict[str, float], elsewhere_s: float) -> None:
    cell_s = sum(parts_s.values()) + elsewhere_s
    told = boundary.where({**parts_s, "busy_in_rounds": 0.0, "cell": cell_s}).partition(": ")[2]
    found_s = [float(part.partition(",")[0].split()[-2]) for part in told.split("; ") if part]
    assert abs(sum(found_s) - cell_s) < 0.06
    assert found_s == sorted(found_s, reverse=True)
