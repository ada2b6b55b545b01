"""Run a user's code in one floating-point dtype throughout."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.evaluation.pytrees import mapped

_CASTS = (Tensor.double, Tensor.float, Tensor.half, Tensor.bfloat16)


class _OneDtype(TorchFunctionMode):
    """Make every floating-point dtype that is asked for this one.

    Models cast on their own, a softmax or the logits to float32, say; what they round there would
    pass for a difference of float64.
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
        named = {name: self._meant(value) for name, value in (kwargs or {}).items()}
        return func(*map(self._meant, args), **named)

    def _meant(self, value: Any) -> Any:
        asks = isinstance(value, torch.dtype) and value.is_floating_point
        return self._dtype if asks else value


@contextmanager
def all_in(dtype: torch.dtype) -> Iterator[None]:
    """Compute in a dtype, whatever the code inside casts to, and have its constants fit."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.enable_grad(), _OneDtype(dtype):
            yield
    finally:
        torch.set_default_dtype(before)


class Cast(nn.Module):
    """A copy of a module in another dtype, that computes in it throughout.

    Its code may ask for another, as `x.float()` does: it does not get it.

    Args:
        module: the module.
        dtype: the dtype.

    Raises:
        GateError: the module cannot be copied.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        try:
            twin = copy.deepcopy(getattr(module, "_orig_mod", module)).to(dtype)
        except Exception as error:  # whatever a module's own copying raises
            raise GateError(
                f"{type(module).__name__} cannot be copied and cast to {dtype}, which tells how "
                f"far rounding goes: {type(error).__name__}: {error}; give rtol= or atol="
            ) from error
        self.twin: nn.Module = twin
        self._dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the copy, with inputs cast likewise."""
        args, kwargs = mapped(args, self._cast), mapped(kwargs, self._cast)
        with all_in(self._dtype), torch.no_grad():
            return self.twin(*args, **kwargs)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor
