"""Batches of samples: made of parts of one batch, and their outputs by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pytest_bninvariants.errors import GateError, Refusal, shown
from pytest_bninvariants.evaluation.eval_mode import Call
from pytest_bninvariants.evaluation.pytrees import leaves

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
    def of(cls, inputs: Any) -> Batch:
        """Read a batch, and keep a copy.

        Args:
            inputs: a tensor (N, ...), a tuple of what is passed by position, or a mapping of what
                is passed by name; every tensor in it has N samples.

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
            raise Refusal(f"there is no tensor in the inputs: {shown(inputs)}")
        sizes = {path: len(leaf) if leaf.dim() else 0 for path, leaf in tensors.items()}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            told = ", ".join(f"{path} {tuple(leaf.shape)}" for path, leaf in tensors.items())
            raise Refusal(
                "each tensor of the inputs has samples along its first axis, as many as "
                f"the others; got {told}"
            )
        size = next(iter(sizes.values()))
        if size < 2:
            raise Refusal("one sample has no batch mates: give a batch of two or more")
        if not any(bool((leaf != leaf[:1]).any()) for leaf in tensors.values()):
            raise Refusal(f"all {size} samples are equal, so mates cannot matter")
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
