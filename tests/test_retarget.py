"""Launches found without a GPU: a file that the suite has never seen, answers that nobody should believe."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from conftest import ROOT, children
from hypothesis import given
from hypothesis import strategies as st

from runner.cards import load_card
from runner.contestant.capture import dot_class, loops_over_tiles, tile
from runner.load import Problem, Solution
from runner.retarget import BadAnswer, Compiled, Forward, read_forward, retarget
from runner.schema import Cell, to_json

PROBLEM = """
import torch
from typing import NamedTuple
from torch import nn

class Shape(NamedTuple):
    rows: int = 1000
    columns: int = 640

class Model(nn.Linear):
    def forward(self, x, times):
        return super().forward(x)

def get_inputs(shape=Shape()):
    return [torch.rand(shape.rows, shape.columns), 3]

def get_init_inputs(shape=Shape()):
    return [shape.columns, 256]
"""

SOLUTION = """
import torch
import triton
import triton.language as tl
from torch import nn

CONFIGS = [
    triton.Config({"BM": 64, "BN": 64}, num_warps=4, num_stages=2),
    triton.Config({"BM": 256, "BN": 256}, num_warps=8, num_stages=4),
    triton.Config({"BM": 16, "BN": 16}, num_warps=1, num_stages=1),
    triton.Config({"BM": 32, "BN": 32}),
]

def prune(configs, arguments, **_):
    return configs[: 3 if arguments["M"] == 1000 else 1]

@triton.autotune(configs=CONFIGS, key=["M"], prune_configs_by={"early_config_prune": prune})
@triton.heuristics({"EVEN": lambda args: args["M"] % args["BM"] == 0})
@triton.jit
def product(x, w, y, M, N, K, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr = 32):
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    m_m = o_m < (M if not EVEN else M + 1)
    acc = tl.zeros((BM, BN), tl.float32)
    for i_k in range(0, K, BK):
        o_k = i_k + tl.arange(0, BK)
        b_x = tl.load(x + o_m[:, None] * K + o_k[None, :], mask=m_m[:, None], other=0.0)
        b_w = tl.load(w + o_n[:, None] * K + o_k[None, :])
        acc = tl.dot(b_x, b_w.T, acc)
    tl.store(y + o_m[:, None] * N + o_n[None, :], acc.to(y.dtype.element_ty), mask=m_m[:, None])

@triton.jit
def double(y, n, BLOCK: tl.constexpr):
    for i in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        o = i * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + o, 2 * tl.load(y + o, mask=o < n), mask=o < n)

@triton.jit
def broken(y):
    tl.store(y, nowhere)

class ModelNew(nn.Linear):
    def prepare(self):
        double[(7,)](self.weight, 8, BLOCK=8)
        self.packed = self.weight.clone()

    def forward(self, x, times):
        assert x.is_cuda and x.device.type == "cuda" and times == 3
        M, K = x.shape
        y = torch.empty(M, self.out_features, device="cuda", dtype=x.dtype)
        grid = lambda meta: (triton.cdiv(M, meta["BM"]), triton.cdiv(self.out_features, meta["BN"]))
        product[grid](x, self.packed, y, M, self.out_features, K)
        sms = torch.cuda.get_device_properties(x.device).multi_processor_count
        double[(2 * sms,)](y, y.numel(), BLOCK=1024, num_warps=8)
        double[(2 * sms,)](y.view(-1)[1:], y.numel(), BLOCK=1024, num_warps=8)
        broken[(1,)](y)
        double[(-1,)](y, 8, BLOCK=8)
        return y + 1
"""
UNSEEN = Problem("unseen", Path("unseen.py"), PROBLEM)
CARDS = (load_card("rtx4090"), load_card("a100_40gb"))


def cell(**shape: int) -> Cell:
    return Cell("custom", "", {"rows": 1000, "columns": 640, **shape}, "fp16", "tf32")


def run(source: str, timeout_s: float = 60.0) -> list[Forward]:
    return retarget(UNSEEN, Solution("made", Path("made.py"), source), [cell()], CARDS[:1], timeout_s)


MANY = """
import triton, triton.language as tl
from torch import nn

@triton.autotune([triton.Config({"I": i}, num_warps=1) for i in range(20)], key=[])
@triton.jit
def fill(x, I: tl.constexpr):
    tl.store(x, I)

