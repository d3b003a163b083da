"""The interpreter's arithmetic, held against PyTorch's own conversions and a kernel of each kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.contestant import emulate

ROOT = Path(__file__).parents[1]
floats = st.floats(width=32, allow_nan=False)


@given(st.lists(floats, min_size=1, max_size=50))
def test_fp32_rounds_to_bf16_as_pytorch_does(values: list[float]) -> None:
    fp32 = torch.tensor(values, dtype=torch.float32)
    rounded = emulate.fp32_to_bf16(fp32.numpy())
    assert np.array_equal(rounded.view(np.int16), fp32.bfloat16().view(torch.int16).numpy())
    assert np.array_equal(emulate.bf16_to_fp32(rounded), fp32.bfloat16().float().numpy())


def test_nan_stays_nan_in_bf16() -> None:
    # all mantissa bits set: rounding up would carry into the sign
    values = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], dtype=np.uint32).view(np.float32)
    assert np.isnan(emulate.bf16_to_fp32(emulate.fp32_to_bf16(values))).all()


@given(st.lists(floats, min_size=1, max_size=50))
def test_tf32_loses_less_than_a_unit_and_never_grows(values: list[float]) -> None:
    fp32 = np.array(values, dtype=np.float32)
    tf32 = emulate.truncate_to_tf32(fp32)
    assert np.all(np.abs(tf32) <= np.abs(fp32))
    normal = np.isfinite(fp32) & (np.abs(fp32) >= np.finfo(np.float32).smallest_normal)
    exact, lossy = fp32[normal].astype(np.float64), tf32[normal].astype(np.float64)
    assert np.all(np.abs(exact - lossy) < np.abs(exact) * 2.0**-10)
    assert np.all(tf32.view(np.uint32) % 2**13 == 0)


@given(st.integers(1, 40), st.sampled_from([8, 16]), st.floats(-8, 8), st.randoms(use_true_random=False))
def test_a_sum_of_a_tensor_core_falls_short_by_less_than_a_unit_an_instruction(
    length: int, depth: int, begun: float, random: Random
) -> None:
    a = np.array([[random.uniform(0, 1) for _ in range(length)]], dtype=np.float32)
    b = np.array([[random.uniform(0, 1)] for _ in range(length)], dtype=np.float32)
    total = np.array([[abs(begun)]], dtype=np.float32)
    exact = float((total + a.astype(np.float64) @ b.astype(np.float64))[0, 0])
    (found,) = emulate.add_products(total, a, b, depth).ravel()
    instructions = -(-length // depth)
    # or by the smallest number, where the sum is below the normal ones
    assert exact * (1 - 2.0**-23 * instructions) - 2.0**-149 * instructions <= found <= exact
    (mirrored,) = emulate.add_products(-total, -a, b, depth).ravel()
    assert mirrored == -found


def error_by_three(terms: int, *, apart: bool) -> float:
    """The relative error of fp32 products taken as three of TF32, 32 terms a step."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 32, terms)).astype(np.float32)
    high_a, high_b = emulate.truncate_to_tf32(a), emulate.truncate_to_tf32(b)
    products = ((a - high_a, high_b), (high_a, b - high_b), (high_a, high_b))
    total = np.zeros((32, 32), dtype=np.float32)
    for start in range(0, terms, 32):
        step = slice(start, start + 32)
        part = np.zeros_like(total) if apart else total
        for left, right in products:
            part = emulate.add_products(part, left[:, step], right.T[step], 8)
        total = total + part if apart else part
    exact = a.astype(np.float64) @ b.T.astype(np.float64)
    return float(np.linalg.norm(total - exact) / np.linalg.norm(exact))


def test_errors_of_long_sums_are_those_of_an_h100() -> None:
    """It had 4.2e-6 over 576 terms in one sum, at most 2.6e-7 in sums apart, and 1440 were refused."""
    assert 3e-6 < error_by_three(576, apart=False) < 7e-6
    assert error_by_three(1440, apart=False) > 1e-5
    assert error_by_three(1440, apart=True) < 5e-7


