"""See what a call of Triton kernels would launch: each kernel is compiled for a card, and none is run.

Triton specialises a kernel by its arguments as in a launch, and its own caches keep what one architecture
has compiled. What is found is a claim, since foreign code runs beside this; it is shown and decides nothing.
"""

from __future__ import annotations

import functools
import math
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

#: A launch in JSON's types, field by field a `runner.retarget.Compiled`.
Found = dict[str, Any]

MAX_LAUNCHES = 512
MAX_CONFIGS = 12
_TEXT_CHARS = 200

_FORMATS = {"f16": "fp16", "e4m3": "fp8", "e5m2": "fp8", "f8f6f4": "fp8", "i8": "int8", "s8": "int8"}


class Driver:
    """What Triton asks of a driver before a launch, answered for a card that is not there.

    `device` is told apart by architecture alone, so that cards of one architecture share what is compiled.
    """

    def __init__(self, properties: dict[str, Any]) -> None:
        self.device: int = 10 * properties["major"] + properties["minor"]
        self.utils = SimpleNamespace(
            get_device_properties=lambda _: {
                "max_shared_mem": properties["shared_memory_per_block_optin"],
                "max_num_regs": properties["regs_per_multiprocessor"],
                "multiprocessor_count": properties["multi_processor_count"],
                "warpSize": properties["warp_size"],
            }
        )

    def get_current_target(self) -> GPUTarget:
        """Name the architecture to compile for."""
        return GPUTarget("cuda", self.device, 32)

    def get_current_device(self) -> int:
        """Return the key of Triton's caches."""
        return self.device

    def get_current_stream(self, _: int) -> int:
        """Return the default stream."""
        return 0


@dataclass
class Calls:
    """What is called, in order: Triton's launches, and how often which of PyTorch's operators.

    Of `count` launches an autotuned one has several entries.
    """

    launches: list[Found] = field(default_factory=list)
    count: int = 0
    operators: Counter[str] = field(default_factory=Counter)

    #: Where a call is noted now.
    current: ClassVar[Calls]

    def repeat(self, made: Calls) -> None:
        """Call once more what was called before."""
        again = made.launches[: MAX_LAUNCHES - len(self.launches)]
        self.launches += [one | {"call": self.count + one["call"]} for one in again]
        self.count += made.count
        self.operators += made.operators


Calls.current = Calls()


@contextmanager
def calls() -> Iterator[Calls]:
    """Collect what is called in the block, at most 512 entries of launches; nothing is executed.

    Of an autotuned launch the first twelve configurations are entries of one `call`, since only a
    measurement on the card would choose among them.
    """
    capture, outer = _Capture(), Calls.current
    Calls.current = noted = Calls()
    originals = JITFunction.run, Autotuner.run, CompiledKernel._init_handles  # noqa: SLF001 - Triton has no hook here
    JITFunction.run = lambda function, *args, **kwargs: capture.launch(originals[0], function, args, kwargs)
    Autotuner.run = lambda tuner, *args, **kwargs: capture.tune(tuner, args, kwargs)
    CompiledKernel._init_handles = _init_handles  # noqa: SLF001
    try:
        yield noted
    finally:
        Calls.current = outer
        JITFunction.run, Autotuner.run, CompiledKernel._init_handles = originals  # noqa: SLF001


class _Capture:
    def __init__(self) -> None:
        self.choice: Found | None = None

    def launch(self, run: Callable[..., Any], function: Any, args: Any, kwargs: Any) -> Any:
        """Compile as a launch would and note it; a kernel that does not compile is noted as such."""
        if kwargs.pop("warmup"):
            return run(function, *args, warmup=True, **kwargs)
        made = Calls.current
        if self.choice is None:
            made.count += 1
        if len(made.launches) >= MAX_LAUNCHES:
            return None
        noted = {"call": made.count - 1, **(self.choice or {"config": "", "choice": 1, "choices": 1})}
        noted |= {"kernel": function.__name__[:_TEXT_CHARS], "grid": [0, 0, 0], "constants": {}}
        made.launches.append(noted)
        try:
            values = _bound(function, args, kwargs)
            noted["constants"] = {p.name: _plain(values[p.name]) for p in function.params if p.is_constexpr}
            noted["grid"] = _grid(kwargs["grid"], values)
            kernel = run(function, *args, warmup=True, **kwargs)
            programs = math.prod(noted["grid"])
            noted |= _compiled(kernel) | {"tile_loop": loops_over_tiles(kernel.asm["ttir"], programs, values)}
        except Exception as error:  # noqa: BLE001 - whatever stops a kernel from compiling is the finding
            noted["error"] = one_line(error)
            return None
        return kernel

    def tune(self, tuner: Any, args: Any, kwargs: Any) -> Any:
        """Make the launch in each configuration, since there is no clock to choose by."""
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        configs = tuner.prune_configs(kwargs) if len(tuner.configs) > 1 else tuner.configs
        tuner.best_config = configs[0]
        Calls.current.count += 1
        kernel = None
        for number, config in enumerate(configs[:MAX_CONFIGS], 1):
            tuned = config.all_kwargs()
            if config.pre_hook:
                config.pre_hook({**tuner.nargs, **kwargs, **tuned})
            text = " ".join(f"{name}={value}" for name, value in tuned.items())
            self.choice = {"config": text[:_TEXT_CHARS], "choice": number, "choices": len(configs)}
            try:
                kernel = tuner.fn.run(*args, **kwargs, **tuned)
            finally:
                self.choice = None
        return kernel


