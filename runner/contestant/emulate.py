"""Give Triton's interpreter the arithmetic of the tensor cores.

The interpreter multiplies fp32 operands exactly where a GPU would truncate them to TF32, and hands
bf16 bits to numpy as integers. Without this, every kernel would look more accurate in the
interpreter than it is, and every bf16 dot would be wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter


def truncate_to_tf32(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Drop the 13 mantissa bits that TF32 has not, as the hardware does with unrounded operands."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def bf16_to_fp32(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Widen bf16, which the interpreter keeps as uint16; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def install() -> None:
    """Patch the interpreter's dot, once per process."""
    builder = interpreter.InterpreterBuilder
    original = builder.create_dot

    def operand(handle: Any, tf32: bool) -> Any:
        if handle.dtype.scalar == tl.bfloat16:
            return interpreter.TensorHandle(bf16_to_fp32(handle.data), tl.float32)
        if tf32 and handle.dtype.scalar == tl.float32:
            return interpreter.TensorHandle(truncate_to_tf32(handle.data), tl.float32)
        return handle

    def create_dot(
        self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: int
    ) -> Any:
        tf32 = input_precision == ir.INPUT_PRECISION.TF32
        return original(self, operand(a, tf32), operand(b, tf32), d, input_precision, max_num_imprecise_acc)

    builder.create_dot = create_dot
