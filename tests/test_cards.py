"""Data sheets: what a device is taken for, and figures that must agree with each other."""

import subprocess
import sys

import pytest

from runner.arithmetic import CLASSES
from runner.cards import KIB, Card, card_for_device, card_names, disagreements, load_card
from runner.schema import DTYPES, MATHS

CARDS = {name: load_card(name) for name in card_names()}

every_card = pytest.mark.parametrize("card", CARDS.values(), ids=CARDS.keys())


def test_listing_is_the_registry():
    assert card_names() == tuple(sorted(card_names()))
    assert {"rtx4090", "rtx4090d", "rtx3090", "a100_40gb", "a100_80gb", "l40s", "b200"} <= set(card_names())
    assert {"h100_sxm", "h100_pcie", "h200"} <= set(card_names())


@every_card
def test_card_is_named_after_its_file_and_found_by_its_device(card: Card):
    assert load_card(card.name) == card
    for driver_name in card.driver_names:
        assert card_for_device(driver_name, card.sms) == card


def test_no_driver_name_is_claimed_twice():
    names = [name for card in CARDS.values() for name in card.driver_names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("driver_name", "sms", "expected"),
    [
        ("NVIDIA GeForce RTX 4090", 128, "rtx4090"),
        ("NVIDIA GeForce RTX 4090 D", 114, "rtx4090d"),
        ("NVIDIA H100 80GB HBM3", 132, "h100_sxm"),
        ("NVIDIA H100 PCIe", 114, "h100_pcie"),
        ("NVIDIA H200", 132, "h200"),
        # other products whose names begin alike
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 76, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 128, None),
        ("NVIDIA GeForce RTX 3090 Ti", 84, None),
        ("NVIDIA H100 NVL", 132, None),
        ("NVIDIA H200 NVL", 132, None),
        # the name alone does not do: partitions, and a name another product wears
        ("NVIDIA GeForce RTX 4090", 114, None),
        ("NVIDIA H200", 16, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 14, None),
        ("NVIDIA A100-SXM4-40GB MIG 7g.40gb", 108, None),
        ("nvidia geforce rtx 4090", 128, None),
        ("", 128, None),
    ],
)
def test_device_is_matched_exactly(driver_name: str, sms: int, expected: str | None):
    card = card_for_device(driver_name, sms)
    assert (card.name if card else None) == expected


@pytest.mark.parametrize("name", ["rtx409", "RTX4090", "4090", "", "__init__", "../rtx4090", "runner.cards"])
def test_unknown_card_names_the_nearest(name: str):
    with pytest.raises(ValueError, match=r"unknown card .*(did you mean|known:) .*rtx4090"):
        load_card(name)


def test_rtx4090_is_the_card_of_the_specification():
    card = CARDS["rtx4090"]
    assert card.compute_capability == (8, 9)
    assert (card.sms, card.max_warps_per_sm, card.max_threads_per_sm) == (128, 48, 1536)
    assert card.shared_bytes_per_sm == 100 * KIB
    assert card.shared_bytes_per_program == 99 * KIB
    assert card.l2_bytes == 72 * 2**20
    assert card.dram_gb_per_s == 1008
    assert card.peak_tflops == {
        "fp32": 82.6,
        "tf32": 82.6,
        "fp16": 165.2,
        "bf16": 165.2,
        "fp16_acc16": 330.3,
        "fp8": 330.3,
    }


@every_card
def test_peaks_cover_every_arithmetic_of_a_cell(card: Card):
    assert {*MATHS, *DTYPES} <= set(card.peak_tflops) <= set(CLASSES)
    assert card.peak_tflops["bf16"] == card.peak_tflops["fp16"] >= card.peak_tflops["tf32"]


@every_card
def test_narrower_products_and_sums_are_no_slower(card: Card):
    """fp8 takes twice as many products as fp16, but for a rounding; only GeForce halves sums in fp32."""
    peaks = card.peak_tflops
    if "fp8" in peaks:
        assert card.compute_capability >= (8, 9)
        assert peaks["fp8"] == pytest.approx(2 * peaks["fp16"], rel=0.02)
    if "fp16_acc16" in peaks:
        halved = card.title.startswith("GeForce")
        assert peaks["fp16_acc16"] == pytest.approx((2 if halved else 1) * peaks["fp16"], rel=0.001)


def device(card: Card, **changes: object) -> dict[str, object]:
    """Describe a card as a driver would, which keeps some of the memory."""
    major, minor = card.compute_capability
    told = {"sms": card.sms, "l2_bytes": card.l2_bytes, "capability": f"{major}.{minor}"}
    told |= {"shared_bytes_per_sm": card.shared_bytes_per_sm, "memory_bytes": int(0.98 * card.memory_bytes)}
    return told | changes


@every_card
def test_a_device_as_its_card_says_disagrees_in_nothing(card: Card):
    assert disagreements(card, device(card)) == []
    assert disagreements(card, {}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"l2_bytes": 2**20}, "bytes of L2 1048576, not 75497472"),
        ({"memory_bytes": 48 * 2**30}, "bytes of memory 51539607552, not 25769803776"),
        ({"memory_bytes": 20 * 2**30}, "bytes of memory 21474836480, not 25769803776"),
        ({"shared_bytes_per_sm": 65536}, "bytes of shared memory per SM 65536, not 102400"),
        ({"capability": "9.0"}, "capability 9.0, not 8.9"),
        ({"sms": 114}, "SMs 114, not 128"),
    ],
    ids=str,
)
def test_where_a_device_is_not_as_its_card_says_is_told(changes: dict[str, object], said: str):
    assert disagreements(CARDS["rtx4090"], device(CARDS["rtx4090"], **changes)) == [said]


@every_card
def test_a_drivers_name_leads_to_its_card(card: Card):
    for name in card.driver_names:
        with pytest.raises(ValueError, match=rf"unknown card .*did you mean {card.name}\?"):
            load_card(name)


@every_card
def test_peaks_are_the_rates_of_the_multiprocessors(card: Card):
    """A peak is SMs x operations per clock x clock: the fp32 peak implies a plausible clock."""
    operations_per_clock = 128 if card.compute_capability == (8, 0) else 256
    clock_ghz = card.peak_tflops["fp32"] * 1e3 / (card.sms * operations_per_clock)
    assert 1.4 < clock_ghz < 2.6


@every_card
def test_cards_of_one_compute_capability_share_its_limits(card: Card):
    def limits(c: Card) -> tuple[int, ...]:
        shared = (c.shared_bytes_per_sm, c.shared_bytes_per_program)
        return (c.max_warps_per_sm, c.max_programs_per_sm, c.registers_per_sm, *shared)

    alike = [c for c in CARDS.values() if c.compute_capability == card.compute_capability]
    assert {limits(c) for c in alike} == {limits(card)}


@every_card
def test_one_program_may_take_all_shared_memory_but_the_reserve(card: Card):
    assert card.shared_bytes_per_sm - card.shared_bytes_per_program == KIB


def test_facts_load_no_framework():
    code = """
import sys
import runner.cards, runner.lint, runner.roofline, runner.waves
runner.cards.card_for_device("", 0)
assert not {"torch", "triton", "numpy"} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