class ModelNew(nn.Linear):
    def forward(self, x, times):
        fill[lambda meta: (meta["I"], 1)](x)
        return x
"""


@pytest.fixture(scope="module")
def unseen() -> list[Forward]:
    """Launch the file above for 1000 rows and for 2**20, 64 GB a card of neither has here, on both cards."""
    cells = [cell(), cell(rows=2**20)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # which must not reach the compiler
        return retarget(UNSEEN, Solution("made", Path("made.py"), SOLUTION), cells, CARDS)


def test_forwards_come_cell_by_cell_and_card_by_card(unseen: list[Forward]) -> None:
    assert [(one.cell, one.card, one.error) for one in unseen] == [
        (0, 0, ""),
        (0, 1, ""),
        (1, 0, ""),
        (1, 1, ""),
    ]


def test_an_autotuned_launch_has_an_entry_for_each_configuration_that_is_left(unseen: list[Forward]) -> None:
    tuned = [one for one in unseen[0].launches if one.kernel == "product"]
    assert [(one.call, one.choice, one.choices) for one in tuned] == [(0, 1, 3), (0, 2, 3), (0, 3, 3)]
    first, second, third = tuned
    assert (first.grid, second.grid, third.grid) == ((16, 4, 1), (4, 1, 1), (63, 16, 1))
    assert (first.num_warps, second.num_stages, third.num_warps) == (4, 4, 1)
    assert (first.tile, second.tile, third.tile) == ("64x64x32", "256x256x32", "16x16x32")
    assert first.config.startswith("BM=64 BN=64")
    assert {one.dot for one in tuned} == {"fp16"}
    assert {one.program_ids for one in tuned} == {"xy"}


def test_of_many_configurations_twelve_are_compiled() -> None:
    (forward,) = run(MANY)
    assert [(one.grid[0], one.choice, one.choices) for one in forward.launches] == [
        (n, n + 1, 20) for n in range(12)
    ]


def test_heuristics_see_the_shape(unseen: list[Forward]) -> None:
    assert unseen[0].launches[0].constants == {"EVEN": False, "BM": 64, "BN": 64, "BK": 32}
    assert unseen[2].launches[0].constants["EVEN"] is True


def test_only_the_second_call_counts_and_the_card_answers_for_its_sms(unseen: list[Forward]) -> None:
    """Neither what `prepare` launches is there, nor the SMs of another card."""
    for one, card in zip(unseen, CARDS * 2, strict=True):
        doubled = [launch for launch in one.launches if launch.kernel == "double" and not launch.error]
        assert [launch.grid for launch in doubled] == [(2 * card.sms, 1, 1)] * 2
        assert all(launch.tile_loop and launch.dot == "" and launch.tile == "1024" for launch in doubled)
        assert one.operators == {"add": 1}


def test_a_view_is_specialised_by_its_own_address(unseen: list[Forward]) -> None:
    """One element of 2 bytes further, 16-byte accesses are no longer possible: other code."""
    aligned, shifted = (launch for launch in unseen[0].launches[-4:-2])
    assert aligned.registers != shifted.registers


def test_what_does_not_compile_is_a_finding_of_its_launch(unseen: list[Forward]) -> None:
    (launch,) = (launch for launch in unseen[0].launches if launch.kernel == "broken")
    assert "nowhere is not defined" in launch.error
    assert launch.launch is None
    assert unseen[0].launches[-1].error == "ValueError: no grid: [-1, 1, 1]"


def test_memory_counts_inputs_parameters_and_what_is_made(unseen: list[Forward]) -> None:
    rows, columns, outputs, half = 2**20, 640, 256, 2
    elements = rows * columns + 2 * outputs * columns + outputs + 2 * rows * outputs
    assert unseen[2].memory_bytes == half * elements


def test_architectures_differ(unseen: list[Forward]) -> None:
    ada, ampere = (one.launches[0] for one in unseen[:2])
    assert ada.shared_bytes is not None
    assert ampere.launch is not None
    assert (ada.registers, ada.shared_bytes) != (ampere.registers, ampere.shared_bytes)


def test_traffic_is_what_the_reference_reads_and_writes(unseen: list[Forward]) -> None:
    """The packed copy of the solution's weights is not of the problem."""
    rows, columns, outputs, half = 2**20, 640, 256, 2
    assert unseen[2].traffic_bytes == half * (rows * columns + outputs * columns + outputs + rows * outputs)


