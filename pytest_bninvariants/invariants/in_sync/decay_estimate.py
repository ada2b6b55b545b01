"""Estimate the decay with which an average was updated."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pytest_bninvariants.batchnorm.arithmetic import UNIT
from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor

_DIGITS = range(1, 13)


def estimate_decay(averages: Iterable[AverageTensor]) -> float | None:
    """Return the decay that fits all tensors that moved, in as few digits as possible.

    It is the least-squares solution of `now - model = decay * (was - model)`; None if none fits.
    """
    floats = [each for each in averages if each.dtype in UNIT and each.decay is not None]
    parameters = [each for each in floats if each.watched.kind == "parameter"]
    moved = [each for each in parameters or floats if not each.is_left_behind]
    size = sum(float((each.was - each.model).square().sum()) for each in moved)
    if not 0 < size < math.inf:
        return None
    kept = sum(float(((a.now - a.model) * (a.was - a.model)).sum()) for a in moved)
    rounded = (abs(round(kept / size, digits)) for digits in _DIGITS)
    fit = (each for each in rounded if each <= 1 and all(a.with_decay(each).holds for a in moved))
    return next(fit, None)
