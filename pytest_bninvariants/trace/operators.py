"""Which of its arguments an operator may write to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from torch import Tensor

from pytest_bninvariants.torch_internals import private_api

_TRUSTED_NAMESPACES = ("aten", "prim", "prims", "profiler")
# Arguments that normalising operators write to, though their schemas do not say so:
# https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/native_functions.yaml
_WRITTEN_UNDECLARED = ("running_mean", "running_var")
# An operator without a schema, such as a higher-order operator, may write to its first arguments.
_CHECKED_WITHOUT_SCHEMA = 8


def written_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return those arguments of a call that the operator may write to."""
    return [args[at] if at < len(args) else kwargs.get(name) for at, name in _written(func)]


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Return position and name of the arguments that an operator may write to.

    Operators of other libraries are not trusted to declare them all.
    """
    arguments = private_api.declared_arguments(func)
    if arguments is None:
        return tuple((at, "") for at in range(_CHECKED_WITHOUT_SCHEMA))
    trusted = func.namespace in _TRUSTED_NAMESPACES
    return tuple(
        (at, argument.name)
        for at, argument in enumerate(arguments)
        if not trusted
        or argument.name in _WRITTEN_UNDECLARED
        or (argument.alias_info is not None and argument.alias_info.is_write)
    )


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values, also those in lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
