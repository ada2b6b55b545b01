"""Shapes that are worth drawing, and the limits on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

MOST_SAMPLES = 1025
# around powers of two, where vectors, warps and blocks end
_BOUNDARIES = (63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 4097)
_CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 65)
_POSITIONS = {
    2: ((),),
    3: ((1,), (2,), (3,), (5,), (8,), (17,), (33,)),
    4: ((1, 1), (1, 2), (2, 2), (3, 2), (1, 7), (4, 4), (5, 7)),
    5: ((1, 1, 1), (1, 1, 2), (2, 2, 2), (3, 1, 2), (3, 4, 5)),
}


@lru_cache(maxsize=1024)
def sizes_between(least: int, most: int) -> tuple[int, ...]:
    """Return each small size within a range, and the sizes around powers of two."""
    small = range(least, min(most, max(66, least)) + 1)  # to two past the second vector of 32
    large = (size for size in _BOUNDARIES if size not in small and least <= size <= most)
    return (*small, *large)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How small and how large a batch may be.

    Args:
        min_values: fewest values per channel.
        max_values: most values in all.
        min_samples: fewest samples.
    """

    min_values: int
    max_values: int
    min_samples: int = 0

    def channels(self) -> tuple[int, ...]:
        """Return the numbers of channels that some batch within the limits has."""
        least = max(self.min_values, self.min_samples)
        return tuple(c for c in _CHANNELS if c * least <= self.max_values)

    def positions(self, dims: int, channels: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a sample's positions that some batch within the limits has."""
        every = _POSITIONS[dims]
        return tuple(each for each in every if self.samples(channels, math.prod(each)))

    def samples(self, channels: int, positions: int) -> tuple[int, ...]:
        """Return the batch sizes within the limits; empty if there is none."""
        least = max(-(-self.min_values // positions), self.min_samples)
        most = self.max_values // (positions * channels)
        return sizes_between(least, max(least, min(MOST_SAMPLES, most))) if least <= most else ()
