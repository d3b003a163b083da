"""A GPU that is not there: torch describes a card, and tensors without memory say that they lie on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode

from runner.contestant import capture

#: Any address a CUDA allocator might give is a multiple of 2 to this.
_ALIGNMENT_BITS = 9
_DEVICE, _POOL = torch.device("cuda", 0), (0, 0)


class Pretence(TorchFunctionMode):
    """Meta tensors say that they lie on a GPU, and what is asked to lie there becomes a meta tensor.

    Their addresses are aligned as CUDA's allocator aligns, views included, so Triton specialises as it
    would in a real launch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer what only a GPU's tensor could, and place the rest."""
        del types
        answer = _ANSWERS.get(func)
        if answer is not None and args[0].is_meta:
            return answer(args[0])
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        placed = {name: _placed(value, name) for name, value in (kwargs or {}).items()}
        return func(*map(_placed, args), **placed)


def _placed(value: Any, name: str = "") -> Any:
    """Turn a CUDA device, by whatever name, into the meta device."""
    by_number = name == "device" and isinstance(value, int)
    by_name = isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == "cuda"
    return torch.device("meta") if by_number or by_name else value


def _address(tensor: torch.Tensor) -> int:
    base: int = tensor.untyped_storage()._cdata << _ALIGNMENT_BITS  # noqa: SLF001 - one number per storage
    return base + int(tensor.storage_offset()) * tensor.element_size()


_ANSWERS: dict[Any, Any] = {
    torch.Tensor.is_cuda.__get__: lambda _: True,  # type: ignore[attr-defined] # a descriptor
    torch.Tensor.device.__get__: lambda _: _DEVICE,
    torch.Tensor.get_device: lambda _: 0,
    torch.Tensor.cuda: lambda tensor: tensor,
    torch.Tensor.data_ptr: _address,
}


class Event:
    """A moment of a stream that does nothing: it has come, and no time lies between two."""

    cuda_event = 0
    device = _DEVICE

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        """Pass by."""

    def wait(self, stream: Any = None) -> None:
        """Wait for nothing."""

    def synchronize(self) -> None:
        """Wait for nothing."""

    def query(self) -> bool:
        """Say that it has come."""
        return True

    def elapsed_time(self, _: Event) -> float:
        """Return a millisecond between any two, for code that divides by it."""
        return 1.0


class Stream:
    """A stream that does nothing; launches are noted in the order in which the host makes them."""

    cuda_stream = stream_id = priority = 0
    device = _DEVICE

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stay, for there is no other stream."""

    def synchronize(self) -> None:
        """Wait for nothing."""

    def query(self) -> bool:
        """Say that all is done."""
        return True

    def wait_stream(self, _: Any) -> None:
        """Wait for nothing."""

    def wait_event(self, _: Any) -> None:
        """Wait for nothing."""

    def record_event(self, event: Event | None = None) -> Event:
        """Return a moment of it."""
        return event or Event()


class Graph:
    """A CUDA graph: what is called while it is captured is called by each replay, and not before."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.captured = self.outer = capture.Calls()

    def capture_begin(self, *_: Any, **__: Any) -> None:
        """Note calls apart."""
        self.outer = capture.Calls.current
        capture.Calls.current = self.captured = capture.Calls()

    def capture_end(self) -> None:
        """Note calls where they were noted before."""
        capture.Calls.current = self.outer

    def replay(self) -> None:
        """Call what was captured."""
        capture.Calls.current.repeat(self.captured)

    def reset(self) -> None:
        """Forget what was captured."""
        self.captured = capture.Calls()

    def pool(self) -> tuple[int, int]:
        """Name a pool of memory."""
        return _POOL


@contextmanager
def _graph(made: Graph, *_: Any, **__: Any) -> Iterator[None]:
    made.capture_begin()
    try:
        yield
    finally:
        made.capture_end()


def _uncompiled(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """Leave a function as it is: Inductor would ask a real GPU which kernels to write."""
    return _uncompiled if function is None else function


def pretend(properties: dict[str, Any]) -> None:
    """Have torch and Triton describe a card that is not there; `properties` as torch names a device's."""
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": properties["name"],
        "get_device_capability": (properties["major"], properties["minor"]),
        "get_device_properties": SimpleNamespace(**properties),
        **dict.fromkeys(("current_stream", "default_stream"), Stream()),
        "graph_pool_handle": _POOL,
        "is_bf16_supported": True,
        **dict.fromkeys(("_lazy_init", "synchronize", "set_device", "set_stream", "empty_cache")),
        **dict.fromkeys(("_exchange_device", "_maybe_exchange_device"), 0),
    }
    for name, value in answers.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    stand_ins = {"Stream": Stream, "ExternalStream": Stream, "stream": nullcontext, "Event": Event}
    for name, stand_in in {**stand_ins, "CUDAGraph": Graph, "graph": _graph}.items():
        setattr(torch.cuda, name, stand_in)
    # its parser would take no other stream than torch's
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[method-assign]
    torch.compile = _uncompiled  # type: ignore[assignment]
    capture.use_driver(properties)
