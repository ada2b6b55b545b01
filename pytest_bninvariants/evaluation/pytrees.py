"""Nested inputs and outputs: dicts, lists, tuples, dataclasses and plain objects around tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

Children = list[tuple[str, Any]]


def leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield what a value consists of, by path: tensors, and whatever has no parts.

    Args:
        value: tensors, nested in any way.
        path: what the value itself is called.

    Yields:
        Paths such as `output['logits'][0]`; of something empty, its type.
    """
    yield from _leaves(value, path, ())


def _leaves(value: object, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, object]]:
    parts = _children(value)
    if parts is None or id(value) in above:
        yield path, value
    elif not parts:
        yield path, type(value)
    else:
        for suffix, part in parts:
            yield from _leaves(part, path + suffix, (*above, id(value)))


def _children(value: object) -> Children | None:
    """Return the parts of a value, and how one gets at each; None for a leaf."""
    if isinstance(value, Tensor | nn.Module | type) or callable(value):
        return None
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", getattr(value, name)) for name in value._fields]
    if isinstance(value, list | tuple):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if dataclasses.is_dataclass(value):
        return [(f".{field.name}", getattr(value, field.name)) for field in _fields(value)]
    if type(value).__eq__ is object.__eq__ and hasattr(value, "__dict__"):
        return [(f".{name}", part) for name, part in vars(value).items()]
    return None


def _fields(value: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(value)


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a value, with a function of each tensor in its place.

    Args:
        value: tensors, in dicts, lists, tuples and dataclasses; anything else stays as it is.
        function: takes a tensor and returns one.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, MutableMapping):
        other: Any = copy.copy(value)
        for key, part in value.items():
            other[key] = mapped(part, function)
        return other
    if isinstance(value, list | tuple):
        parts = [mapped(part, function) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields: Any = copy.copy(value)
        for field in _fields(value):
            object.__setattr__(fields, field.name, mapped(getattr(value, field.name), function))
        return fields
    return value
