"""Run a user's code in a single floating-point dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bninvariants.devices import has_float64
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.evaluation.pytrees import map_tensors

_CASTS = (Tensor.double, Tensor.float, Tensor.half, Tensor.bfloat16)


class _SingleDtypeMode(TorchFunctionMode):
    """Replace every floating-point dtype that the code requests.

    Some models cast their softmax or their logits to float32, say. What such a cast rounds away
    would pass for a rounding error of float64.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _CASTS:
            return args[0].to(self._dtype)
        keywords = {name: self._replaced(value) for name, value in (kwargs or {}).items()}
        return func(*map(self._replaced, args), **keywords)

    def _replaced(self, value: Any) -> Any:
        is_float = isinstance(value, torch.dtype) and value.is_floating_point
        return self._dtype if is_float else value


def require_float64(tensors: Iterable[Tensor], purpose: str, instead: str = "") -> None:
    """Refuse to run a model in float64 on a device that lacks it, such as MPS.

    Args:
        tensors: the model's tensors.
        purpose: what float64 is needed for.
        instead: what the user can do besides moving the model.

    Raises:
        GateError: if a tensor is on such a device.
    """
    for device in sorted({str(tensor.device) for tensor in tensors}):
        if not has_float64(device):
            raise GateError(
                f"{device} has no float64, which is needed to {purpose}: move the model and its "
                f"inputs to the CPU{instead}"
            )


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Compute in one dtype, whatever the code inside casts to, constants included."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.enable_grad(), _SingleDtypeMode(dtype):
            yield
    finally:
        torch.set_default_dtype(before)


class CastModule(nn.Module):
    """A copy of a module that computes in another dtype throughout.

    Where its code casts to a third dtype, as `x.float()` does, that cast is replaced.

    Args:
        module: the module.
        dtype: the dtype.

    Raises:
        GateError: if the module cannot be copied.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        try:
            twin = copy.deepcopy(getattr(module, "_orig_mod", module)).to(dtype)
        except Exception as error:  # a module's copying may raise anything
            raise GateError(
                f"{type(module).__name__} cannot be copied and cast to {dtype}, which is needed "
                f"to measure rounding: {type(error).__name__}: {error}; give rtol= or atol="
            ) from error
        self.twin: nn.Module = twin
        self._dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the copy with inputs in its dtype."""
        args, kwargs = map_tensors(args, self._cast), map_tensors(kwargs, self._cast)
        with computing_in(self._dtype), torch.no_grad():
            return self.twin(*args, **kwargs)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor
