"""Tell whether frozen parameters are an average of another model, as an EMA is."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pytest_bninvariants.instrumentation.observer_api import AfterCall
from pytest_bninvariants.selection.walk import all_parameters
from pytest_bninvariants.snapshot.addresses import address
from pytest_bninvariants.snapshot.tensor_bytes import (
    content_of,
    is_uninitialised,
    same_content,
    version,
)
from pytest_bninvariants.torch_internals.isolation import undisturbed

_CHECKED = 2  # an average writes all parameters, so checking a few small ones is enough


class _WriteMark(NamedTuple):
    """What most writes to a tensor change: in-place ones its version, `.data =` its address."""

    version: int | None
    address: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> _WriteMark:
        """Read the mark of a tensor."""
        return cls(version(tensor), address(tensor), tensor.dtype, tensor.device)

    def shows_write(self, now: _WriteMark) -> bool:
        """Tell whether the tensor was written; a cast or a move to another device is no write."""
        return self != now and self[2:] == now[2:]


class FrozenParameters:
    """The parameters of a frozen layer since the audit first saw them.

    They count as averaged if all of them were written, even with the same values, or if one has
    other values. A load, or a step of an optimizer without gradients, only counts if values differ;
    a step with gradients does not count.

    Args:
        module: the module that holds them.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = (each for each in all_parameters(module) if not is_uninitialised(each))
        self._checked = sorted(parameters, key=Tensor.numel)[:_CHECKED]
        self._averaged = False
        self._marks = self._marks_now()
        self._keep()

    @property
    def averaged(self) -> bool:
        """Tell whether the parameters were averaged."""
        if self._written():
            return True
        with undisturbed():
            return any(
                tensor.dtype == mark.dtype and not same_content(content, tensor)
                for tensor, mark, content in zip(
                    self._checked, self._marks, self._contents, strict=True
                )
            )

    def exclude_operation(self, *, values: bool) -> AfterCall:
        """Exclude the writes of an operation from averaging; return a function to call after it.

        Args:
            values: whether writes of other values are excluded, too, and not only those that leave
                the values as they are.
        """
        self._averaged = self.averaged if values else self._written()

        def finish() -> None:
            if not self._averaged:
                self._marks = self._marks_now()
                if values:
                    self._keep()

        return finish

    def are_of(self, module: nn.Module) -> bool:
        """Tell whether a module still holds the checked parameters; sharding replaces them."""
        now = set(map(id, all_parameters(module)))
        return all(id(each) in now for each in self._checked)

    def lie_in(self, memory: Collection[int]) -> bool:
        """Tell whether a checked parameter begins at one of these addresses."""
        return any(address(each) in memory for each in self._checked)

    def are_in(self, held: set[int]) -> bool:
        """Tell whether a checked parameter is among those with these ids."""
        return any(id(each) in held for each in self._checked)

    def have_gradients_in(self, held: set[int]) -> bool:
        """Tell whether a checked parameter among those with these ids has a gradient."""
        return any(id(each) in held and each.grad is not None for each in self._checked)

    def _written(self) -> bool:
        now = self._marks_now()
        written = [old.shows_write(new) for old, new in zip(self._marks, now, strict=True)]
        return self._averaged or (bool(written) and all(written))

    def _marks_now(self) -> list[_WriteMark]:
        with undisturbed():
            return list(map(_WriteMark.from_tensor, self._checked))

    def _keep(self) -> None:
        with undisturbed():
            self._contents = list(map(content_of, self._checked))
