"""Give Triton's interpreter the arithmetic of the hardware.

The interpreter multiplies fp32 operands exactly where a tensor core would truncate them to TF32, and
rounds sums that a tensor core truncates. It keeps bf16 as integers that numpy adds and multiplies as
integers, and truncates fp32 to bf16 where a GPU rounds. Without this, every kernel would look more
accurate in the interpreter than it is, and no bf16 kernel would be right. An autotuned kernel runs in
its first configuration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton._C.libtriton import interpreter as raw
from triton._C.libtriton import ir
from triton.runtime import autotuner, interpreter

Array = np.ndarray[Any, Any]


def truncate_to_tf32(values: Array) -> Array:
    """Drop the 13 mantissa bits that TF32 has not, as the hardware does with unrounded operands."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


#: Of a row of the left factor, what one instruction multiplies: 8 values of TF32, 16 of 16 bits.
_INSTRUCTION_BYTES = 32


def add_products(total: Array, a: Array, b: Array, depth: int) -> Array:
    """Add a @ b to fp32 `total` as a tensor core does, `depth` products of each sum at a time.

    The products of an instruction are added exactly here, and with `total` cut to fp32 towards zero, as Fasi,
    Higham, Mikaitis and Pranesh found (Numerical behavior of NVIDIA tensor cores, 2021). An H100 fits: three
    TF32 products a term, kept in one sum, had relative errors of 2.6e-6 over 363 terms and 4.2e-6 over 576;
    this gives 3.3e-6 and 5.3e-6 for normal values (`error_by_three` in tests/test_emulate.py).
    """
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    for start in range(0, a.shape[-1], depth):
        step = slice(start, start + depth)
        total = _towards_zero(total + wide_a[..., step] @ wide_b[..., step, :])
    return total


def _towards_zero(wide: Array) -> Array:
    nearest = wide.astype(np.float32)
    too_far = np.isfinite(nearest) & (np.abs(nearest) > np.abs(wide))
    return np.where(too_far, np.nextafter(nearest, np.float32(0)), nearest)


_BF16_NAN = np.uint16(0x7FC0)


def bf16_to_fp32(bits: Array) -> Array:
    """Widen bf16, which the interpreter keeps as uint16; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def fp32_to_bf16(values: Array) -> Array:
    """Round fp32 to the nearest bf16, ties to even, as uint16; NaN stays NaN."""
    bits = np.asarray(values, dtype=np.float32, order="C").view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), _BF16_NAN, rounded).astype(np.uint16)


def install() -> None:
    """Patch the interpreter's dot, casts, arithmetic, reductions, atomics and padding, once per process."""
    builder = interpreter.InterpreterBuilder
    _patch_dot(builder)
    _patch_cast(builder)
    for name in ("unary_op", "binary_op", "ternary_op", "create_fma"):
        _patch_arithmetic(builder, name)
    _patch_extremes()
    _patch_sum()
    for name, combine in (("cumsum", np.add), ("cumprod", np.multiply)):
        _patch_scan(name, combine)
    _patch_atomic_add(builder)
    _patch_padding(builder)
    _patch_autotuner()


#: Autotuners that had a choice; the interpreter has no clock worth choosing by.
undecided: set[int] = set()


def _patch_autotuner() -> None:
    original = autotuner.Autotuner.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(self.configs) > 1:
            undecided.add(id(self))
            self.configs = self.configs[:1]
        return original(self, *args, **kwargs)

    autotuner.Autotuner.run = run


def _is(handle: Any, dtype: tl.dtype) -> bool:
    return isinstance(handle, interpreter.TensorHandle) and handle.dtype.scalar == dtype


def _widened(handle: Any) -> Any:
    return (
        interpreter.TensorHandle(bf16_to_fp32(handle.data), tl.float32)
        if _is(handle, tl.bfloat16)
        else handle
    )


def _patch_dot(builder: Any) -> None:
    original = builder.create_dot

    def create_dot(
        self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: int
    ) -> Any:
        depth = _INSTRUCTION_BYTES * 8 // a.dtype.scalar.primitive_bitwidth
        tf32 = input_precision == ir.INPUT_PRECISION.TF32 and _is(a, tl.float32)
        truncated = _is(d, tl.float32) and (tf32 or _is(a, tl.float16) or _is(a, tl.bfloat16))
        a, b = _widened(a), _widened(b)
        if not truncated:
            return original(self, a, b, d, input_precision, max_num_imprecise_acc)
        left, right = (truncate_to_tf32(x.data) if tf32 else x.data for x in (a, b))
        return interpreter.TensorHandle(add_products(d.data, left, right, depth), tl.float32)

    builder.create_dot = create_dot


def _patch_cast(builder: Any) -> None:
    original = builder.cast_impl

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar == tl.bfloat16 and not _is(src, tl.bfloat16):
            wide = src if _is(src, tl.float32) else original(self, src, tl.float32)
            return interpreter.TensorHandle(fp32_to_bf16(wide.data), tl.bfloat16)
        return original(self, _widened(src), dst_type)

    def get_bf16(self: Any, value: float) -> Any:
        return cast_impl(self, self.get_fp32(value), tl.bfloat16)

    builder.cast_impl = cast_impl
    builder.get_bf16 = get_bf16  # Triton 3.6 has none, and no bf16 tensor + 1.5


