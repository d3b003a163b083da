"""Classes read from what Triton compiles without a GPU, and what an error makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from runner.arithmetic import CLASSES, FP32_ERROR, MISMATCH, UNKNOWN, classes, decide, read, spell

# for a process of its own, where nothing has chosen the interpreter, and a file, which Triton reads again
COMPILED = """
import json, sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from runner.arithmetic import classes

@triton.jit
def product(x, w, y, P: tl.constexpr, ACC: tl.constexpr):
    o_m, o_k, o_n = tl.arange(0, 64), tl.arange(0, 32), tl.arange(0, 16)
    b_x = tl.load(x + o_m[:, None] * 32 + o_k[None, :])
    b_w = tl.load(w + o_k[:, None] * 16 + o_n[None, :])
    b_y = tl.dot(b_x, b_w, input_precision=P, out_dtype=ACC)
    tl.store(y + o_m[:, None] * 16 + o_n[None, :], b_y.to(y.dtype.element_ty))

@triton.jit
def copy(x, w, y, P: tl.constexpr, ACC: tl.constexpr):
    tl.store(y + tl.arange(0, 64), tl.load(x + tl.arange(0, 64)))

found = {}
for name, kernel, dtype, precision, accumulator, cc in json.load(sys.stdin):
    signature = {"x": f"*{dtype}", "w": f"*{dtype}", "y": "*fp32", "P": "constexpr", "ACC": "constexpr"}
    constants = {"P": precision, "ACC": getattr(tl, accumulator)}
    source = ASTSource(globals()[kernel], signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", cc, 32), options={"enable_fp_fusion": True})
    found[f"{name} {cc}"] = sorted(classes(compiled.asm["ptx"]))
print(json.dumps(found))
"""
# class -> kernel, dtype of its operands, precision, accumulator
KERNELS = {
    "fp32": ("product", "fp32", "ieee", "float32"),
    "tf32": ("product", "fp32", "tf32", "float32"),
    "tf32x3": ("product", "fp32", "tf32x3", "float32"),
    "bf16x3": ("product", "fp32", "bf16x3", "float32"),
    "fp16": ("product", "fp16", "ieee", "float32"),
    "fp16_acc16": ("product", "fp16", "ieee", "float16"),
    "bf16": ("product", "bf16", "ieee", "float32"),
    "fp8": ("product", "fp8e4nv", "ieee", "float32"),
    "int8": ("product", "i8", "ieee", "int32"),
    "": ("copy", "fp32", "ieee", "float32"),
}


def test_what_triton_compiles_proposes_its_class_on_ada_and_hopper(tmp_path: Path) -> None:
    script = tmp_path / "compiled.py"
    script.write_text(COMPILED)
    asked = [(name, *of, cc) for name, of in KERNELS.items() for cc in (89, 90)]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    said = subprocess.run(
        [sys.executable, "-W", "ignore", script],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=120,
    )
    expected = {f"{name} {cc}": [name] if name else [] for name in KERNELS for cc in (89, 90)}
    assert json.loads(said.stdout) == expected


SPLIT = "cvt.rna.tf32.f32 %r1, %r0; sub.f32 %r2, %r0, %r1;"
TF32 = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r1}, {%r2}, {%r3}, {%r1};"
# what other versions, architectures and hand-written PTX spell
TEXTS = {
    TF32: {"tf32"},
    SPLIT + 3 * TF32: {"tf32x3"},
    SPLIT + 4 * TF32: {"tf32"},  # rounded operands, one product of each
    SPLIT.partition("sub")[0] + 3 * TF32: {"tf32"},
    "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {%r1}, %rd1, %rd2, 0, 1, 1;": {"tf32"},
    "wgmma.mma_async.sync.aligned.m64n64k16.f16.f16.f16 {%r1}, %rd1, %rd2, 0;": {"fp16_acc16"},
    "wgmma.mma_async.sp.sync.aligned.m64n8k64.f32.e4m3.e5m2 {%r1}, %rd1;": {"fp8"},
    "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d1};": {"fp64"},
    "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%r1};": {"fp16"},
    "mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e5m2.e5m2.f32 {%r1};": {"fp8"},
    "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.u8.s8.s32 {%r1};": {"int8"},
    "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%r1};": {UNKNOWN},
    "@%p7 tcgen05.mma.cta_group::1.kind::tf32 [ %r1 + 0 ], %rd1, %rd2, %r2, %p6;": {"tf32"},
    "tcgen05.mma.cta_group::1.kind::f16 [ %r1 + 0 ], %rd1, %rd2, %r2, %p6;": {UNKNOWN},
    "tcgen05.mma.cta_group::2.kind::mxf8f6f4.block_scale [ %r1 ], %rd1;": {"fp8"},
    "fma.rn.f32 %f1, %f2, %f3, %f1;": {"fp32"},
    "fma.rn.ftz.f32 %f1, %f2, %f3, %f1; fma.rn.f64 %d1, %d2, %d3, %d1;": {"fp32", "fp64"},
    "fma.rn.f32x2 %rd1, %rd2, %rd3, %rd1;": {"fp32"},
    f"fma.rn.f32 %f1, %f2, %f3, %f1; {TF32}": {"tf32"},  # scales in fp32 what TF32 has multiplied
    "fma.rn.f16x2 %r1, %r2, %r3, %r1; wgmma.fence.sync.aligned;": set(),
    "": {UNKNOWN},
}


@pytest.mark.parametrize("ptx", TEXTS, ids=lambda ptx: ptx[:50] or "none")
def test_other_spellings(ptx: str) -> None:
    assert classes(ptx) == TEXTS[ptx]


CELLS = ("tf32", "fp32", "fp16", "bf16")
proposals = st.frozensets(st.sampled_from(CLASSES))
DECIDED = {
    # cell, proposed, error: class, flags
    ("fp32", "tf32x3", 4.4e-6): ("fp32", ()),
    ("fp32", "bf16x3", 8e-6): ("bf16x3", ()),
    ("fp32", "tf32", 8e-6): ("tf32", (MISMATCH,)),
    ("tf32", "tf32", 7.3e-4): ("tf32", ()),
    ("tf32", "fp32 tf32", 2.8e-4): ("tf32", ()),
    ("tf32", "fp32", 1e-5): ("fp32", ()),
    ("tf32", "fp16", 3.5e-4): ("fp16", (MISMATCH,)),
    ("tf32", "fp16 unknown", 3.5e-4): ("fp16", (MISMATCH,)),
    ("tf32", "unknown tf32", 3.5e-4): (UNKNOWN, ()),
    ("tf32", "", 3.5e-4): (UNKNOWN, ()),
    ("fp16", "fp16", 3.5e-4): ("fp16", ()),
    ("fp16", "tf32", 3.5e-4): ("tf32", ()),
    ("fp16", "fp16_acc16 fp16", 6e-4): ("fp16_acc16", (MISMATCH,)),
    ("fp16", "bf16", 6e-4): ("bf16", (MISMATCH,)),
    ("bf16", "bf16", 2.8e-3): ("bf16", ()),
    ("bf16", "fp16", 2.4e-3): ("fp16", (MISMATCH,)),
    ("bf16", "int8 fp8", 2.4e-3): ("int8", (MISMATCH,)),
}


@pytest.mark.parametrize("case", DECIDED, ids=lambda case: f"{case[1] or 'nothing'} in {case[0]}")
def test_the_error_decides_what_the_instructions_propose(case: tuple[str, str, float]) -> None:
    cell, proposed, error = case
    assert decide(cell, proposed.split(), error) == DECIDED[case]


@given(st.sampled_from(CELLS), proposals, st.floats(0, FP32_ERROR, exclude_max=True))
def test_what_is_as_good_as_fp32_is_fp32(cell: str, proposed: frozenset[str], error: float) -> None:
    assert decide(cell, proposed, error) == ("fp32", ())


@given(st.sampled_from(CELLS), proposals, proposals, st.floats(FP32_ERROR, 1))
def test_another_kernel_never_lifts_a_mismatch(
    cell: str, proposed: frozenset[str], more: frozenset[str], error: float
) -> None:
    decided, flags = decide(cell, proposed, error)
    wider, still = decide(cell, proposed | more, error)
    assert set(flags) <= set(still)
    if set(flags) == set(still) and decided != UNKNOWN:  # a new mismatch is named, whatever its place
        assert CLASSES.index(wider) >= CLASSES.index(decided)


@given(proposals.filter(lambda found: UNKNOWN not in found))
def test_a_flag_says_that_some_cell_would_admit_what_this_one_does_not(proposed: frozenset[str]) -> None:
    admitted = {cell for cell in CELLS if not decide(cell, proposed, 1e-3)[1]}
    # what the narrowest cell admits, all others do
    assert "fp32" not in admitted or admitted == set(CELLS)
    assert "tf32" not in admitted or {"fp16", "bf16"} <= admitted


@given(proposals)
def test_a_payload_says_what_was_spelt(found: frozenset[str]) -> None:
    assert frozenset(read(spell(found) + bytes(9))) == found


def test_what_a_kernel_can_propose_fits_a_frame() -> None:
    products = ("fp64", "tf32x3", "bf16x3", "fp16", "fp16_acc16", "fp8", "int8", UNKNOWN)
    assert all(len(spell(some)) <= 64 for some in combinations(products, len(products)))


@given(st.binary(max_size=64))
def test_no_payload_is_read_that_was_not_spelt(payload: bytes) -> None:
    try:
        names = read(payload)
    except ValueError:
        return
    assert spell(names) == payload.rstrip(b"\0")


@pytest.mark.parametrize("payload", [b"fp33", b"fp32,", b"fp32,fp32", b"tf32,fp32", b"fp32\0fp16", b"\xff"])
def test_a_payload_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="classes"):
        read(payload)
