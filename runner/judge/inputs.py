"""Inputs and parameters of a cell: their layout in the shared blocks and fresh values for them.

The suite's own problems are fed a mixture of families, a new draw for every call. A foreign
KernelBench file says by `get_inputs` alone what it accepts, so its own generator is used, reseeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ALIGN = 256  # Triton specialises on 16-byte divisibility, cuDNN's plan key holds the alignment
#: Powers of ten of a sample's scale: fp16 inside a wider cell must fail, fp16 itself must not overflow.
SCALES = {"fp32": (-9.0, 6.0), "bf16": (-9.0, 6.0), "fp16": (-2.0, 0.5)}
#: Of a call's samples, so many take such a scale; the others keep 1.
SCALED_SHARE = 0.5
#: Every sample of the second and the third checked call takes one of these, so that fp16 fails in wider cells
#: and what is added to keep from dividing by zero matters: chance would leave a cell of one sample untested.
EXTREMES = {
    "fp32": ((5.0, 6.0), (-9.0, -7.0)),
    "bf16": ((5.0, 6.0), (-9.0, -7.0)),
    "fp16": ((0.0, 0.5), (-2.0, -1.5)),
}


@dataclass(frozen=True)
class Item:
    """One tensor at an offset of its block."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, block: torch.Tensor, start: int = 0) -> torch.Tensor:
        """View the tensor in a block of bytes."""
        at = start + self.offset
        return block[at : at + self.size].view(self.dtype).view(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Say it in a job."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"name": self.name, "shape": list(self.shape), "dtype": dtype, "offset": self.offset}


@dataclass(frozen=True)
class Layout:
    """Tensors one after another, each aligned; constants beside them."""

    items: tuple[Item | Any, ...]
    size: int

    @property
    def tensors(self) -> list[Item]:
        """The tensors among the items."""
        return [i for i in self.items if isinstance(i, Item)]

    def views(self, block: torch.Tensor, start: int = 0) -> list[Any]:
        """All arguments, tensors as views of `block`."""
        return [i.view(block, start) if isinstance(i, Item) else i for i in self.items]


def lay_out(values: Sequence[tuple[str, Any]], dtype: torch.dtype) -> Layout:
    """Place tensors (floating ones in the cell's dtype); other values stay constants."""
    items: list[Any] = []
    at = 0
    for name, value in values:
        if not isinstance(value, torch.Tensor):
            items.append(value)
            continue
        item = Item(name, tuple(value.shape), dtype if value.is_floating_point() else value.dtype, at)
        items.append(item)
        at += -(-max(1, item.size) // ALIGN) * ALIGN
    return Layout(tuple(items), max(at, ALIGN))


def draw_mixture(
    rows: int,
    width: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    scales: tuple[float, float],
    scaled_share: float = SCALED_SHARE,
) -> torch.Tensor:
    """Draw [rows, width] from a mixture of families, one per row, on the generator's device.

    Families: normal; uniform in [0, 1); normal with an offset; signs; normal with rare outliers; sparse;
    repeated halves; cancelling halves. `scaled_share` of the rows take a power of ten between `scales`, the
    others keep scale 1. A row is a sample (an index of dimension 0), so a small one cannot hide in the
    tolerance of a large one.
    """
    device = generator.device
    values = torch.empty(rows, width, dtype=dtype, device=device).normal_(generator=generator)
    families = torch.randint(len(_FAMILIES), (rows,), generator=generator, device=device)
    for index, family in enumerate(_FAMILIES):
        chosen = (families == index).nonzero()[:, 0]
        if len(chosen):
            values[chosen] = family(values[chosen], generator)
    exponents = torch.rand(rows, generator=generator, device=device) * (scales[1] - scales[0]) + scales[0]
    plain = torch.rand(rows, generator=generator, device=device) >= scaled_share
    scale = torch.where(plain, torch.ones_like(exponents), 10.0**exponents)
    return values.mul_(scale[:, None].to(dtype))


def _uniform(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return x.uniform_(generator=generator)


def _outliers(x: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    x[:, :: max(1, x.shape[1] // 8)] *= 16.0
    return x


def _sparse(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    kept = torch.rand(x.shape, generator=generator, device=x.device) < 0.25
    return x.mul_(kept)


def _halves(x: torch.Tensor, sign: float) -> torch.Tensor:
    half = x.shape[1] // 2
    x[:, half : 2 * half] = sign * x[:, :half]
    return x


_FAMILIES: tuple[Callable[[torch.Tensor, torch.Generator], torch.Tensor], ...] = (
    lambda x, _: x,
    _uniform,
    lambda x, _: x.mul_(0.5).add_(2.0),
    lambda x, _: x.sign_(),
    _outliers,
    _sparse,
    lambda x, _: _halves(x, 1.0),
    lambda x, _: _halves(x, -1.0),
)
