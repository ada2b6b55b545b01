"""Count, split and cast batches for a training loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.evaluation.pytrees import leaves, map_tensors, parts_of_collection

_WHOLE = (str, int, float, type(None), type)
"""Values that each micro-batch gets whole; for an empty collection `leaves` gives its type."""


def samples_in(batch: object) -> int:
    """Return the number of samples in a batch: the size of its tensors in dimension 0.

    Raises:
        GateError: if there is no such tensor, if sizes differ, or if the nesting is unknown.
    """
    sizes = {name: tensor.shape[0] for name, tensor in _tensors(batch) if tensor.dim()}
    if not sizes:
        raise GateError(f"a batch holds tensors with samples in dimension 0; got {describe(batch)}")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise GateError(f"the tensors of a batch must have the same number of samples: {listed}")
    return next(iter(sizes.values()))


def _tensors(batch: object) -> Iterator[tuple[str, Tensor]]:
    for path, leaf in leaves(batch, "batch", parts_of_collection):
        if isinstance(leaf, Tensor):
            yield path, leaf
        elif not isinstance(leaf, _WHOLE):
            raise GateError(
                f"a batch is made of tensors, tuples, lists and mappings; it holds {describe(leaf)}"
            )


def split_batch(batch: Any, k: int) -> list[Any]:
    """Return a batch as k micro-batches of the same nesting, with sizes as equal as possible."""
    samples = samples_in(batch)
    edges = [samples * number // k for number in range(k + 1)]
    return [_part(batch, start, end) for start, end in pairwise(edges)]


def _part(batch: Any, start: int, end: int) -> Any:
    return map_tensors(batch, lambda tensor: tensor[start:end] if tensor.dim() else tensor)


def cast_batch(batch: Any, dtype: torch.dtype) -> Any:
    """Return a copy of a batch, with its floating-point tensors in another dtype."""

    def convert(tensor: Tensor) -> Tensor:
        to = dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(to, copy=True).requires_grad_(tensor.requires_grad)

    return map_tensors(batch, convert)