def _patch_arithmetic(builder: Any, name: str) -> None:
    original = getattr(builder, name)

    def patched(self: Any, *operands: Any) -> Any:
        if not any(_is(x, tl.bfloat16) for x in operands):
            return original(self, *operands)
        result = original(self, *map(_widened, operands))
        if result.data.dtype != np.float32:
            return result  # a comparison's truth values, which are no bf16
        return interpreter.TensorHandle(fp32_to_bf16(result.data), tl.bfloat16)

    setattr(builder, name, patched)


def _patch_extremes() -> None:
    original = interpreter.ReduceOps.min_max

    def min_max(self: Any, operand: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
        operand = operand[0] if isinstance(operand, tuple) else operand
        if not _is(operand.handle, tl.bfloat16):
            return original(self, operand, val_reduce_op, idx_reduce_op)

        def value(bits: Array, **how: Any) -> Array:
            return fp32_to_bf16(val_reduce_op(bf16_to_fp32(bits), **how))

        def index(bits: Array, **how: Any) -> Any:
            return idx_reduce_op(bf16_to_fp32(bits), **how)

        return original(self, operand, val_reduce_op and value, idx_reduce_op and index)

    interpreter.ReduceOps.min_max = min_max


def scan_bf16(bits: Array, axis: int, combine: Any) -> Array:
    """All prefixes of bf16 values, combined as a tree and rounded after each step.

    So does a GPU: Triton's own sum of bf16 is a tree of add.bf16. One rounding at the end would flatter it,
    and one after each value in turn would stop a sum of ones at 256.
    """
    values = np.moveaxis(bf16_to_fp32(bits), axis, 0)
    step = 1
    while step < len(values):
        joined = fp32_to_bf16(combine(values[:-step], values[step:]))
        values = np.concatenate([values[:step], bf16_to_fp32(joined)])
        step *= 2
    return fp32_to_bf16(np.moveaxis(values, 0, axis))


def _patch_sum() -> None:
    original = interpreter.ReduceOps.sum

    def total(self: Any, operand: Any) -> Any:
        if not _is(operand.handle, tl.bfloat16):
            return original(self, operand)
        bits, axis = operand.handle.data, self.axis
        if axis is None:
            bits = bits.reshape(-1, *[1] * (bits.ndim - 1))
        last = scan_bf16(bits, axis or 0, np.add).take([-1], axis or 0)
        return self.to_tensor(last if self.keep_dims else last.squeeze(axis), tl.bfloat16)

    interpreter.ReduceOps.sum = total


def _patch_scan(name: str, combine: Any) -> None:
    original = getattr(interpreter.ScanOps, name)

    def patched(self: Any, operand: Any) -> Any:
        if not _is(operand.handle, tl.bfloat16):
            return original(self, operand)
        return [self.to_tensor(scan_bf16(operand.handle.data, self.axis, combine), tl.bfloat16)]

    setattr(interpreter.ScanOps, name, patched)


def _patch_atomic_add(builder: Any) -> None:
    original = builder.create_atomic_rmw

    def create_atomic_rmw(self: Any, op: Any, ptr: Any, val: Any, mask: Any, sem: Any, scope: Any) -> Any:
        if op != ir.ATOMIC_OP.FADD or not _is(val, tl.bfloat16):
            return original(self, op, ptr, val, mask, sem, scope)
        shape = np.broadcast_shapes(ptr.data.shape, val.data.shape, mask.data.shape)
        at, added, due = (np.broadcast_to(x.data, shape).ravel() for x in (ptr, val, mask))
        before, due = np.zeros(at.size, dtype=np.uint16), np.flatnonzero(due)
        while due.size:
            # an address that comes again waits its turn, and finds what was stored before
            first = due[np.unique(at[due], return_index=True)[1]]
            all_of_them = np.ones(first.size, dtype=bool)
            before[first] = raw.load(at[first], all_of_them, before[first], before.dtype)
            sums = fp32_to_bf16(bf16_to_fp32(before[first]) + bf16_to_fp32(added[first]))
            raw.store(at[first], sums, all_of_them)
            due = np.setdiff1d(due, first)
        return interpreter.TensorHandle(before.reshape(shape), tl.bfloat16)

    builder.create_atomic_rmw = create_atomic_rmw


def _patch_padding(builder: Any) -> None:
    original = builder.create_descriptor_load

    def create_descriptor_load(self: Any, desc: Any, indices: Any, *policies: Any) -> Any:
        loaded = original(self, desc, indices, *policies)
        if desc.padding != ir.PADDING_OPTION.PAD_NAN or not _is(loaded, tl.bfloat16):
            return loaded
        _, inside = desc.materialize_pointers(indices)
        return interpreter.TensorHandle(np.where(inside.data, loaded.data, _BF16_NAN), tl.bfloat16)

    builder.create_descriptor_load = create_descriptor_load
