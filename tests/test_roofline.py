"""The floor rejects only the impossible, the bound is never passed by honest arithmetic."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cards import card_names, load_card
from runner.roofline import PRODUCTS, attainable_tflops, bound_us, floor_us, share_of_bound
from runner.schema import DTYPES, MATHS

CARDS = [load_card(name) for name in card_names()]
RTX4090 = load_card("rtx4090")
H200 = load_card("h200")

cards = st.sampled_from(CARDS)
sizes = st.integers(0, 2**40)
arithmetics = st.sampled_from([*MATHS, *DTYPES])


def test_floor_of_a_large_problem_is_its_traffic_less_one_l2():
    # 848 MB on an H200 with 60 MiB of L2
    assert floor_us(17_000_000, 831_000_000, H200) == pytest.approx(
        0.95 * (848e6 - 60 * 2**20) / 4800e9 * 1e6
    )


def test_floor_is_zero_for_what_the_l2_holds():
    assert floor_us(RTX4090.l2_bytes // 2, RTX4090.l2_bytes // 2, RTX4090) == 0
    assert floor_us(RTX4090.l2_bytes // 2, RTX4090.l2_bytes // 2 + 1, RTX4090) > 0


def test_floor_uses_the_l2_bandwidth_only_when_the_card_states_one():
    stated = dataclasses.replace(RTX4090, l2_gb_per_s=5000.0)
    assert floor_us(1_000_000, 0, RTX4090) == 0
    assert floor_us(1_000_000, 0, stated) == pytest.approx(0.95 * 0.2)
    # far beyond the L2 the slower memory decides
    assert floor_us(10**10, 0, stated) == floor_us(10**10, 0, RTX4090)


@given(sizes, sizes, cards)
def test_floor_counts_inputs_and_outputs_alike_and_lies_below_the_bound(a, b, card):
    assert floor_us(a, b, card) == floor_us(b, a, card) >= 0
    assert floor_us(a, b, card) <= bound_us(0, a + b, card, "fp32").time_us


@given(sizes, sizes, sizes, cards)
def test_floor_grows_with_the_traffic(a, b, more, card):
    assert floor_us(a, b, card) <= floor_us(a + more, b, card)


@pytest.mark.parametrize(
    ("flops", "traffic_bytes", "arithmetic", "time_us", "limiter"),
    [
        (4_757_000_000, 848_000_000, "tf32", 841.3, "memory"),
        (826_000_000, 1_008_000, "tf32", 10.0, "arithmetic"),
        (826_000_000, 1_008_000, "fp16", 5.0, "arithmetic"),
        (0, 1_008_000, "bf16", 1.0, "memory"),
    ],
)
def test_bound_names_its_limiter(flops, traffic_bytes, arithmetic, time_us, limiter):
    bound = bound_us(flops, traffic_bytes, RTX4090, arithmetic)
    assert bound.time_us == pytest.approx(time_us, rel=1e-3)
    assert bound.limiter == limiter


@given(sizes, sizes, cards, arithmetics)
def test_bound_is_the_larger_part(flops, traffic_bytes, card, arithmetic):
    bound = bound_us(flops, traffic_bytes, card, arithmetic)
    parts = {"memory": bound.memory_us, "arithmetic": bound.arithmetic_us}
    assert bound.time_us == max(parts.values()) == parts[bound.limiter]


@given(st.integers(1, 2**40), cards, arithmetics, st.floats(1, 1e6))
def test_share_is_one_on_the_roofline_and_falls_with_time(flops, card, arithmetic, slower):
    bound = bound_us(flops, flops, card, arithmetic)
    assert share_of_bound(bound.time_us, bound) == 1
    assert share_of_bound(bound.time_us * slower, bound) == pytest.approx(1 / slower)


def test_arithmetic_of_fp32_accuracy_may_use_tensor_cores():
    # on an H200 three bf16 products (330 TFLOPS) beat the CUDA cores (66.9); on a 4090 they do not
    assert attainable_tflops(H200, "fp32") == pytest.approx(989.4 / 3)
    assert attainable_tflops(RTX4090, "fp32") == 82.6


@given(cards)
def test_more_accurate_arithmetic_is_never_faster(card):
    assert (
        attainable_tflops(card, "fp32") <= attainable_tflops(card, "tf32") <= attainable_tflops(card, "bf16")
    )


def test_every_arithmetic_of_a_cell_is_known_and_no_other():
    assert set(PRODUCTS) == {*MATHS, *DTYPES}
    with pytest.raises(ValueError, match="unknown arithmetic 'fp64'"):
        bound_us(1, 1, RTX4090, "fp64")