KERNELS = """
import json
import torch, triton
import triton.language as tl
from runner.contestant import emulate
emulate.install()

@triton.jit
def dot_kernel(a, b, y, P: tl.constexpr):
    o = tl.arange(0, 16)
    i = o[:, None] * 16 + o[None, :]
    tl.store(y + i, tl.dot(tl.load(a + i), tl.load(b + i), input_precision=P))

@triton.jit
def axpy_kernel(a, b, y):
    o = tl.arange(0, 256)
    x = tl.load(a + o) * tl.load(b + o) + tl.load(b + o)
    tl.store(y + o, tl.where(x > 0, x, -x))

@triton.autotune(configs=[triton.Config({"B": 32}), triton.Config({"B": 64})], key=["n"])
@triton.jit
def tuned_kernel(y, n, B: tl.constexpr):
    o = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(y + o, B, mask=o < n)

torch.manual_seed(1)
a, b = torch.rand(16, 16) - 0.5, torch.rand(16, 16) - 0.5
y = torch.empty(16, 16)
def error(p, cast):
    dot_kernel[(1,)](cast(a), cast(b), y, P=p)
    exact = a.double() @ b.double()
    return float((y.double() - exact).norm() / exact.norm())
found = {"tf32": error("tf32", lambda t: t), "ieee": error("ieee", lambda t: t)}
found["bf16"] = error("tf32", torch.Tensor.bfloat16)
found["fp16"] = error("tf32", torch.Tensor.half)
h, g = a.bfloat16(), b.bfloat16()
z = torch.empty(256, dtype=torch.bfloat16)
axpy_kernel[(1,)](h, g, z)
found["axpy"] = torch.equal(z, (h * g + g).abs().flatten())
t = torch.zeros(100)
tuned_kernel[lambda m: (triton.cdiv(100, m["B"]),)](t, 100)
found["tuned"] = t.unique().tolist()
found["undecided"] = len(emulate.undecided)
print(json.dumps(found))
"""


