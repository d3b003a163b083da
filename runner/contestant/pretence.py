"""A GPU that is not there: torch describes a card, and tensors without memory say that they lie on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from runner.contestant import capture

#: Any address a CUDA allocator might give is a multiple of 2 to this.
_ALIGNMENT_BITS = 9


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
    torch.Tensor.device.__get__: lambda _: torch.device("cuda", 0),
    torch.Tensor.get_device: lambda _: 0,
    torch.Tensor.cuda: lambda tensor: tensor,
    torch.Tensor.data_ptr: _address,
}


def pretend(properties: dict[str, Any]) -> None:
    """Have torch and Triton describe a card that is not there; `properties` as torch names a device's."""
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": properties["name"],
        "get_device_capability": (properties["major"], properties["minor"]),
        "get_device_properties": SimpleNamespace(**properties),
        "current_stream": stream,
        "is_bf16_supported": True,
        **dict.fromkeys(("_lazy_init", "synchronize", "set_device", "empty_cache")),
        **dict.fromkeys(("_exchange_device", "_maybe_exchange_device"), 0),
    }
    for name, value in answers.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    capture.use_driver(properties)
