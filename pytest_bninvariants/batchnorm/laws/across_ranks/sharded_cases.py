"""Hypothesis strategies for cases of several ranks, each of which gets a shard of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from pytest_bninvariants.batchnorm.cases import Batch, Case
from pytest_bninvariants.batchnorm.strategies import bn_cases

Shards = tuple[Batch, ...]


def equal(shards: Shards) -> Shards:
    """Return shards of the first one's shape."""
    return tuple(replace(shard, shape=shards[0].shape) for shard in shards)


def alike(shards: Shards) -> Shards:
    """Return shards of the first one's shape, deviation and offset."""
    first = shards[0]
    return tuple(
        replace(shard, shape=first.shape, sigma=first.sigma, kappa=first.kappa) for shard in shards
    )


def unequal(shards: Shards) -> Shards:
    """Return shards with different numbers of values; the first one grows if they are the same."""
    first = shards[0]
    if len({_values(shard) for shard in shards}) > 1:
        return shards
    samples, *rest = first.shape
    return (replace(first, shape=(samples + 1, *rest)), *shards[1:])


def one_empty(shards: Shards) -> Shards:
    """Return shards of which one has no sample."""
    empty = shards[0].seed % len(shards)
    shape = (0, *shards[empty].shape[1:])
    nothing = replace(shards[empty], shape=shape, layout="contiguous")
    return (*shards[:empty], nothing, *shards[empty + 1 :])


def single(shards: Shards) -> Shards:
    """Return shards with one value for each channel."""
    return tuple(
        replace(shard, shape=(1, shard.shape[1], *(1 for _ in shard.shape[2:]))) for shard in shards
    )


def _values(shard: Batch) -> int:
    return shard.shape[0] * shard.positions


def sharded_cases(
    *,
    size: int,
    steps: int = 1,
    shaped: Callable[[Shards], Shards] = equal,
    most_kappa: float = 1.0,
    **drawn: Any,
) -> st.SearchStrategy[Case]:
    """Return a strategy for cases with a batch for each rank in each step.

    Args:
        size: how many ranks there are.
        steps: how many batches each gets.
        shaped: what makes a step's shards of those that are drawn, each of its own shape.
        most_kappa: the largest mean over the standard deviation.
        drawn: further arguments of `bn_cases`.
    """

    def share(case: Case) -> Case:
        batches: Sequence[Batch] = [
            replace(batch, kappa=min(batch.kappa, most_kappa)) for batch in case.batches
        ]
        starts = range(0, len(batches), size)
        shards = [shard for at in starts for shard in shaped((*batches[at : at + size],))]
        return replace(case, batches=(*shards,), modes=(True,))

    return bn_cases(modes=(True,) * (steps * size), **{"max_values": 256, **drawn}).map(share)