SIDEWAYS = """
import torch, triton, triton.language as tl
from concurrent.futures import ThreadPoolExecutor
from torch import nn

POOL = ThreadPoolExecutor(1)

@triton.jit
def fill(x, n):
    tl.store(x + tl.program_id(0), n)

def count(x):
    with torch.cuda.stream(torch.cuda.current_stream()):
        fill[(7,)](x, 7)

class ModelNew(nn.Linear):
    graph = None

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.stream, self.begun = torch.cuda.Stream(priority=-1), torch.cuda.Event(enable_timing=True)

    def forward(self, x, times):
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                fill[(3,)](x, 3)
                x.mul_(2)
                fill[(4,)](x, 4)
            fill[(99,)](x, 99)
        self.begun.record()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            fill[(5,)](x, 5)
            x.record_stream(self.stream)
        torch.cuda.current_stream().wait_event(self.stream.record_event())
        assert self.begun.query() and self.begun.elapsed_time(self.begun) > 0
        assert x.device == torch.device("cuda", 0) == self.stream.device
        self.graph.replay()
        self.graph.replay()
        POOL.submit(count, x).result()
        return torch.compile(torch.neg, dynamic=False)(x)
"""


def test_streams_and_graphs_launch_in_the_order_of_the_host() -> None:
    """A captured graph launches nothing, each replay all of it."""
    (forward,) = run(SIDEWAYS)
    assert forward.error == ""
    assert [(one.call, one.grid[0]) for one in forward.launches] == list(enumerate((5, 3, 4, 3, 4, 7)))
    assert forward.operators == {"mul_": 2, "neg": 1}


HONEST = ROOT / "tests" / "honest"


@pytest.mark.parametrize("name", ["works_on_side_streams", "replays_a_graph"])
def test_honest_solutions_that_use_more_of_a_gpu_are_explained(name: str) -> None:
    problem = Problem("honest", HONEST / "problem.py", (HONEST / "problem.py").read_text())
    solution = Solution(name, HONEST / "gpu", (HONEST / "gpu" / f"{name}.py").read_text())
    square = Cell("smoke", "square", {"batch": 16, "features": 32}, "fp32", "tf32")
    (forward,) = retarget(problem, solution, [square], CARDS[:1])
    assert forward.error == ""
    assert forward.operators["masked_fill"] == 1


READS = """
import torch
from torch import nn

class ModelNew(nn.Linear):
    def forward(self, x, times):
        y = x[torch.zeros(3, dtype=torch.long, device=x.device)]  # asks for no value
        if len(x) == 1: y.sum().item()
        if len(x) == 2: bool(y.any())
        if len(x) == 3: y.tolist()
        if len(x) == 4: y.nonzero()
        if len(x) == 5: y.cpu()
        return x
"""


def test_a_value_that_nobody_computes_is_named_with_the_solutions_own_line() -> None:
    cells = [cell(rows=rows) for rows in range(1, 6)]
    forwards = retarget(UNSEEN, Solution("made", Path("made.py"), READS), cells, CARDS[:1])
    said = "RuntimeError: needs values of a tensor, which only a GPU would compute"
    lines = READS.splitlines()
    assert [forward.error for forward in forwards] == [
        f"{said} (line {number}: {lines[number - 1].strip()})" for number in range(8, 13)
    ]


FLOOD = """
import contextlib, os
for descriptor in map(int, os.listdir("/proc/self/fd")):
    with contextlib.suppress(OSError):
        os.write(descriptor, b"{}\\n")
"""


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import os\nos._exit(0)", "ended without an answer"),
        ("import time\ntime.sleep(1e6)", "no answer within 2 s"),
        ("raise SystemExit", "SystemExit"),
        ("x = 1", "no ModelNew"),
        (FLOOD, "an answer that is none"),
        ("open('/etc/hostname').read()", "PermissionError"),
        ("import torch\ntorch.empty(3 << 29, device='cpu')", "RuntimeError"),
    ],
    ids=["exits", "hangs", "raises", "empty", "floods", "reads", "allocates"],
)
def test_what_a_solution_does_wrong_is_an_error_of_its_own(source: str, error: str) -> None:
    (forward,) = run(source, 2.0 if "sleep" in source else 60.0)
    assert error in forward.error
    assert forward.launches == ()


