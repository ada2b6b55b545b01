"""Let hypothesis look for the smallest batch in which a sample's output differs."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from pytest_bninvariants.invariants.batch_invariant.sample_batch import Order
from pytest_bninvariants.verdict import Change


class _OutputDiffers(Exception):
    """Carry a batch and its changes out of hypothesis."""

    def __init__(self, order: Order, changes: list[Change]) -> None:
        super().__init__(order)
        self.order, self.changes = order, changes


def smallest_differing_batch(
    compare: Callable[[Order], list[Change]], size: int, examples: int
) -> tuple[Order, list[Change]] | None:
    """Return the smallest batch found whose outputs differ, and its changes.

    Args:
        compare: returns the changes in the outputs for a batch of these samples.
        size: the number of samples in the whole batch.
        examples: the number of batches that hypothesis draws.
    """

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.sampled_from(range(size)), min_size=1, max_size=size, unique=True))
    def hold(samples: list[int]) -> None:
        changes = compare(tuple(samples))
        if changes:
            raise _OutputDiffers(tuple(samples), changes)

    try:
        hold()
    except _OutputDiffers as smallest:
        return smallest.order, smallest.changes
    return None
