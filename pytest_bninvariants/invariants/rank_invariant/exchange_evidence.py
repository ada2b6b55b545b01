"""Tell how the ranks' gradients relate to each other, to those of one process, and to what is left.

The names say what holds within rounding, of all gradients together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, distributed

from pytest_bninvariants.invariants.rank_invariant.shard_pass import OneProcess, ShardedBatch

Gradients = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientRelations:
    """Which gradients agree on one rank.

    Args:
        left_is_mean: what the wrapper left is the mean of the ranks' own gradients.
        left_is_sum: it is their sum.
        left_is_own: it is what this rank computed alone, and others computed something else.
        whole_is_mean: one process's gradients are the mean of the ranks' own.
        whole_is_sum: they are their sum.
        whole_is_weighted: they are the mean that weights each rank by its number of samples.
    """

    left_is_mean: bool
    left_is_sum: bool
    left_is_own: bool
    whole_is_mean: bool
    whole_is_sum: bool
    whole_is_weighted: bool


def relate(
    one: OneProcess,
    left: Gradients,
    batch: ShardedBatch,
    group: distributed.ProcessGroup | None,
) -> GradientRelations:
    """Compare gradients; all ranks must call this, since they add up theirs.

    Args:
        one: what one process computes, and this rank alone.
        left: what the wrapper left on this rank.
        batch: the batch and its shards.
        group: the ranks; None: all.
    """
    ranks, own = len(batch.sizes), one.own.sums
    share = batch.sizes[batch.position] / sum(batch.sizes)
    total = {name: _added(gradient, group) for name, gradient in own.items()}
    weighted = {name: _added(gradient * share, group) for name, gradient in own.items()}
    mean = {name: gradient / ranks for name, gradient in total.items()}
    bounds = {name: ranks * bound for name, bound in one.gradient_bounds.items()}
    return GradientRelations(
        left_is_mean=_agree(left, mean, bounds),
        left_is_sum=_agree(left, total, bounds),
        left_is_own=_agree(left, own, bounds),
        whole_is_mean=_agree(one.whole.sums, mean, bounds),
        whole_is_sum=_agree(one.whole.sums, total, bounds),
        whole_is_weighted=_agree(one.whole.sums, weighted, bounds),
    )


def _added(gradient: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """Return the sum of a gradient over the ranks."""
    total = gradient.clone()
    distributed.all_reduce(total, group=group)
    return total


def _agree(one: Gradients, other: Gradients, bounds: Mapping[str, float]) -> bool:
    return all(float((one[n] - other[n]).abs().max()) <= bound for n, bound in bounds.items())
