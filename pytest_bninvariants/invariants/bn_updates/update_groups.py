"""Count what a layer does in groups: by forward of the model, or by step of an optimizer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class UpdateGroups:
    """How many updates each group had; only the counts are kept, so that memory does not grow.

    Args:
        sizes: how many of the earlier groups had so many updates.
        group: what identifies the latest group.
        latest: how many updates the latest group has had.
    """

    sizes: Counter[int] = field(default_factory=Counter)
    group: object = None
    latest: int = 0

    def add(self, group: object) -> None:
        """Count an update in this group."""
        if self.latest and group != self.group:
            self.sizes[self.latest] += 1
            self.latest = 0
        self.group = group
        self.latest += 1

    def drop(self, group: object) -> None:
        """Forget this group, if it is the latest."""
        if group == self.group:
            self.latest = 0

    @property
    def counts(self) -> Counter[int]:
        """Return how many groups had so many updates."""
        return self.sizes + Counter([self.latest] if self.latest else [])

    @property
    def common_size(self) -> int | None:
        """Return how many updates each group had; None if they differ, or there are none."""
        counts = self.counts
        return next(iter(counts)) if len(counts) == 1 else None

    @property
    def largest(self) -> int:
        """Return the most updates that a group had."""
        return max(self.counts, default=0)

    @property
    def number(self) -> int:
        """Return how many groups there were."""
        return self.counts.total()