@pytest.mark.usefixtures("new_command_line")
def test_nothing_is_left_of_what_a_solution_starts() -> None:
    """What outlives the process in between becomes a child of this one, by the fixture."""
    before = children(os.getpid())
    run((ROOT / "tests" / "faults" / "leaves_children.py").read_text())
    assert children(os.getpid()) == before


GOOD = Forward(
    0, 0, "3.9.0", (Compiled(0, "k", (3, 1, 1), "", 1, 1, {"BM": 64}, 4, 2, 1, 32, 0, 0),), {"add": 1}, 64
)


def test_a_forward_survives_the_way_back() -> None:
    assert read_forward(json.dumps(to_json(GOOD)).encode(), (0, 0)) == GOOD


@given(
    st.binary(max_size=64)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr).map(str.encode)
)
def test_an_answer_that_is_none_is_malformed(line: bytes) -> None:
    with pytest.raises(BadAnswer):
        read_forward(line, (0, 0))


@pytest.mark.parametrize(
    "changed",
    [
        {"registers": 256},
        {"registers": 0},
        {"num_warps": 0},
        {"shared_bytes": -1},
        {"shared_bytes": None},
        {"grid": (-1, 1, 1)},
        {"grid": (2**31, 1, 1)},
        {"spills": True},
        {"constants": {"BM": 1e3}},
    ],
    ids=repr,
)
def test_impossible_numbers_are_malformed(changed: dict[str, object]) -> None:
    launch = dataclasses.replace(GOOD.launches[0], **changed)  # type: ignore[arg-type]
    line = json.dumps(to_json(dataclasses.replace(GOOD, launches=(launch,)))).encode()
    with pytest.raises(BadAnswer):
        read_forward(line, (0, 0))


def test_an_answer_to_another_question_is_malformed() -> None:
    with pytest.raises(BadAnswer):
        read_forward(json.dumps(to_json(GOOD)).encode(), (0, 1))


DOT = "%a = tt.dot %x, %w, %c, inputPrecision = {} : tensor<64x32xf32> * tensor<32x128xf32> -> tensor<64x128>"


@pytest.mark.parametrize(
    ("precision", "ptx", "expected"),
    [
        ("tf32", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {", "tf32"),
        ("tf32", "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {", "tf32"),
        ("tf32", "tcgen05.mma.cta_group::1.kind::tf32 [%r1],", "tf32"),
        ("tf32x3", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {", "tf32x3"),
        ("ieee", "fma.rn.f32 %f1, %f2, %f3, %f4;", "fp32"),
        ("tf32", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {", "bf16"),
        ("tf32", "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {", "fp16_acc16"),
        ("tf32", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {", "fp8"),
        ("tf32", "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {", "int8"),
    ],
)
def test_dots_are_named_by_what_they_became(precision: str, ptx: str, expected: str) -> None:
    assert dot_class(DOT.format(precision), ptx) == expected


def test_the_largest_dot_is_the_tile() -> None:
    small = "%b = tt.dot %p, %q, %r : tensor<16x16xbf16> * tensor<16x16xbf16> -> tensor<16x16xf32>"
    assert tile(f"{small}\n{DOT.format('tf32')}\ntt.store %p, %v : tensor<4096x!tt.ptr<f32>>") == "64x128x32"
    assert tile("tt.store %p, %v, %m : tensor<8x256x!tt.ptr<f32>>") == "8x256"
    assert tile("tt.store %p, %v : !tt.ptr<f32>") == ""
    assert dot_class("", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {") == ""


@pytest.mark.parametrize(
    ("start", "step", "expected"),
    [
        ("%pid", "%all", True),
        ("%shifted", "%all", True),
        ("%pid", "%c132_i32", True),
        ("%pid", "%sms", True),
        ("%zero", "%all", False),
        ("%pid", "%c64_i32", False),
        ("%pid", "%n", False),
    ],
)
def test_a_loop_over_tiles_starts_from_its_program_and_strides_over_the_grid(
    start: str, step: str, expected: bool
) -> None:
    ttir = f"""
    %c132_i32 = arith.constant 132 : i32
    %c64_i32 = arith.constant 64 : i32
    %zero = arith.constant 0 : i32
    %pid = tt.get_program_id x : i32
    %shifted = arith.addi %pid, %c64_i32 : i32
    %all = tt.get_num_programs x : i32
    scf.for %i = {start} to %n step {step}  : i32 {{
    """
    assert loops_over_tiles(ttir, 132, {"n": 1000, "sms": 132, "even": True}) is expected
