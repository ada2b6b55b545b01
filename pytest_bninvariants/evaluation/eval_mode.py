"""Run a module in eval, and leave it and everything else as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.evaluation.pytrees import mapped
from pytest_bninvariants.evaluation.rng_state import kept
from pytest_bninvariants.instrumentation import installation
from pytest_bninvariants.instrumentation.observer_api import Observer
from pytest_bninvariants.selection.model_names import all_tensors
from pytest_bninvariants.snapshot.restore import ModelState
from pytest_bninvariants.snapshot.tensor_bytes import is_uninitialised
from pytest_bninvariants.torch_internals.private_api import disable_current_modes

_T = TypeVar("_T")


@contextmanager
def in_eval(module: nn.Module, *heard_by: Observer) -> Iterator[None]:
    """Have a module in eval for a while, unseen by guards; then put back all that its runs change.

    These are modes, parameters, buffers and the random generators; gradients are off.

    Args:
        module: the module.
        heard_by: who may hear of what happens.

    Raises:
        GateError: it has parameters that a first forward would make.
    """
    if any(map(is_uninitialised, all_tensors(module))):
        raise GateError(
            f"{type(module).__name__} has lazy parameters without values: run a forward first"
        )
    state = ModelState(module)
    with (
        installation.heard_only_by(*heard_by),
        disable_current_modes(),
        kept(module),
        torch.no_grad(),
    ):
        try:
            module.eval()
            yield
        finally:
            state.restore()


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments for a module, kept as they were.

    Args:
        args: positional ones.
        kwargs: keywords.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Keep copies of arguments."""
        return cls(mapped(args, _copied), mapped(dict(kwargs), _copied))

    def map(self, function: Callable[[Tensor], Tensor]) -> Call:
        """Return a call with a function of each tensor in its place."""
        return Call(mapped(self.args, function), mapped(dict(self.kwargs), function))

    def twice(self, module: nn.Module, read: Callable[[Any], _T]) -> tuple[_T, _T]:
        """Call a module in eval two times in a row, with copies that it may write to.

        Args:
            module: the module.
            read: makes of its output what is returned, before the module's state is put back.
        """
        with in_eval(module):
            first, second = self.map(_copied), self.map(_copied)
            return (
                read(module(*first.args, **first.kwargs)),
                read(module(*second.args, **second.kwargs)),
            )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
