"""Every metric that a page names exists: its base on each card's chip, its suffix by Nsight Compute's rules.

`runner/cards/ncu_metrics_<chip>.txt` are base names, one a line, from `ncu --query-metrics --chip <chip>`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.cards import card_names, load_card

ROOT = Path(__file__).parents[1]
RUNNER = ROOT / "runner"
FILES = sorted([*(RUNNER / "stages").glob("*.*"), *(RUNNER / "cards").glob("*.py"), RUNNER / "prompt.py"])
CHIPS = sorted({load_card(name).chip for name in card_names()})
NAME = re.compile(r"\b[a-z0-9]+__[a-z]\w*(?:\.\w+)*")
#: Nsight Compute's profiling guide, "Metrics Structure": a roll-up with or without a sub-metric, or a ratio.
SUFFIX = re.compile(
    r"(sum|avg|min|max)(\.(per_second|per_cycle_(active|elapsed)|(pct_of_)?peak_sustained_(active|elapsed)))?"
    r"|pct|ratio|max_rate"
)
#: A throughput is a share of a peak, and nothing else.
THROUGHPUT = re.compile(r"(sum|avg|min|max)\.pct_of_peak_sustained_(active|elapsed)")
#: Launch metrics of the same guide, those that concern a kernel's shape. They come from the launch, not from
#: counters: the query does not list them, all chips have them, and they take no suffix.
LAUNCH = {
    "launch__block_size",
    "launch__grid_size",
    "launch__occupancy_limit_blocks",
    "launch__occupancy_limit_registers",
    "launch__occupancy_limit_shared_mem",
    "launch__occupancy_limit_warps",
    "launch__registers_per_thread",
    "launch__shared_mem_per_block_driver",
    "launch__shared_mem_per_block_dynamic",
    "launch__shared_mem_per_block_static",
    "launch__thread_count",
    "launch__waves_per_multiprocessor",
}


def named() -> dict[str, Path]:
    """Return each metric that a file names, with the file."""
    return {name: file for file in FILES if file.is_file() for name in NAME.findall(file.read_text())}


def exists(metric: str, bases: set[str]) -> bool:
    base, _, suffix = metric.partition(".")
    if base.startswith("launch__"):
        return metric in LAUNCH
    suffixes = THROUGHPUT if base.endswith("__throughput") else SUFFIX
    return base in bases and bool(suffixes.fullmatch(suffix))


@pytest.fixture(params=CHIPS)
def bases(request: pytest.FixtureRequest) -> set[str]:
    """Return the base names that a chip has."""
    file = RUNNER / "cards" / f"ncu_metrics_{request.param}.txt"
    if not file.exists():
        pytest.skip(f"no {file.name}: ncu --query-metrics --chip {request.param} gives it")
    return set(file.read_text().split())


def test_every_metric_exists_on_every_cards_chip(bases: set[str]) -> None:
    metrics = named()
    assert len(metrics) > 8
    assert {name: file.name for name, file in metrics.items() if not exists(name, bases)} == {}


@pytest.mark.parametrize(
    "metric",
    [
        # public lists still have it, but no chip since Volta does
        "smsp__warp_issue_stalled_memory_dependency_per_warp_active.pct",
        "dram__bytes",
        "dram__bytes.total",
        "dram__bytes.avg.pct_of_peak",
        "dram__throughput.avg",
        "dram__throughput.pct",
        "launch__grid_size.sum",
        "launch__grid",
    ],
)
def test_a_metric_that_does_not_exist_is_found_out(metric: str, bases: set[str]) -> None:
    assert NAME.fullmatch(metric)
    assert not exists(metric, bases)


def test_every_card_names_its_chip_and_one_capability_is_one_family() -> None:
    cards = [load_card(name) for name in card_names()]
    families = {(card.compute_capability, card.chip[:2]) for card in cards}
    assert len(families) == len({card.compute_capability for card in cards})
    assert {"rtx4090": "ad102", "h200": "gh100"}.items() <= {card.name: card.chip for card in cards}.items()
