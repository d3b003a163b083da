"""Occupancy against NVIDIA's own calculator, waves and efficiencies against counting."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cards import RESERVED_SHARED_BYTES, load_card
from runner.load import find_problem, problem_names
from runner.schema import Launch, to_json
from runner.waves import efficiency, largest, launch_occupancy, occupancy, recorded, role

RTX4090 = load_card("rtx4090")
INPUTS_PER_CARD = 25_000

DRIVER = r"""
#include <climits>
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int major, minor, warps, threads, registers;
  long registers_per_sm, shared_per_sm, opt_in, reserved, shared;
  while (std::scanf("%d %d %d %ld %ld %ld %ld %d %d %ld", &major, &minor, &warps, &registers_per_sm,
                    &shared_per_sm, &opt_in, &reserved, &threads, &registers, &shared) == 10) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = warps * 32;
    device.regsPerBlock = registers_per_sm;
    device.regsPerMultiprocessor = registers_per_sm;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = shared_per_sm;
    device.numSms = 1;
    device.sharedMemPerBlockOptin = opt_in;
    device.reservedSharedMemPerBlock = reserved;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX;
    kernel.numRegs = registers;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = shared;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
    std::printf("%d %d %u\n", error, result.activeBlocksPerMultiprocessor, result.limitingFactors);
  }
}
"""
LIMITING_BITS = {"warps": 1, "registers": 2, "shared": 4, "programs": 8}


@pytest.fixture(scope="module")
def calculator(tmp_path_factory) -> Path:
    """Compile NVIDIA's header-only occupancy calculator, which Triton's wheel carries."""
    compiler = shutil.which("g++") or shutil.which("c++")
    spec = importlib.util.find_spec("triton")
    if not compiler or not spec or not spec.origin:
        pytest.skip("needs a C++ compiler and triton's wheel")
    include = Path(spec.origin).parent / "backends/nvidia/include"
    if not (include / "cuda_occupancy.h").exists():
        pytest.skip("this triton carries no cuda_occupancy.h")
    folder = tmp_path_factory.mktemp("occupancy")
    source, program = folder / "driver.cpp", folder / "driver"
    source.write_text(DRIVER)
    subprocess.run([compiler, "-O1", "-w", f"-I{include}", str(source), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize("name", ["a100_80gb", "rtx3090", "rtx4090", "h200", "b200"])
def test_programs_per_sm_are_nvidias(calculator: Path, name: str):
    card = load_card(name)
    rng = np.random.default_rng(card.sms)
    threads = rng.integers(1, 1100, INPUTS_PER_CARD)
    registers = rng.integers(1, 256, INPUTS_PER_CARD)
    # mostly what fits, in odd sizes too, and some that does not
    shared = rng.integers(0, card.shared_bytes_per_program + 4096, INPUTS_PER_CARD) >> rng.integers(
        0, 8, INPUTS_PER_CARD
    )
    launches = list(zip(threads.tolist(), registers.tolist(), shared.tolist(), strict=True))
    limits = (
        card.registers_per_sm,
        card.shared_bytes_per_sm,
        card.shared_bytes_per_program,
        RESERVED_SHARED_BYTES,
    )
    device = (*card.compute_capability, card.max_warps_per_sm, *limits)
    lines = "\n".join(" ".join(map(str, (*device, *launch))) for launch in launches)
    answer = subprocess.run([calculator], input=lines, capture_output=True, text=True, check=True).stdout

    expected = [tuple(map(int, line.split())) for line in answer.splitlines()]
    assert len(expected) == len(launches)
    for launch, (error, programs, bits) in zip(launches, expected, strict=True):
        assert error == 0
        ours = occupancy(*launch, (1,), card)
        assert ours.programs_per_sm == programs, launch
        # the calculator also counts barriers (16), which a kernel with one never runs out of first
        assert sum(LIMITING_BITS[name] for name in ours.limiters) == bits & 15, launch


def test_the_profiled_kernel_fills_a_sixth_of_an_rtx4090():
    """64x64x32 tiles in 4 warps: Nsight Compute on the card saw 16.6 % of the warp slots active."""
    found = occupancy(128, 196, 16384, (50721, 1, 1), RTX4090)
    assert (found.programs_per_sm, found.warps_per_sm) == (2, 8)
    assert found.limiters == ("registers",)
    assert found.warps_per_sm / RTX4090.max_warps_per_sm == pytest.approx(0.166, abs=1e-3)
    assert found.waves == pytest.approx(50721 / 256)
    assert found.eta_slot == pytest.approx(50721 / (256 * 199))
    assert found.eta_sm == pytest.approx(50721 / (128 * 397))


@pytest.mark.parametrize(
    ("name", "registers", "shared_bytes", "programs_per_sm", "limiters"),
    [
        ("rtx4090", 128, 26624, 3, ("shared",)),
        ("h200", 128, 26624, 4, ("registers",)),
        ("h200", 184, 32768, 2, ("registers",)),
        ("rtx4090", 255, 0, 2, ("registers",)),
        # an ISA encodes 255 registers, no more
        ("rtx4090", 256, 0, 0, ("registers",)),
        ("rtx4090", 32, 99 * 1024, 1, ("shared",)),
        ("rtx4090", 32, 99 * 1024 + 1, 0, ("shared",)),
        ("rtx4090", 32, 0, 12, ("warps",)),
    ],
)
def test_programs_per_sm_of_four_warps(name, registers, shared_bytes, programs_per_sm, limiters):
    found = occupancy(128, registers, shared_bytes, (1,), load_card(name))
    assert (found.programs_per_sm, found.limiters) == (programs_per_sm, limiters)


@pytest.mark.parametrize(
    ("programs", "on_128", "on_132"),
    [(128, 1.0, 0.970), (132, 0.516, 1.0), (136, 0.531, 0.515), (192, 0.75, 0.727), (1056, 0.917, 1.0)],
)
def test_the_last_wave_tells_128_from_132_sms(programs, on_128, on_132):
    assert efficiency(programs, 128) == pytest.approx(on_128, abs=5e-4)
    assert efficiency(programs, 132) == pytest.approx(on_132, abs=5e-4)


@given(st.integers(1, 5000), st.integers(1, 300))
def test_efficiency_is_the_mean_share_of_slots_in_use(programs, slots):
    in_use = []
    left = programs
    while left > 0:
        in_use.append(min(left, slots) / slots)
        left -= slots
    assert efficiency(programs, slots) == pytest.approx(sum(in_use) / len(in_use))


@given(st.integers(1, 1024), st.integers(1, 255), st.integers(0, 101_376), st.integers(1, 10**6))
def test_a_fitting_launch_has_a_whole_picture(threads, registers, shared_bytes, programs):
    found = occupancy(threads, registers, shared_bytes, (programs, 1, 1), RTX4090)
    assert found.programs_per_sm == min(found.limits.values())
    assert found.warps_per_sm <= RTX4090.max_warps_per_sm
    if found.programs_per_sm == 0:
        assert (found.waves, found.eta_slot, found.eta_sm) == (None, None, None)
    else:
        assert found.waves == programs / (128 * found.programs_per_sm)
        assert 0 < found.eta_slot <= 1
        assert found.eta_slot <= found.eta_sm <= 1


def test_an_empty_grid_has_no_efficiency():
    found = occupancy(128, 32, 0, (0, 7), RTX4090)
    assert (found.programs, found.waves, found.eta_slot, found.eta_sm) == (0, 0.0, None, None)


@pytest.mark.parametrize(
    "launch", [(0, 32, 0, (1,)), (128, 0, 0, (1,)), (128, 32, -1, (1,)), (128, 32, 0, (1, -1))]
)
def test_what_is_not_a_launch_is_refused(launch):
    with pytest.raises(ValueError, match="not a launch"):
        occupancy(*launch, RTX4090)


def test_a_recorded_launch_is_placed_and_an_interpreted_one_is_not():
    launch = Launch("kernel", (50721, 1, 1), num_warps=4, registers=196, spills=0, shared_bytes=16384)
    assert launch_occupancy(launch, RTX4090) == occupancy(128, 196, 16384, (50721, 1, 1), RTX4090)
    interpreted = Launch("kernel", (8, 1, 1), num_warps=4, registers=None, spills=None, shared_bytes=None)
    assert launch_occupancy(interpreted, RTX4090) is None


@given(st.integers(1, 1024), st.integers(1, 255), st.integers(0, 101_376), st.integers(1, 10**6))
def test_a_recorded_occupancy_is_read_back(threads, registers, shared_bytes, programs):
    found = occupancy(threads, registers, shared_bytes, (programs, 1, 1), RTX4090)
    through_json = json.loads(json.dumps({"kernel": "k", **to_json(found)}))
    fits = found.programs_per_sm > 0
    assert list(recorded([through_json])) == ([("k", found)] if fits else [])
    assert found.sms == (128 if fits else None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from([*to_json(occupancy(128, 32, 0, (1,), RTX4090))]), json_values)
def test_whatever_a_record_says_a_table_can_show_it_or_passes_it_over(name, value):
    whole = to_json(occupancy(128, 196, 16384, (300,), RTX4090))
    filled = largest(json.loads(json.dumps([whole | {name: value}])))
    if filled is not None:
        assert 0 < filled.eta_slot <= filled.eta_sm <= 1
        assert filled.sms is not None
        assert "%" in filled.tail


@pytest.mark.parametrize(
    ("name", "value"), [("waves", 1e-320), ("waves", 1e308), ("waves", -1.0), ("programs_per_sm", 10**400)]
)
def test_a_grid_of_no_card_is_passed_over(name, value):
    whole = to_json(occupancy(128, 196, 16384, (300,), RTX4090))
    assert largest([whole]) is not None
    assert largest([whole | {name: value}]) is None


def test_the_largest_grid_speaks_for_a_record():
    grids = [to_json(occupancy(128, 196, 16384, (n,), RTX4090)) for n in (3, 300, 30)]
    found = largest(grids)
    assert found is not None
    assert found.programs == 300
    assert largest([]) is None


@pytest.mark.parametrize(
    ("programs", "tail"), [(128, "50-100%"), (256, "100%"), (257, "50-67%"), (0, "-"), (1, "0-1%")]
)
def test_a_tail_is_one_column(programs, tail):
    assert occupancy(128, 196, 16384, (programs,), RTX4090).tail == tail


@pytest.mark.parametrize("name", problem_names())
def test_every_label_of_a_sweep_of_waves_names_its_role(name):
    """What the label says of the canonical tile gives as many tiles as its role asks for."""
    problem = find_problem(name)
    for label, shape in problem.sweeps(128).get("waves", {}).items():
        known = role(label)
        assert known is not None, label
        assert label == f"{known.stairs}-{known.name}"
        edge_tiles = float(known.stairs.partition("@")[2].removesuffix("w")) * 128
        tiles = problem.outline.tiles(problem.shape(shape), known.block_m, known.block_n)
        agrees = {"full": tiles == edge_tiles, "under": tiles < edge_tiles}
        assert agrees.get(known.name, tiles > edge_tiles), label
    assert role("dcgan-up3-b16") is None
