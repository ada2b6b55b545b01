"""A batch of samples, and the batches that some of its samples make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_bninvariants.errors import Refusal, describe
from pytest_bninvariants.evaluation.call_arguments import CallArguments
from pytest_bninvariants.evaluation.pytrees import leaves

Order = tuple[int, ...]
"""The samples of a batch, by their places in the whole batch."""


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """The whole batch.

    Args:
        arguments: the arguments that a module is called with.
        size: the number of samples.
    """

    arguments: CallArguments
    size: int

    @classmethod
    def read(cls, inputs: Any) -> SampleBatch:
        """Return a user's inputs as a batch, copied.

        Args:
            inputs: a tensor (N, ...), a tuple of positional arguments, or a mapping of keyword
                arguments; every tensor in it has N samples.

        Raises:
            Refusal: if there are not two different samples.
        """
        args, kwargs = _arguments(inputs)
        tensors = {
            path: leaf
            for path, leaf in [*leaves(args, "inputs"), *leaves(dict(kwargs), "inputs")]
            if isinstance(leaf, Tensor)
        }
        if not tensors:
            raise Refusal(f"there is no tensor in the inputs: {describe(inputs)}")
        return cls(CallArguments.copy_of(args, kwargs), _size(tensors))

    def part(self, order: Order) -> CallArguments:
        """Return a module's arguments for a batch of these samples."""
        index = torch.tensor(order, device="cpu")
        return self.arguments.map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), {str(name): value for name, value in inputs.items()}
    return (tuple(inputs), {}) if isinstance(inputs, tuple) else ((inputs,), {})


def _size(tensors: dict[str, Tensor]) -> int:
    sizes = {len(tensor) if tensor.dim() else 0 for tensor in tensors.values()}
    if len(sizes) > 1 or 0 in sizes:
        shapes = ", ".join(f"{path} {tuple(tensor.shape)}" for path, tensor in tensors.items())
        raise Refusal(
            "the tensors of the inputs must have the same number of samples in dimension 0; "
            f"got {shapes}"
        )
    (size,) = sizes
    if size < 2:
        raise Refusal("one sample has no batch mates: give a batch of two or more")
    if not any(bool((tensor != tensor[:1]).any()) for tensor in tensors.values()):
        raise Refusal(f"all {size} samples are equal, so batch mates cannot matter")
    return size


def in_words(order: Order, size: int) -> str:
    """Return a batch of some samples in words, e.g. `sample 3 alone`."""
    if len(order) == 1:
        return f"sample {order[0]} alone"
    if order == tuple(range(size))[::-1]:
        return f"the batch of {size} in reverse"
    few = ", ".join(map(str, order[:4])) + (", ..." if len(order) > 4 else "")
    return f"a batch of {len(order)} (samples {few})"
