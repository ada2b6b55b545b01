"""Cut a user's batch, of whatever nesting, into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pytest_bninvariants.errors import GateError, shown

_WHOLE = (str, int, float, type(None))


def samples_in(batch: object) -> int:
    """Return the number of samples in a batch: the size of its tensors in dimension 0.

    Raises:
        GateError: there is no such tensor, they disagree, or the nesting is unknown.
    """
    sizes = {name: tensor.shape[0] for name, tensor in _tensors(batch) if tensor.dim()}
    if not sizes:
        raise GateError(f"a batch holds tensors with samples in dimension 0; got {shown(batch)}")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise GateError(f"the tensors of a batch have as many samples each: {listed}")
    return next(iter(sizes.values()))


def cut(batch: Any, k: int) -> list[Any]:
    """Return a batch as k micro-batches of the same nesting, their sizes as equal as can be."""
    samples = samples_in(batch)
    edges = [samples * number // k for number in range(k + 1)]
    return [_part(batch, start, end) for start, end in pairwise(edges)]


def _part(batch: Any, start: int, end: int) -> Any:
    return mapped(batch, lambda tensor: tensor[start:end] if tensor.dim() else tensor)


def converted(batch: Any, dtype: torch.dtype) -> Any:
    """Return a copy of a batch, with its floating-point tensors in another dtype."""

    def convert(tensor: Tensor) -> Tensor:
        to = dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(to, copy=True).requires_grad_(tensor.requires_grad)

    return mapped(batch, convert)


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest of the same kind, with a function applied to each tensor.

    Raises:
        GateError: the nesting is unknown.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: mapped(part, function) for key, part in value.items()}
        return items if type(value) is dict else type(value)(items)  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, function) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(part, function) for part in value)
    if isinstance(value, _WHOLE):
        return value
    raise GateError(
        f"a batch is made of tensors, tuples, lists and mappings; it holds {shown(value)}"
    )


def _tensors(value: object, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from _tensors(part, f"{name}[{number}]")
    elif not isinstance(value, _WHOLE):
        mapped(value, lambda tensor: tensor)
