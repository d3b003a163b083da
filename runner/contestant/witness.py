"""See the launches of a call: grid, warps, registers, shared memory, arithmetic; on a GPU or interpreted.

The functions that are wrapped are Triton's own, for one untimed call and never during timing.
What is seen is a claim: it is shown, and never decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triton import knobs
from triton.compiler import compiler
from triton.runtime import interpreter

from runner import arithmetic
from runner.channel import Frame, Kind
from runner.contestant import emulate

NAME_CHARS = 120
_MAX_LAUNCHES = 64


def _frame(kernel: str, grid: tuple[int, ...], facts: tuple[int, ...], classes: bytes = b"") -> Frame:
    x, y, z = (*grid, 1, 1, 1)[:3]
    args = (x, y, z, *facts)
    return Frame(Kind.LAUNCH, bool(emulate.undecided), args=args, payload=classes, text=kernel[:NAME_CHARS])


@contextmanager
def launches() -> Iterator[list[Frame]]:
    """Collect one LAUNCH frame per kernel launch made inside the block, at most 64.

    Facts a place does not have are -1: the interpreter has no registers. The payload has the classes of
    arithmetic that the kernel's PTX proposes (`runner.arithmetic`), and nothing in the interpreter.
    """
    seen: list[Frame] = []
    restore = _watch_interpreter(seen) if knobs.runtime.interpret else _watch_device(seen)
    try:
        yield seen
    finally:
        restore()
        del seen[_MAX_LAUNCHES:]


def _watch_device(seen: list[Frame]) -> Callable[[], None]:
    original = compiler.CompiledKernel.launch_metadata

    def launch_metadata(self: Any, grid: tuple[int, ...], stream: int, *args: Any) -> Any:
        self._init_handles()  # registers and spills are read from the loaded binary
        metadata = self.metadata
        facts = (metadata.num_warps, self.n_regs or -1, self.n_spills or 0, metadata.shared)
        classes = arithmetic.spell(arithmetic.classes(self.asm.get("ptx", "")))
        seen.append(_frame(self.name, grid, facts, classes))
        return original(self, grid, stream, *args)

    compiler.CompiledKernel.launch_metadata = launch_metadata

    def restore() -> None:
        compiler.CompiledKernel.launch_metadata = original

    return restore


def _watch_interpreter(seen: list[Frame]) -> Callable[[], None]:
    original = interpreter.InterpretedFunction.run
    builder = interpreter.interpreter_builder
    set_grid_dim = type(builder).set_grid_dim

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        def grid_dim(inner: Any, *dims: int) -> Any:
            seen.append(_frame(self.fn.__name__, dims, (kwargs.get("num_warps", 4), -1, -1, -1)))
            return set_grid_dim(inner, *dims)

        type(builder).set_grid_dim = grid_dim
        return original(self, *args, grid=grid, warmup=warmup, **kwargs)

    interpreter.InterpretedFunction.run = run

    def restore() -> None:
        interpreter.InterpretedFunction.run = original
        type(builder).set_grid_dim = set_grid_dim

    return restore
