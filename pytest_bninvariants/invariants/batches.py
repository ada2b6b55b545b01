"""Batches of samples: made of parts of one batch, and their outputs by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_bninvariants.errors import GateError, shown
from pytest_bninvariants.invariants.inference import Call
from pytest_bninvariants.invariants.trees import leaves

Order = tuple[int, ...]
"""The samples of a batch, by their place in the whole one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The whole batch.

    Args:
        call: what a module is called with.
        size: how many samples there are.
    """

    call: Call
    size: int

    @classmethod
    def of(cls, inputs: Any, guard: str) -> Batch:
        """Read a batch, and keep a copy.

        Args:
            inputs: a tensor (N, ...), a tuple of what is passed by position, or a mapping of what
                is passed by name; every tensor in it has N samples.
            guard: the guard, as its user wrote it.

        Raises:
            GateError: there are not two different samples.
        """
        args, kwargs = _arguments(inputs)
        tensors = {
            path: leaf
            for path, leaf in [*leaves(args, "inputs"), *leaves(dict(kwargs), "inputs")]
            if isinstance(leaf, Tensor)
        }
        if not tensors:
            raise GateError(f"{guard}: there is no tensor in the inputs: {shown(inputs)}")
        sizes = {path: len(leaf) if leaf.dim() else 0 for path, leaf in tensors.items()}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            told = ", ".join(f"{path} {tuple(leaf.shape)}" for path, leaf in tensors.items())
            raise GateError(
                f"{guard}: each tensor of the inputs has samples along its first axis, as many as "
                f"the others; got {told}"
            )
        size = next(iter(sizes.values()))
        if size < 2:
            raise GateError(f"{guard}: one sample has no batch mates: give a batch of two or more")
        if not any(bool((leaf != leaf[:1]).any()) for leaf in tensors.values()):
            raise GateError(f"{guard}: all {size} samples are equal, so mates cannot matter")
        return cls(Call.of(args, kwargs), size)

    def part(self, order: Order) -> Call:
        """Return a call with a batch of these samples."""
        index = torch.tensor(order)
        return self.call.map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), {str(name): value for name, value in inputs.items()}
    return (tuple(inputs), {}) if isinstance(inputs, tuple) else ((inputs,), {})


def tensors_of(output: object, name: str) -> dict[str, Tensor]:
    """Return copies of the tensors of an output by path."""
    return {
        path: leaf.detach().clone()
        for path, leaf in leaves(output, name)
        if isinstance(leaf, Tensor)
    }


def described(order: Order, size: int) -> str:
    """Return a batch in words, e.g. `sample 3 alone`."""
    if len(order) == 1:
        return f"sample {order[0]} alone"
    if order == tuple(range(size))[::-1]:
        return f"the batch of {size} in reverse"
    few = ", ".join(map(str, order[:4])) + (", ..." if len(order) > 4 else "")
    return f"a batch of {len(order)} (samples {few})"
