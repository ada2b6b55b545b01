"""How far apart rounding may put two ways to compute the same values in float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pytest_bninvariants.batchnorm.arithmetic import UNIT

_FINER = UNIT[torch.float64] / UNIT[torch.float32]
_LUCK = 2.0**8
"""How much smaller than a typical rounding error the one in float32 may happen to be."""


def rounding_bounds(errors: Mapping[str, float], sizes: Mapping[str, float]) -> dict[str, float]:
    """Return how far apart two ways to compute a value in float64 may be, by name.

    To first order a rounding error is the unit roundoff times a number that depends on what is
    computed, and not on the precision (Higham, "Accuracy and Stability of Numerical Algorithms",
    chapter 1). A pass in float32 shows that number: by its error in this value or, relative to
    the size, in any value of which it has a digit right. A gradient that is 0, as that of a bias
    before a BN layer that uses batch statistics, is a sum of terms that cancel: the largest
    gradient stands in for its size.

    Args:
        errors: the errors of the values in float32.
        sizes: the sizes of the values.
    """
    has_a_digit = {name: size for name, size in sizes.items() if 10 * errors[name] < size}
    worst = max((errors[name] / size for name, size in has_a_digit.items()), default=0.0)
    least = UNIT[torch.float32] * max(sizes.values(), default=0.0)
    return {name: _LUCK * _FINER * max(errors[name], worst * sizes[name], least) for name in sizes}
