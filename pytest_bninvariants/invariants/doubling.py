"""A copy of a module that computes in one dtype, whatever its code asks for."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.invariants.precision import all_in
from pytest_bninvariants.invariants.trees import mapped


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
