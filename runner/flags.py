"""What the flags of a record mean. A flag is a name, or `name: which one`."""

from __future__ import annotations

from collections.abc import Iterable

#: Name of a flag, without what follows a colon or an equals sign -> what a reader should know.
FLAGS = {
    "not_ranked": "times are shown and have no rank, for the reason that follows",
    "arithmetic_mismatch": (
        "the kernels propose a less precise arithmetic than the cell's, and the error bears it out"
    ),
    "batch_gain": "calls were cheaper together than alone, so that single ones were timed",
    "syncs": (
        "it waits for the device, so nothing stood behind the gate: launching is in all times of the cell"
    ),
    "launch_bound": "the host takes longer to issue a call than the device to run it: kept apart from means",
    "wide": (
        "the interval is wider than the run asked for: the most rounds or the most time came first, or the"
        " judge's clock decided"
    ),
    "best_in_pilot": "the best baseline was dropped by the pilot: the speed-up is over its few rounds there",
    "autocorrelated": (
        "neighbouring rounds resemble each other: the interval is that of blocks of six, where that is wider"
    ),
    "bimodal": "the ratios have more than one mode, or drift: their median is not their centre",
    "unsettled": "the first rounds had not come to rest when the measurement began",
    "claim_mismatch": (
        "the contestant's events are not borne out by the judge's clock, which decides instead: the interval"
        " allows for what a window may lose"
    ),
    "over_10x": "more than 10 times the best baseline, beyond the noise: worth a second look",
    "near_floor": "within 15 % of the time in which its bytes can be moved",
    "above_bound": (
        "faster than the roofline of the problem's operations and bytes: it needs fewer, or finds bytes in L2"
    ),
    "library": "more than half of the device's time, or the problem's own share, is in kernels of a library",
    "untraced": "no kernel was seen in the traced call: what ran is not known",
    "power_capped": "the driver held the clock down for power during the rounds",
    "other_processes": "another process computed on the device",
    "disturbed": "rounds could not be run undisturbed: no times",
    "no_baseline": "a baseline failed, for the reason that follows; the others stand",
    "unchecked_rounds": (
        "checking found no room beside the baselines: the last call was checked once they were gone"
    ),
    "emulated_sms": "solution and baselines ran on so many SMs of a larger GPU",
    "autotune_first_config": (
        "without a GPU an autotuner's first configuration ran, which need not be its choice"
    ),
    "mutated_global_state": "the solution changed switches of PyTorch that hold for the whole process",
    "copied_output": "an output lay in memory that the judge cannot read, and was copied",
    "samples_thinned": "the line was too long: every second round is kept",
    "bounds_dropped": "the line was too long: the judge's bounds beside the claims that decide are left out",
    "claims_dropped": "the line was too long: the claims beside the judge's times are left out",
    "texts_cut": "the line was too long: texts and launches are cut",
    "launches_dropped": "the line was too long: launches and kernels are left out",
}


def name_of(flag: str) -> str:
    """Return the name that a flag begins with."""
    return flag.partition(":")[0].partition("=")[0]


def notes(flags: Iterable[str]) -> list[str]:
    """Return a line for each flag among these that has a meaning, in the order of the table."""
    parts = {name_of(part) for flag in flags for part in flag.split(": ", 1)}
    return [f"{name}: {meaning}" for name, meaning in FLAGS.items() if name in parts]
