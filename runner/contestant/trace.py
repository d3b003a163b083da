"""Name the kernels that a call ran, whoever wrote them, as PyTorch's profiler saw them in one untimed call.

Profiling costs the host time and may leave CUPTI attached, so this comes after all that is timed. A trace is
made beside foreign code: like the launches it is a claim, which is shown and may raise a flag.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from runner.channel import MAX_KERNELS, Frame, Kind
from runner.contestant import witness

NAME_CHARS = 200
#: Not a library's: launched by Triton in this call, or by nobody who is known here.
TRITON, OWN = "triton", ""
#: The driver's copies and fills are no kernels, but time of the device.
_DRIVER = {"gpu_memcpy": "cuda", "gpu_memset": "cuda"}

#: Who wrote a kernel, by its name; the first that fits. An author's CUDA kernel may be called `winograd` or
#: `sm90_gemm`, so a pattern is as narrow as the library's own habits allow.
_LIBRARIES = {
    # engines that cuDNN names after what they compute, and conversions between layouts
    "cudnn": r"cudnn|xmma_(fprop|dgrad|wgrad)|\b(dgrad|wgrad)(2d)?_(alg|engine)|(im|ex)plicit_convolve_|"
    r"convolve_common_engine|generateWinogradTiles|\bfft2d_[rc]2[rc]|n(chwToNhwc|hwcToNchw|chwAddPadding)",
    # nvjet are cuBLAS's kernels for Hopper and later; earlier ones begin with the name of a generation
    "cublas": r"cublas|^nvjet|^(maxwell|volta|turing|ampere|hopper)_\w*gemm|^sm\d+_xmma_gemm|splitKreduce_|"
    r"^(gemv2[TN]|gemvNSP|gemmSN|gemmk1)_",
    "cufft": r"cufft|\b(regular|vector)_fft",
    # under the other libraries, and under whoever includes its headers
    "cutlass": r"cutlass|\bcute::",
    # what torch.compile generates, and launches past Triton
    "inductor": r"^triton_(poi|red|per|tem|for|mix|split_scan)_",
    # mangled where a name was too long for the demangler
    "pytorch": r"\bat::|\bat_cuda_detail|\bc10::|2at6native|2at4cuda",
    "cub": r"\bcub::|\bthrust::",
}


@dataclass(frozen=True)
class Kernel:
    """All launches of one name in a call: their time in all, the shape of the first, and whose it is."""

    name: str
    library: str
    launches: int
    time_ns: int
    grid: tuple[int, int, int]
    block_threads: int
    registers: int
    shared_bytes: int

    @property
    def frame(self) -> Frame:
        """What the judge is told."""
        facts = (self.block_threads, self.registers, self.shared_bytes)
        args = (self.launches, self.time_ns, *self.grid, *facts)
        return Frame(Kind.KERNEL, args=args, payload=self.library.encode("ascii"), text=self.name)


def frames(forward: Callable[..., Any], slot: list[Any], folder: Path) -> list[Frame]:
    """Return a KERNEL frame for each kernel of a call, or one with a code that says why there is none."""
    found, reason = kernels(forward, slot, folder)
    return [kernel.frame for kernel in found] or [Frame(Kind.KERNEL, code=1, text=reason)]


def kernels(forward: Callable[..., Any], slot: list[Any], folder: Path) -> tuple[list[Kernel], str]:
    """Return what one call on a slot ran, by its device time, at most 32; and why that is nothing, or ''.

    The trace passes through a file in `folder`, since its events have no metadata in memory (torch 2.11).
    Nothing is raised: a forward that fails here has answered before, under the judge's eyes.
    """
    path = folder / "trace.json"
    os.environ["TEARDOWN_CUPTI"] = "1"  # or it stays attached when the profile has ended
    try:
        with warnings.catch_warnings(), witness.launches() as launched:
            warnings.simplefilter("ignore")
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                forward(*slot)
                _synchronize()
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(errors="replace"))["traceEvents"]
        found = summarise(events, {frame.text for frame in launched})
    except BaseException as error:  # noqa: BLE001 - foreign code may raise anything
        return [], f"{type(error).__name__}: {error}"
    finally:
        with suppress(OSError):
            path.unlink()
    return found, "" if found else "CUPTI saw no kernel: it is not permitted here, or none ran"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summarise(events: Iterable[dict[str, Any]], launched: Collection[str]) -> list[Kernel]:
    """Join the events of a chrome trace by kernel, the longest first, at most 32.

    `launched` are the names that Triton launched. What is beyond the limit is one kernel of no library.
    """
    found: dict[str, Kernel] = {}
    for event in events:
        if event.get("cat") != "kernel" and event.get("cat") not in _DRIVER:
            continue
        one = _kernel(event, launched)
        known = found.get(one.name)
        if known is not None:
            one = replace(known, launches=known.launches + 1, time_ns=known.time_ns + one.time_ns)
        found[one.name] = one
    ordered = sorted(found.values(), key=lambda kernel: -kernel.time_ns)
    if len(ordered) <= MAX_KERNELS:
        return ordered
    kept, rest = ordered[: MAX_KERNELS - 1], ordered[MAX_KERNELS - 1 :]
    launches, time_ns = sum(k.launches for k in rest), sum(k.time_ns for k in rest)
    return [*kept, Kernel("(others)", OWN, launches, time_ns, (0, 0, 0), 0, 0, 0)]


def _kernel(event: dict[str, Any], launched: Collection[str]) -> Kernel:
    facts = event.get("args", {})
    x, y, z = (*facts.get("grid", (0, 0, 0)), 1, 1)[:3]
    threads = prod(int(size) for size in facts.get("block", (0,)))
    name = shorten(str(event["name"]))
    return Kernel(
        name=name,
        library=_DRIVER.get(event["cat"]) or library_of(name, launched),
        launches=1,
        time_ns=round(float(event["dur"]) * 1e3),
        grid=(int(x), int(y), int(z)),
        block_threads=threads,
        registers=int(facts.get("registers per thread", 0)),
        shared_bytes=int(facts.get("shared memory", 0)),
    )


def library_of(name: str, launched: Collection[str]) -> str:
    """Say whose kernel it is: `triton` if Triton launched it, else a library by the name, else ''."""
    if name[: witness.NAME_CHARS] in launched:
        return TRITON
    return next((library for library, pattern in _LIBRARIES.items() if re.search(pattern, name)), OWN)


def shorten(name: str) -> str:
    """Return a C++ name without its return type and parameters, cut at 200 characters."""
    name = " ".join(name.replace("(anonymous namespace)::", "").split()).removeprefix("void ")
    depth = 0
    for place, char in enumerate(name):
        depth += (char == "<") - (char == ">")
        if char == "(" and depth == 0 and place:
            name = name[:place].rstrip()
            break
    return name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 3]}..."
