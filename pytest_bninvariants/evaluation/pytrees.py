"""Nested inputs and outputs: dicts, lists, tuples, dataclasses and plain objects around tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from pytest_bninvariants.attributes import attributes_of, has_attributes

Parts = list[tuple[str, Any]]
"""The parts of a value, each with the end of its path, such as `[0]` or `.logits`."""


def parts_of_collection(value: object) -> Parts | None:
    """Return the parts of a mapping, list or tuple; None for anything else."""
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", getattr(value, name)) for name in value._fields]
    if isinstance(value, list | tuple):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    return None


def parts_of_any(value: object) -> Parts | None:
    """Return the parts of a collection, a dataclass or a plain object; None for a leaf."""
    if isinstance(value, Tensor | nn.Module | type) or callable(value):
        return None
    parts = parts_of_collection(value)
    if parts is not None:
        return parts
    if dataclasses.is_dataclass(value):
        return [(f".{field.name}", getattr(value, field.name)) for field in _fields(value)]
    if type(value).__eq__ is object.__eq__ and has_attributes(value):
        return [(f".{name}", part) for name, part in attributes_of(value).items()]
    return None


class PartOfItself(NamedTuple):
    """A leaf in the place of a value that is one of its own parts.

    Args:
        path: the path of the value.
    """

    path: str


def leaves(
    value: object, path: str, parts_of: Callable[[object], Parts | None] = parts_of_any
) -> Iterator[tuple[str, object]]:
    """Yield the leaves of a value by path: tensors, and everything else without parts.

    Args:
        value: tensors, nested in any way.
        path: the name of the value itself.
        parts_of: returns the parts of a value, or None for a leaf.

    Yields:
        Paths such as `output['logits'][0]` and leaves; for an empty collection, its type.
    """
    yield from _leaves(value, path, parts_of, {})


def _leaves(
    value: object,
    path: str,
    parts_of: Callable[[object], Parts | None],
    parents: dict[int, str],
) -> Iterator[tuple[str, object]]:
    if id(value) in parents:
        yield path, PartOfItself(parents[id(value)])
        return
    parts = parts_of(value)
    if parts is None:
        yield path, value
    elif not parts:
        yield path, type(value)
    else:
        for suffix, part in parts:
            yield from _leaves(part, path + suffix, parts_of, {**parents, id(value): path})


def _fields(value: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(value)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a value, with the function's result in place of each tensor.

    Args:
        value: tensors, in mappings, lists, tuples and dataclasses; anything else stays as it is.
        function: takes a tensor and returns one.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return _like_mapping(value, {k: map_tensors(part, function) for k, part in value.items()})
    if isinstance(value, list | tuple):
        parts = [map_tensors(part, function) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        copied: Any = copy.copy(value)
        for field in _fields(value):
            part = map_tensors(getattr(value, field.name), function)
            object.__setattr__(copied, field.name, part)  # a frozen dataclass refuses setattr
        return copied
    return value


def _like_mapping(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return a mapping of the same type, with the same attributes if it can be copied."""
    try:
        copied: Any = copy.copy(mapping)
        for key, part in items.items():
            copied[key] = part
    except Exception:  # it is immutable, or refuses other shapes, as a TensorDict does
        return type(mapping)(items)  # type: ignore[call-arg]
    return copied
