"""Run a module in float64, whatever dtypes its code asks for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.invariants.trees import mapped

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Cast(nn.Module):
    """A copy of a module in another dtype, that computes in it throughout.

    Its code may ask for a lower precision, as `x.float()` and autocast do: it does not get it.

    Args:
        module: the module.
        dtype: float64, or float32, for which code that asks for float16 keeps it.

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
        if self._dtype != torch.float64:
            return self.twin(*args, **kwargs)
        with _Widened(), _default_dtype(torch.float64):  # type: ignore[no-untyped-call]
            return self.twin(*args, **kwargs)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


class _Widened(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Give float64 to operators that are asked for less."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        wide = {name: _widest(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widest, args), **wide)


def _widest(value: Any) -> Any:
    narrow = isinstance(value, torch.dtype) and value in _NARROW
    return torch.float64 if narrow else value


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
