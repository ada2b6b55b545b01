"""Run a model in one process on a whole batch, and on all ranks on shards of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.evaluation.batches import samples_in, split_batch
from pytest_bninvariants.evaluation.gradient_pass import (
    BatchPart,
    GradientPass,
    LossFunction,
    PassGradients,
    Wrapper,
    random_draw_text,
)
from pytest_bninvariants.evaluation.one_process import copy_for_one_process
from pytest_bninvariants.evaluation.pytrees import leaves, parts_of_collection
from pytest_bninvariants.evaluation.rng_state import preserved_rng
from pytest_bninvariants.evaluation.rounding_bounds import rounding_bounds
from pytest_bninvariants.selection.walk import all_tensors, named_modules
from pytest_bninvariants.snapshot.tensor_bytes import digest_of
from pytest_bninvariants.torch_internals.isolation import undisturbed

CALLER = "rank_invariant"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedBatch:
    """A batch, and the shard of it that this rank takes.

    Args:
        whole: the batch.
        sizes: the number of samples of each rank's shard.
        position: the position of this rank among them.
    """

    whole: Any
    sizes: tuple[int, ...]
    position: int

    @classmethod
    def split(cls, batch: Any, ranks: int, position: int) -> ShardedBatch:
        """Cut a batch into as many shards as there are ranks, of sizes as equal as possible."""
        sizes = tuple(samples_in(part) for part in split_batch(batch, ranks))
        return cls(whole=batch, sizes=sizes, position=position)

    @property
    def shard(self) -> Any:
        """Return this rank's shard."""
        return split_batch(self.whole, len(self.sizes))[self.position]

    @property
    def rows(self) -> slice:
        """Return which samples of the batch are in the shard."""
        start = sum(self.sizes[: self.position])
        return slice(start, start + self.sizes[self.position])

    @property
    def part(self) -> BatchPart:
        """Return the shard for a gradient pass."""
        return BatchPart(self.shard, name=f"shard {self.position + 1} of {len(self.sizes)}")

    @property
    def tensors(self) -> list[Tensor]:
        """Return the tensors of the batch."""
        found = leaves(self.whole, "batch", parts_of_collection)
        return [leaf for _, leaf in found if isinstance(leaf, Tensor)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneProcess:
    """What one process computes, and what it takes for this rank's shard alone.

    Args:
        whole: the pass over the whole batch.
        own: the pass over this rank's shard, without an exchange.
        gradient_bounds: how far apart rounding may put gradients, by the parameter's name.
        buffer_bounds: how far apart rounding may put buffers, by name.
    """

    whole: PassGradients
    own: PassGradients
    gradient_bounds: dict[str, float]
    buffer_bounds: dict[str, float]


def run_in_one_process(model: nn.Module, batch: ShardedBatch, loss: LossFunction) -> OneProcess:
    """Run copies of a model without an exchange between ranks.

    Raises:
        GateError: if a pass does not run, draws random numbers, or is not repeatable.
    """
    single = copy_for_one_process(CALLER, model)
    gradient_pass = GradientPass(caller=CALLER, model=single, loss=loss)
    everything = [BatchPart(batch.whole)]
    with preserved_rng(model) as generators:
        whole = gradient_pass.run(everything, torch.float64)
        if generators.moved():
            raise GateError(random_draw_text(CALLER, model, "rank"))
        rough = gradient_pass.run(everything, torch.float32)
        own = gradient_pass.run([batch.part], torch.float64)
        again = gradient_pass.run(everything, torch.float64)
    bounds = rounding_bounds(
        {name: whole.distance(rough, name) for name in whole.sums}, whole.sizes
    )
    if any(whole.distance(again, name) > bound for name, bound in bounds.items()):
        raise GateError(f"{CALLER}: two passes over the same batch have different gradients")
    return OneProcess(
        whole=whole, own=own, gradient_bounds=bounds, buffer_bounds=_buffer_bounds(whole, rough)
    )


def run_on_ranks(
    model: nn.Module, batch: ShardedBatch, loss: LossFunction, wrap: Wrapper
) -> PassGradients:
    """Run a copy of a model, wrapped, on this rank's shard; all ranks must call this."""
    with preserved_rng(model):
        gradient_pass = GradientPass(caller=CALLER, model=model, loss=loss, wrap=wrap)
        return gradient_pass.run([batch.part], torch.float64)


def _buffer_bounds(whole: PassGradients, rough: PassGradients) -> dict[str, float]:
    errors = {name: buffer_distance(whole, rough, name) for name in whole.buffers}
    sizes = {name: largest(buffer) for name, buffer in whole.buffers.items()}
    return rounding_bounds(errors, sizes)


def buffer_distance(one: PassGradients, other: PassGradients, name: str) -> float:
    """Return the largest difference between a buffer after two passes."""
    return largest(_wide(one.buffers[name]) - _wide(other.buffers[name]))


def largest(tensor: Tensor) -> float:
    """Return the largest magnitude in a tensor; 0 if it has no values."""
    return float(_wide(tensor).abs().max()) if tensor.numel() else 0.0


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def start_digests(model: nn.Module, batch: ShardedBatch) -> tuple[str, str, str]:
    """Return digests of the batch, of the model's tensors and of its modes, to compare ranks."""
    with undisturbed():
        modes = [(name, module.training) for name, module in named_modules(model)]
        return digest_of(batch.tensors), digest_of(all_tensors(model)), repr(modes)