def _bound(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    own = {name: value for name, value in kwargs.items() if name in function.arg_names}
    bound = function.signature.bind(*args, **own)
    bound.apply_defaults()
    return dict(bound.arguments)


def _grid(grid: Any, values: dict[str, Any]) -> list[int]:
    given = grid(values) if callable(grid) else grid
    sizes = [int(size) for size in (*given, 1, 1, 1)[:3]]
    if not all(0 <= size < 2**31 for size in sizes):
        raise ValueError(f"no grid: {sizes}")
    return sizes


def _plain(value: Any) -> int | str:
    value = getattr(value, "value", value)  # a tl.constexpr
    return value if isinstance(value, int) else str(value)[:_TEXT_CHARS]


def one_line(error: BaseException) -> str:
    """Tell an error by its last line, where compilers put the message."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[-1].strip()}"[:_TEXT_CHARS]


@functools.cache
def _compiled(kernel: Any) -> Found:
    """Return what a compiled kernel needs, and what its intermediate code shows."""
    metadata, ttir = kernel.metadata, kernel.asm["ttir"]
    registers, spills = resources(kernel)
    return {
        "num_warps": metadata.num_warps,
        "num_stages": metadata.num_stages,
        "num_ctas": metadata.num_ctas,
        "registers": registers,
        "spills": spills,
        "shared_bytes": metadata.shared,
        "program_ids": "".join(sorted(set(re.findall(r"tt\.get_program_id (\w)", ttir)))),
        "tile": tile(ttir),
        "dot": dot_class(ttir, kernel.asm["ptx"]),
    }


def _init_handles(kernel: Any) -> None:
    """Give a kernel that nothing can load the figures that loading would, for code that plans by them."""
    kernel.n_regs, kernel.n_spills = resources(kernel)
    kernel.n_max_threads = 1024


def resources(kernel: Any) -> tuple[int, int]:
    """Return registers and spilled 32-bit words per thread, as the driver would count them."""
    cubin = next(path for name, path in kernel.metadata_group.items() if name.endswith(".cubin"))
    return _resources(Path(cubin), kernel.name)


@functools.cache
def _resources(cubin: Path, kernel: str) -> tuple[int, int]:
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(rf"Function {re.escape(kernel)}:\s+REG:(\d+) STACK:(\d+) \S+ LOCAL:(\d+)", listing)
    if usage is None:
        raise ValueError(f"cuobjdump lists no kernel {kernel}")
    registers, stack_bytes, local_bytes = map(int, usage.groups())
    return registers, (stack_bytes + local_bytes) // 4


def tile(ttir: str) -> str:
    """Return the largest dot as `MxNxK`, without dots the shape of the largest store; empty for scalars."""
    pairs = re.findall(r"tt\.dot\w* .*?: tensor<([\dx]+)x\w+> .*?\* tensor<([\dx]+)x\w+>", ttir)
    dots = [(*_sizes(a)[-2:-1], *_sizes(b)[-1:], *_sizes(a)[-1:]) for a, b in pairs]
    stores = re.findall(r"tt\.(?:store|descriptor_store|atomic_\w+) .*tensor<([\dx]+)x", ttir)
    largest = max(dots or map(_sizes, stores), key=math.prod, default=())
    return "x".join(map(str, largest))


def _sizes(shape: str) -> tuple[int, ...]:
    return tuple(map(int, shape.split("x")))


def dot_class(ttir: str, ptx: str) -> str:
    """Name the arithmetic of a kernel's dots by the instructions they became; empty without dots.

    `tf32x3` and `bf16x3` make fp32 products of several narrow ones. Dots that became no matrix
    instruction are `fp32`, and `+` joins the classes of a kernel that has several.
    """
    if "tt.dot" not in ttir:
        return ""
    split = set(re.findall(r"inputPrecision = (\w+x\d)", ttir))
    classes = split or {
        f"{_FORMATS.get(operand, operand)}{'_acc16' if accumulator == 'f16' else ''}"
        for accumulator, operand in _matrix_instructions(ptx)
    }
    return "+".join(sorted(classes)) or "fp32"


def _matrix_instructions(ptx: str) -> set[tuple[str, str]]:
    """Return (accumulator, operand) of mma (Ampere, Ada), wgmma (Hopper) and tcgen05 (Blackwell)."""
    found = re.findall(r"(?:mma\.sync|wgmma\.mma_async)\.\S*?m\d+n\d+k\d+\S*?\.([fs]\d+)\.(\w+)", ptx)
    kinds = re.findall(r"tcgen05\.mma\.\S*?kind::(\w+)", ptx)
    return {*found, *(("f32", kind) for kind in kinds)}


def loops_over_tiles(ttir: str, programs: int, values: dict[str, Any]) -> bool:
    """Say whether a `for` starts from a program id and strides over the grid: a persistent kernel's loop.

    Its step is the number of programs, asked of Triton or given as a constant or an argument. A `while`
    is not recognised.
    """
    constants = dict(re.findall(r"(%\w+) = arith\.constant (\d+) : i\d+", ttir))
    steps = {name for name, value in constants.items() if int(value) == programs}
    steps |= {f"%{name}" for name, value in values.items() if type(value) is int and value == programs}
    ids = _derived(ttir, r"tt\.get_program_id")
    steps |= _derived(ttir, r"tt\.get_num_programs")
    loops = re.findall(r"scf\.for %\w+ = (%\w+) to %\w+ step (%\w+)", ttir)
    return any(start in ids and step in steps for start, step in loops)


@functools.cache
def _derived(ttir: str, source: str) -> set[str]:
    """Return the values that are computed from an operation, in a listing where uses follow definitions."""
    found: set[str] = set()
    for name, operation in re.findall(r"(%\w+) = (.*)", ttir):
        if re.match(source, operation) or found.intersection(re.findall(r"%\w+", operation)):
            found.add(name)
    return found


def use_driver(properties: dict[str, Any]) -> None:
    """Compile for a card from now on; `properties` are named as torch names a device's."""
    driver.set_active(Driver(properties))
