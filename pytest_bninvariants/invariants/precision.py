"""Run a user's code in one floating-point dtype throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

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