#: Of kernels that compute with blocks a and b, and what PyTorch makes of them in fp32.
EXPRESSIONS = {
    "a + b": "a + b",
    "a - b": "a - b",
    "a / (b + 1.5)": "a / (b + 1.5).to(dtype).float()",  # a constant, which is bf16 too
    "a % 1.75": "a.fmod(1.75)",
    "-a": "-a",
    "tl.abs(a)": "a.abs()",
    "tl.fma(a, b, a)": "a * b + a",
    "tl.maximum(a, b)": "a.maximum(b)",
    "tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)": "a.minimum(b)",
    "tl.clamp(a, -1.5, 2)": "a.clamp(-1.5, 2)",
    "tl.clamp(a, -1.5, 2, propagate_nan=tl.PropagateNan.ALL)": "a.clamp(-1.5, 2)",
    "tl.where(a > b, a, 0.0)": "torch.where(a > b, a, 0.0)",
    **{f"a * (a {op} b).to(a.dtype)": f"a * (a {op} b)" for op in ("<", ">", "<=", ">=", "==", "!=")},
    "(((a > 0) & (b > 0)) | ~(a > -1)).to(a.dtype)": "((a > 0) & (b > 0)) | ~(a > -1)",
    "a.to(tl.int1).to(a.dtype)": "a != 0",
    "(a * 4).to(tl.int8).to(a.dtype)": "a * 4",
    "(tl.abs(a) * 4).to(tl.uint32).to(a.dtype)": "a.abs() * 4",
    "a.to(tl.float64).to(a.dtype)": "a",
    "tl.clamp(a, -2, 2).to(tl.float8e5).to(a.dtype)": "a.clamp(-2, 2)",
    "a.to(tl.float8e4nv).to(a.dtype)": "a",
    "tl.sort(a)": "a.sort().values",
    "tl.gather(a, 31 - o, 0)": "a.flip(0)",
    "tl.cumsum(a, 0)": "a.cumsum(0)",
    "tl.cumsum(a, 0, reverse=True)": "a.flip(0).cumsum(0).flip(0)",
    "tl.cumprod(tl.where(a > 2, 2.0, -1.0).to(a.dtype), 0)": "torch.where(a > 2, 2.0, -1.0).cumprod(0)",
    "tl.associative_scan(a, 0, larger)": "a.cummax(0).values",
    "tl.zeros_like(a) + tl.reduce(a, 0, larger)": "a.max()",
    "tl.zeros_like(a) + tl.sum(a, 0)": "a.sum()",
    "tl.reshape(tl.reshape(a, (8, 4)) + tl.sum(tl.reshape(a, (8, 4)), 1, keep_dims=True), (32,))": (
        "(a.view(8, 4) + a.view(8, 4).sum(1, True)).flatten()"
    ),
    "a + tl.sum(tl.reshape(a, (8, 4)))": "a + a.sum()",
    "a + tl.max(a, 0).to(a.dtype)": "a + a.max()",
    "a + tl.min(a, 0, return_indices=True)[0].to(a.dtype)": "a + a.min()",
    "a + tl.max(a, 0, return_indices=True)[1].to(a.dtype)": "a + a.argmax()",
    "a + tl.argmax(a, 0, tie_break_left=False).to(a.dtype)": "a + a.argmax()",
    "a + tl.argmin(a, 0).to(a.dtype)": "a + a.argmin()",
    "tl.where(padded(x) >= -9, a, 5.0)": "torch.where(torch.arange(32) < 24, a, 5.0)",
    # four values to an address: each finds those before it, and all then read the sum
    "tl.atomic_add(c + o // 4, a) + tl.load(c + o // 4)": (
        "(a.view(8, 4).cumsum(1) - a.view(8, 4) + a.view(8, 4).sum(1, True)).flatten()"
    ),
    "tl.where(tl.atomic_add(c + o // 4, a, a > 0) < 99, tl.load(c + o // 4), 0.0)": (
        "a.relu().view(8, 4).sum(1).repeat_interleave(4)"
    ),
}
OPERATIONS = """
import json
import torch, triton
import triton.language as tl
from runner.contestant import emulate
emulate.install()

@triton.jit
def larger(a, b):
    return tl.where(a > b, a, b)

@triton.jit
def padded(x):
    return tl.make_tensor_descriptor(x, [24], [1], [32], padding_option="nan").load([0])
"""
OPERATIONS += "".join(
    f"""
@triton.jit
def kernel{i}(x, z, c, y):
    o = tl.arange(0, 32)
    a = tl.load(x + o)
    b = tl.load(z + o)
    tl.store(y + o, {expression})
"""
    for i, expression in enumerate(EXPRESSIONS)
)
OPERATIONS += f"""
expected = {list(EXPRESSIONS.values())}
torch.manual_seed(1)
# few enough bits for sums to be exact in any order, and for fp8; -1.5 is not among b, and a and b meet
a, b = (torch.randperm(32) - 16) / 4, torch.randint(0, 16, (32,)) / 4
b[:8] = a[:8].abs()
wrong = []
for name in ("bfloat16", "float16", "float32"):
    dtype = getattr(torch, name)
    for i, wanted in enumerate(expected):
        y = torch.full((32,), torch.nan, dtype=dtype)
        try:
            globals()["kernel" + str(i)][(1,)](a.to(dtype), b.to(dtype), torch.zeros(8, dtype=dtype), y)
        except Exception as error:
            wrong.append([name, i, str(error)])
            continue
        if not torch.equal(y, eval(wanted).to(dtype).expand(32)):
            wrong.append([name, i, str(y.tolist())])
print(json.dumps({{"wrong": wrong}}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return interpreted(KERNELS, tmp_path_factory.mktemp("emulate") / "kernels.py")


def interpreted(text: str, file: Path) -> dict[str, object]:
    # a process of its own: TRITON_INTERPRET counts when triton is imported
    file.write_text(text)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, file], check=True, capture_output=True, text=True, env=environment)
    loaded: dict[str, object] = json.loads(done.stdout)
    return loaded


def test_dots_have_the_errors_of_their_arithmetic(found: dict[str, float]) -> None:
    # truncating both operands loses about 7e-4 on random data; rounding to bf16 about 2.8e-3
    assert 4e-4 < found["tf32"] < 1e-3
    assert found["ieee"] < 1e-6
    assert 1e-3 < found["bf16"] < 5e-3
    assert 1e-4 < found["fp16"] < 6e-4


def test_bf16_arithmetic_is_that_of_pytorch(found: dict[str, object]) -> None:
    assert found["axpy"] is True


def test_an_autotuned_kernel_takes_its_first_configuration_and_says_so(found: dict[str, object]) -> None:
    assert found["tuned"] == [32.0]
    assert found["undecided"] == 1


def test_operations_are_those_of_pytorch_in_fp32_rounded_once(tmp_path: Path) -> None:
    wrong: object = interpreted(OPERATIONS, tmp_path / "operations.py")["wrong"]
    assert isinstance(wrong, list)
    assert [(name, list(EXPRESSIONS)[i], what) for name, i, what in wrong] == []


def test_a_sum_of_bf16_rounds_after_each_step_of_a_tree() -> None:
    bits = emulate.fp32_to_bf16(np.array([[256, 1, 1, 1]], dtype=np.float32))
    # 259 rounds to 260, and one addition after another would stay at 256
    prefixes = emulate.bf16_to_fp32(emulate.scan_bf16(bits, 1, np.add))
    assert prefixes.tolist() == [[256, 256, 258, 258]]
    ones = emulate.fp32_to_bf16(np.ones(1024, dtype=np.float32))
    assert emulate.bf16_to_fp32(emulate.scan_bf16(ones, 0, np.add))[-1] == 1024
