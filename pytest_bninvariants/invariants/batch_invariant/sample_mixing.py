"""Find the first part of a module in which the samples of a batch depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pytest_bninvariants.evaluation.pytrees import leaves
from pytest_bninvariants.evaluation.rounding import distances
from pytest_bninvariants.invariants.batch_invariant.sample_batch import Order
from pytest_bninvariants.selection.walk import named_modules

Recording = dict[tuple[str, int], Tensor]
"""The first tensor in each output of a module's parts, by name and number of the call."""


@contextmanager
def recorded_outputs(module: nn.Module) -> Iterator[Recording]:
    """Record what the parts of a module return."""
    recording: Recording = {}
    handles = [
        part.register_forward_hook(_recorder(name, recording))
        for name, part in named_modules(module)
    ]
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def _recorder(name: str, recording: Recording) -> Callable[..., None]:
    def record(module: nn.Module, args: Any, output: Any) -> None:
        tensors = (leaf for _, leaf in leaves(output, name) if isinstance(leaf, Tensor))
        first = next(tensors, None)
        if first is not None:
            number = sum(1 for key in recording if key[0] == name)
            recording[name, number] = first.detach().clone()

    return record


def first_mixing_part(
    whole: Recording, part: Recording, order: Order, rounding: float
) -> str | None:
    """Return the name of the first part of a module whose outputs for some samples differ.

    Args:
        whole: the recording for the whole batch.
        part: the recording for a batch of some of its samples.
        order: these samples.
        rounding: how far outputs may be apart, relative to the largest.
    """
    for (name, number), output in whole.items():
        other = part.get((name, number))
        if other is None or not output.dim() or not other.dim() or len(other) != len(order):
            continue
        if len(output) <= max(order) or output[list(order)].shape != other.shape:
            continue
        errors = distances(output[list(order)], other)
        if errors.numel() and float(errors.max()) > rounding * float(output.abs().max()):
            return name
    return None
