"""PTX and an error to the arithmetic of an answer: the instructions propose a class, the error decides.

A mnemonic may sit in a branch that is never taken, and three products of narrow operands may stand for one
of wide ones, so what a binary contains is a proposal. What it cannot hide is what its answers lose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

UNKNOWN = "unknown"
#: From the most precise to the least. `fp16` and `bf16` accumulate in fp32, `fp16_acc16` in fp16.
CLASSES = ("fp64", "fp32", "tf32x3", "bf16x3", "tf32", "fp16", "bf16", "fp16_acc16", "fp8", "int8", UNKNOWN)
MISMATCH = "arithmetic_mismatch"
#: Relative Frobenius error against float64 below which products are as good as fp32's: over a reduction of
#: 32 IEEE lost 1.0e-7 on an H200, 3xTF32 1.3e-7 (4.4e-6 over long ones), TF32 2.8e-4.
FP32_ERROR = 5e-6

#: Type of the operands in an instruction -> class of its products.
_OPERANDS = {
    "f64": "fp64",
    "tf32": "tf32",
    "f16": "fp16",
    "bf16": "bf16",
    "s8": "int8",
    "u8": "int8",
    **dict.fromkeys(("e4m3", "e5m2", "e3m2", "e2m3", "e2m1"), "fp8"),
}
#: What tcgen05 names; whether `kind::f16` is fp16 or bf16, and where it accumulates, stands in a descriptor.
_KINDS = {"tf32": "tf32", "f8f6f4": "fp8", "i8": "int8"}
#: mma.sync (Ampere, Ada) and wgmma (Hopper), down to the types: the accumulator's, then the operands'.
_MATRIX = re.compile(
    r"\b(?:mma(?:\.sp(?:::\w+)?)?\.sync|wgmma\.mma_async(?:\.sp)?\.sync)\.aligned\.m\d+n\d+k\d+\S*?"
    r"\.([fs]\d+)\.(\w+)"
)
_BLACKWELL = re.compile(r"\btcgen05\.mma\.\S*?kind::(\w+)")
_SCALAR = re.compile(r"\bfma\.r[nzmp]\.(?:\w+\.)*f(32|64)")
_REMAINDER = re.compile(r"\bsub\.(?:\w+\.)*f32\b")
#: How an operand is rounded before what is left of it is rounded, too.
_ROUNDINGS = {"tf32": "cvt.rna.tf32.f32", "bf16": "cvt.rn.bf16x2.f32"}

_SINGLE = frozenset({"fp64", "fp32", "tf32x3", "bf16x3"})
#: Arithmetic of a cell -> classes of the same precision and range or better. fp16 has TF32's 11 bits but not
#: its range, so it stands in for neither TF32 nor bf16.
_ADMITTED = {
    "fp32": _SINGLE,
    "tf32": _SINGLE | {"tf32"},
    "fp16": _SINGLE | {"tf32", "fp16"},
    "bf16": _SINGLE | {"tf32", "bf16"},
}


def classes(ptx: str) -> frozenset[str]:
    """Propose the classes of a kernel's products by its PTX; empty if it multiplies and adds nothing.

    Without PTX (a kernel that is not Triton's) it is `unknown`. Scalar products in half precision propose
    nothing, since an honest epilogue has them.
    """
    if not ptx:
        return frozenset({UNKNOWN})
    products = Counter(
        "fp16_acc16" if (accumulator, operand) == ("f16", "f16") else _OPERANDS.get(operand, UNKNOWN)
        for accumulator, operand in _MATRIX.findall(ptx)
    )
    products.update(_KINDS.get(kind.removeprefix("mx"), UNKNOWN) for kind in _BLACKWELL.findall(ptx))
    if not products:
        return frozenset(f"fp{bits}" for bits in _SCALAR.findall(ptx))
    return frozenset(f"{name}x3" if _is_split(name, count, ptx) else name for name, count in products.items())


def _is_split(name: str, count: int, ptx: str) -> bool:
    """Whether each product of fp32 operands is made of three or more: operands are rounded twice."""
    rounding = _ROUNDINGS.get(name)
    return rounding is not None and count % 3 == 0 and rounding in ptx and _REMAINDER.search(ptx) is not None


def decide(
    cell_arithmetic: str, proposed: Collection[str], normwise_error: float
) -> tuple[str, tuple[str, ...]]:
    """Return the class of an answer that is within its budget, and its flags.

    `proposed` are the classes of all its kernels, `normwise_error` is the relative Frobenius error against
    float64. An error below `FP32_ERROR` makes it fp32 whatever was proposed; else the least precise proposal
    holds, and one that the cell (tf32, fp32, fp16 or bf16) does not admit is flagged. What is `unknown` is
    compared with the fastest baseline that the cell admits, as all are.
    """
    admitted = _ADMITTED[cell_arithmetic]
    if normwise_error < FP32_ERROR:
        return "fp32", ()
    known = set(proposed) - {UNKNOWN}
    excess = known - admitted
    if known != set(proposed) and not excess:
        return UNKNOWN, ()
    decided = max(excess or known, key=CLASSES.index, default=UNKNOWN)
    return decided, (MISMATCH,) if excess else ()


def spell(found: Collection[str]) -> bytes:
    """Write classes as a frame's payload carries them: names in ASCII between commas."""
    return ",".join(sorted(found, key=CLASSES.index)).encode("ascii")


def read(payload: bytes) -> tuple[str, ...]:
    """Read a payload that `spell` could have written, padded with zeros; ValueError for any other."""
    text = payload.rstrip(b"\0")
    names = tuple(name for name in text.decode("ascii", "replace").split(",") if name)
    if not set(names) <= set(CLASSES) or spell(set(names)) != text:
        raise ValueError("classes of arithmetic that there are not")
    return names
