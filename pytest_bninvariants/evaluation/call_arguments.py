"""The arguments of a module's call, so that it can be called with them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from pytest_bninvariants.evaluation.eval_mode import in_eval
from pytest_bninvariants.evaluation.pytrees import map_tensors

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CallArguments:
    """Arguments for a module.

    Args:
        args: the positional arguments.
        kwargs: the keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def copy_of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CallArguments:
        """Return copies of arguments."""
        return cls(args, kwargs).map(_copy)

    def map(self, function: Callable[[Tensor], Tensor]) -> CallArguments:
        """Return these arguments with the function's result in place of each tensor."""
        return CallArguments(
            map_tensors(self.args, function), map_tensors(dict(self.kwargs), function)
        )

    def pass_to(self, module: nn.Module) -> Any:
        """Call a module with copies, which it may write to."""
        copied = self.map(_copy)
        return module(*copied.args, **copied.kwargs)

    def run_twice(self, module: nn.Module, read: Callable[[Any], _T]) -> tuple[_T, _T]:
        """Call a module in eval two times in a row.

        Args:
            module: the module.
            read: called on each output before the module's state is put back; its results are
                returned.
        """
        with in_eval(module):
            return read(self.pass_to(module)), read(self.pass_to(module))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
