"""A problem's own code, watched: what it does wrong is told as the problem's fault."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: Parts of the names of PyTorch's operators that are, or hold, products of matrices.
_PRODUCT_WORDS = ("mm", "conv", "linear", "attention", "rnn", "lstm", "gru", "dot", "mv", "matmul", "einsum")
#: Those of one product.
_ONE_PRODUCT = ("conv", "linear", "matmul", "mm", "bmm", "mv", "dot")
#: An answer that depends on what calls before have left in the model moves by more than this share of the
#: largest; kernels whose sums have no order move by less.
_SAME = 1e-3
_PIECE_ELEMENTS = 2**24


class ProblemFault(Exception):
    """A problem's own code fails, or its answer cannot be known."""


@contextlib.contextmanager
def blamed(what: str) -> Iterator[None]:
    """Have what fails in a block, but for want of memory, be the problem's fault."""
    try:
        yield
    except (ProblemFault, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ProblemFault(f"the problem's {what} raises {reason}") from error


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells whether a model multiplies matrices, or convolves: nothing else computes in TF32."""

    found = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.found = self.found or any(word in func.__name__ for word in _PRODUCT_WORDS)
        return func(*args, **(kwargs or {}))


class Multiplications(TorchFunctionMode):
    """Tells whether a model makes anything of a product, or a product of what it made itself."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        super().__init__()
        self._inputs = inputs
        self._plain: list[bool] = []
        self._made = 0

    @property
    def composed(self) -> bool:
        """Whether there is a product, and more than one of what the model is given."""
        return bool(self._plain) and (self._plain, self._made) != ([True], 1)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if any(word in name for word in _PRODUCT_WORDS):
            tensors = [one for one in (*args, *(kwargs or {}).values()) if isinstance(one, torch.Tensor)]
            plain = name.startswith(_ONE_PRODUCT) and all(map(self._is_given, tensors))
            self._plain.append(plain)
        result = func(*args, **(kwargs or {}))
        self._made += isinstance(result, torch.Tensor) and result.is_floating_point()
        return result

    def _is_given(self, tensor: torch.Tensor) -> bool:
        return isinstance(tensor, nn.Parameter) or any(tensor is one for one in self._inputs)


def is_convolution(module: nn.Module) -> bool:
    """Whether a layer is one of PyTorch's convolutions, transposed or not."""
    return hasattr(module, "transposed") and hasattr(module, "weight")


def outputs_of(model: nn.Module, inputs: Sequence[Any]) -> list[torch.Tensor]:
    """Call a model without gradients; its outputs as a list. Raises ProblemFault for what is no tensor."""
    with torch.inference_mode():
        result = model(*inputs)
    if isinstance(result, torch.Tensor):
        return [result]
    remedy = "return a tensor, or a list or tuple of tensors"
    if not isinstance(result, (list, tuple)):
        raise ProblemFault(f"the problem's Model returns a {type(result).__name__}: {remedy}")
    for index, value in enumerate(result):
        if not isinstance(value, torch.Tensor):
            raise ProblemFault(f"output {index} of the problem's Model is a {type(value).__name__}: {remedy}")
    return list(result)


def watched(reference: nn.Module, device: torch.device) -> nn.Module:
    """Have a reference raise ProblemFault where nobody can hold an answer against its own.

    That is where `forward` draws random numbers, writes to its inputs, or answers by what calls before left
    in the model.
    """
    generators: list[bytes] = []
    state: list[tuple[Any, list[int]]] = []
    versions: list[int] = []
    stateless = False  # as far as its answers go

    def enter(model: nn.Module, inputs: tuple[Any, ...]) -> None:
        generators[:], versions[:] = _generators(device), _versions(inputs)
        state[:] = [] if stateless else _state(model)

    def leave(model: nn.Module, inputs: tuple[Any, ...], answer: Any) -> None:
        nonlocal stateless
        if generators != _generators(device):
            raise ProblemFault("the problem's Model draws random numbers in forward: its answer is not known")
        if versions != _versions(inputs):
            raise ProblemFault("the problem's Model writes to its inputs in forward: have it take a copy")
        if stateless or not _differs(state, _state(model)):
            return
        if not _alike(answer, model.forward(*inputs)):
            raise ProblemFault(
                "the problem's Model answers by what earlier calls left in it: keep no state in forward"
            )
        stateless = True

    reference.register_forward_pre_hook(enter)
    reference.register_forward_hook(leave)
    return reference


def _generators(device: torch.device) -> list[bytes]:
    of_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [state.numpy().tobytes() for state in (torch.get_rng_state(), *of_device)]


def _versions(values: Sequence[Any]) -> list[int]:
    """How often each tensor was written to, where PyTorch counts that."""
    tensors = [one for value in values for one in (value if isinstance(value, (list, tuple)) else [value])]
    return [
        one._version  # noqa: SLF001 - has no public name
        for one in tensors
        if isinstance(one, torch.Tensor) and not one.is_inference()
    ]


def _state(model: nn.Module) -> list[tuple[Any, list[int]]]:
    """Whatever a model's layers hold in their attributes, and the versions of tensors."""
    held: list[Any] = []
    for layer in model.modules():
        for name, value in vars(layer).items():
            if name in ("_parameters", "_buffers"):
                held += value.values()
            elif isinstance(value, (torch.Tensor, bool, int, float, str, type(None))):
                held.append(value)
            elif isinstance(value, (list, dict)):
                held.append(len(value))
    return [(value, _versions([value])) for value in held]


def _differs(before: list[tuple[Any, list[int]]], after: list[tuple[Any, list[int]]]) -> bool:
    return len(before) != len(after) or any(
        versions != now or (old is not new if isinstance(old, torch.Tensor) else _unequal(old, new))
        for (old, versions), (new, now) in zip(before, after, strict=True)
    )


def _unequal(old: Any, new: Any) -> bool:
    return type(old) is not type(new) or old != new


def _alike(first: Any, second: Any) -> bool:
    pairs = [
        [one] if isinstance(one, torch.Tensor) else [v for v in one if isinstance(v, torch.Tensor)]
        for one in (first, second)
    ]
    return all(map(_close, *pairs))


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.numel() or one.is_meta:
        return True
    # in pieces: beside the largest answers there is no room for a wider copy of them
    pieces = [torch.split(x.flatten(), _PIECE_ELEMENTS) for x in (one, other)]
    largest = max(float(torch.nan_to_num(b.abs().double(), nan=0.0, posinf=0.0).max()) for b in pieces[1])
    wide = torch.complex128 if one.is_complex() else torch.float64
    return all(
        torch.allclose(a.to(wide), b.to(wide), rtol=_SAME, atol=_SAME * largest, equal_nan=True)
        for a, b in zip(*pieces, strict=True)
    )
