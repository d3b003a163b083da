"""The truth about a cell: the reference in float64, and what its arithmetic class may lose.

The class model is the reference in float64 on operands that the class may have lost: TF32 with
truncated operands, fp32 with relative errors of 8e-6 (3xTF32 loses up to 4.4e-6 at long reductions),
fp16 and bf16 with fp32 accumulation and one rounding of the result. It is the same on a CPU and on
a GPU; a cuDNN that happens not to use TF32 does not make honest TF32 kernels wrong. What a model
makes itself loses as much as an input where it is multiplied, as attention's probabilities are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from runner.judge.reference import ProblemFault, blamed, outputs_of
from runner.models import settle

#: Relative operand errors that the classes with exact operands are granted.
_FP32_OPERAND_ERROR = 8e-6
_ACCUMULATION_ERROR = 2.0**-18
#: Of itself, what a sum of products may lose that starts from a large addend: 27 additions to 0.2 lose 2e-7.
_ADDEND_ERROR = 1e-6
#: So many draws that reach no output more have reached all.
_STILL = 2
#: PyTorch's operators that multiply matrices, by the places of what they multiply and of what they add to it.
_PRODUCTS = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), ((0, 1), None)),
    **dict.fromkeys(("addmm", "addbmm", "baddbmm", "addmv", "addmm_", "baddbmm_", "addmv_"), ((1, 2), 0)),
    "convolution": ((0, 1), 2),
}


class Oracle:
    """Reference models of one cell. Parameters are given in the cell's dtype, on the judge's device."""

    def __init__(
        self,
        make: Callable[[], nn.Module],
        parameters: dict[str, torch.Tensor],
        dtype: torch.dtype,
        arithmetic: str,
        *,
        watch: Callable[[nn.Module], nn.Module] = lambda model: model,
        exact_integers: bool = False,
        composed: bool = True,
    ) -> None:
        """Load the models. With `exact_integers` inputs of whole numbers, labels say, lose nothing.

        `watch` is not for the class model: whoever calls that again finds other losses. A model that is not
        `composed` multiplies nothing that it made itself.
        """
        self.dtype = dtype
        self.exact_integers = exact_integers
        self.arithmetic = arithmetic
        self.parameters = parameters
        self.reference = watch(_loaded(make(), parameters, dtype))
        self.exact = watch(_loaded(make(), parameters, torch.float64))
        self._perturbed = _loaded(make(), parameters, torch.float64)
        self.composed = composed

    def truth(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """The reference in float64 on the inputs as sent. Raises ProblemFault where it cannot have that."""
        with blamed("Model, in float64,"), _float64():
            return outputs_of(self.exact, [_wide(x) for x in inputs])

    def observed(self, inputs: Sequence[Any]) -> list[torch.Tensor] | None:
        """The reference in the cell's own dtype and arithmetic, or None where PyTorch cannot run it."""
        allowed = self.arithmetic != "fp32"
        torch.backends.cudnn.allow_tf32 = allowed
        torch.backends.cuda.matmul.allow_tf32 = allowed
        try:
            return outputs_of(self.reference, inputs)
        except (RuntimeError, NotImplementedError):
            return None  # a dtype that the device's library has no kernel for

    def perturb(self, generator: torch.Generator, draw: int) -> None:
        """Choose the parameters' errors for the class model's draw number `draw`."""
        own = self._perturbed.state_dict()
        for name, value in self.parameters.items():
            if value.is_floating_point():
                own[name].copy_(self.operand(value, generator, draw))

    def class_model(self, inputs: Sequence[Any], generator: torch.Generator, draw: int) -> list[torch.Tensor]:
        """What an honest implementation of the class may answer; call `perturb` first."""
        operands = [self._input(x, generator, draw) for x in inputs]
        with _float64():
            answers = self._composed_answers(operands, generator, draw) if self.composed else None
            if answers is None:
                answers = outputs_of(self._perturbed, operands)
        return [y.to(self.dtype) if y.is_floating_point() else y for y in answers]

    def _composed_answers(
        self, operands: Sequence[Any], generator: torch.Generator, draw: int
    ) -> list[torch.Tensor] | None:
        """Answer with losses in what the model makes itself; None where PyTorch hides its products."""
        given = [*operands, *self._perturbed.state_dict().values()]
        recurrent = any(isinstance(layer, nn.RNNBase) for layer in self._perturbed.modules())
        with contextlib.ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent:  # cuDNN's are one operator, with all products inside
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(
                _Losses(
                    given,
                    operand=lambda v: self.operand(v.to(self.dtype), generator, draw),
                    total=lambda v: _blurred(v, _ADDEND_ERROR, generator),
                )
            )
            try:
                return outputs_of(self._perturbed, operands)
            except (ProblemFault, torch.OutOfMemoryError):
                raise
            except Exception:  # noqa: BLE001 - operators of a higher order have no dispatcher
                self.composed = False
                torch._dynamo.reset()  # noqa: SLF001 - what failed to compile among losses is kept as failing
                return None

    def _input(self, value: Any, generator: torch.Generator, draw: int) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if self.exact_integers and bool((value == value.round()).all()):
            return value.double()
        return self.operand(value, generator, draw)

    def operand(self, value: torch.Tensor, generator: torch.Generator, draw: int) -> torch.Tensor:
        """Lose what the class may lose of an operand; draw 0 of TF32 is plain truncation."""
        if self.arithmetic == "tf32":
            bits = value.contiguous().view(torch.int32)
            if draw:
                bits = bits + torch.randint(
                    0x2000, bits.shape, generator=generator, device=bits.device, dtype=torch.int32
                )
            return (bits & ~0x1FFF).view(torch.float32).double()
        error = _FP32_OPERAND_ERROR if self.arithmetic == "fp32" else _ACCUMULATION_ERROR
        return _blurred(value, error, generator)

    def reached(self, draws: Iterator[Sequence[Any]], generator: torch.Generator) -> list[torch.Tensor]:
        """Which outputs depend on the inputs at all: the others are structurally constant.

        What successive draws leave as it is, with random parameters, is reached by no tap: of linear
        operators two tell it, with probability 1. Others may hold an output in some draws (a ReLU at 0), so
        there are more until `_STILL` of them running show nothing new. Masks have the samples that are drawn.
        """
        model = self._perturbed
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            for value in model.parameters():
                if value.is_floating_point():
                    value.uniform_(0.5, 1.5, generator=generator)
        with _float64():
            first = outputs_of(model, [_wide(x) for x in next(draws)])
            masks = [torch.zeros_like(y, dtype=torch.bool) for y in first]
            still = 0
            while still < _STILL and not all(bool(mask.all()) for mask in masks):
                known = sum(int(mask.sum()) for mask in masks)
                again = outputs_of(model, [_wide(x) for x in next(draws)])
                masks = [mask | (y != x) for mask, y, x in zip(masks, again, first, strict=True)]
                still = still + 1 if sum(int(mask.sum()) for mask in masks) == known else 0
        model.load_state_dict(kept)
        return masks


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    """Have float32 that a model asks for itself, for an initial state or a cast, be float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widening():
            yield
    finally:
        torch.set_default_dtype(default)


class _Losses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Has products of matrices lose something of the operands that a model made itself."""

    def __init__(
        self,
        given: Sequence[Any],
        operand: Callable[[torch.Tensor], torch.Tensor],
        total: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = {_storage(value) for value in given if _is_dense(value)}
        self._operand, self._total = operand, total

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        factors, addend = _PRODUCTS.get(func.overloadpacket.__name__, ((), None))
        if not factors:
            with self:  # inference mode leaves what is composed whole
                result = func.decompose(*args, **named)
            return func(*args, **named) if result is NotImplemented else result
        lossy: dict[int, torch.Tensor] = {}  # of one storage all views lose alike, or y @ y.T has no symmetry
        places = range(len(args)) if self._sums(func, args, factors) else ()
        lost = [self._lost(v, lossy) if at in places and at in factors else v for at, v in enumerate(args)]
        result = func(*lost, **named)
        if addend is None or args[addend] is None or result.dtype is not torch.float64:
            return result
        return result.copy_(self._total(result))

    @staticmethod
    def _sums(func: Any, args: tuple[Any, ...], factors: tuple[int, int]) -> bool:
        """Whether there is more than one term: an outer product is none of tensor cores'."""
        return func.overloadpacket.__name__ == "convolution" or bool(args[factors[0]].shape[-1] != 1)

    def _lost(self, value: Any, lossy: dict[int, torch.Tensor]) -> Any:
        """Return a view of what is left of the storage that it is a view of."""
        made = _is_dense(value) and value.dtype is torch.float64 and _storage(value) not in self._given
        if not made or bool((value == value.round()).all()):  # whole numbers, positions say, are exact
            return value
        key = _storage(value)
        if key not in lossy:
            whole = torch.empty(0, dtype=value.dtype, device=value.device).set_(value.untyped_storage())
            left = self._operand(whole)
            lossy[key] = torch.where(left.isfinite(), left, whole)
        return lossy[key].as_strided(value.size(), value.stride(), value.storage_offset())


def _blurred(value: torch.Tensor, error: float, generator: torch.Generator) -> torch.Tensor:
    """Values in float64 that are wrong by up to `error` of themselves."""
    noise = torch.rand(value.shape, generator=generator, device=value.device, dtype=torch.float32)
    # in place: of the largest inputs there is no room for a copy at each step
    return noise.double().mul_(2.0).sub_(1.0).mul_(error).add_(1.0).mul_(value)


def _is_dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _storage(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()


class _Widening(TorchFunctionMode):
    """Reads float32 as float64 in every call of PyTorch's."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        wider = torch.Tensor.double if func is torch.Tensor.float else func
        named = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return wider(*map(_widened, args), **named)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _wide(value: Any) -> Any:
    wide = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if wide else value


def _loaded(model: nn.Module, parameters: dict[str, torch.Tensor], dtype: torch.dtype) -> nn.Module:
    device = next(iter(parameters.values())).device if parameters else None
    model = settle(model, device, dtype)
    model.load_state_dict(
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in parameters.items()}
    )
    return model
