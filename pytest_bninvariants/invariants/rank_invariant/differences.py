"""How far what ranks are left with is from what one process computes."""

from __future__ import annotations

from typing import NamedTuple

from pytest_bninvariants.evaluation.gradient_pass import PassGradients
from pytest_bninvariants.invariants.rank_invariant.shard_pass import (
    OneProcess,
    buffer_distance,
    largest,
)
from pytest_bninvariants.verdict import Change, ChangeKind


class ProcessDifference(NamedTuple):
    """How far a gradient or buffer is from that of one process, on one rank.

    Args:
        name: the name of the parameter or buffer.
        kind: `gradient`, or `values` for a buffer.
        distance: the largest difference of its values.
        size: the largest value in one process.
        bound: how far apart rounding may put them.
    """

    name: str
    kind: ChangeKind
    distance: float
    size: float
    bound: float

    @property
    def excess(self) -> float:
        """Return the distance in bounds; above 1 is too far."""
        if self.bound:
            return self.distance / self.bound
        return float("inf") if self.distance else 0.0

    def as_change(self, rank: int) -> Change:
        """Return the change that a verdict shows, of the rank on which it was found."""
        of_size = f"{self.distance / self.size:.2g} of its largest value" if self.size else "from 0"
        name = f"gradient of {self.name}" if self.kind == "gradient" else self.name
        text = f"max |d| {self.distance:.1e}, {of_size}, on rank {rank}"
        return Change(name=name, layer=name, kind=self.kind, text=text)


def differences_from(one: OneProcess, left: PassGradients) -> list[ProcessDifference]:
    """Compare what a rank was left with with one process, gradients first."""
    whole = one.whole
    gradients = [
        ProcessDifference(
            name, "gradient", whole.distance(left, name), largest(whole.sums[name]), bound
        )
        for name, bound in one.gradient_bounds.items()
    ]
    buffers = [
        ProcessDifference(
            name,
            "values",
            buffer_distance(whole, left, name),
            largest(whole.buffers[name]),
            bound,
        )
        for name, bound in one.buffer_bounds.items()
        if name in left.buffers
    ]
    return gradients + buffers


def worst_of_ranks(
    ranks: list[int], told: list[list[ProcessDifference]]
) -> list[tuple[int, ProcessDifference]]:
    """Return, of each gradient and buffer, the largest difference, and the rank that has it."""
    found: dict[tuple[str, str], tuple[int, ProcessDifference]] = {}
    for rank, differences in zip(ranks, told, strict=True):
        for each in differences:
            key = each.kind, each.name
            if key not in found or found[key][1].excess < each.excess:
                found[key] = rank, each
    return list(found.values())
