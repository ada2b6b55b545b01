"""Find out whether an average was updated with the model's values from before its step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_bninvariants.batchnorm.arithmetic import UNIT
from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor
from pytest_bninvariants.invariants.in_sync.decay_estimate import estimate_decay

_DEGENERATE = 1e-12
_NEARLY_WHOLE = 0.05
_MOST_UPDATES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyUpdate:
    """Updates of an average, at least one of which came before the model's step.

    Args:
        decay: the weight of the old value in each update.
        before: the number of updates before the step.
        after: the number of updates after it.
    """

    decay: float
    before: int
    after: int

    def explains(self, tensor: AverageTensor) -> bool:
        """Tell whether a tensor has the values that these updates give it."""
        old = self.decay ** (self.before + self.after)
        return tensor.is_mixture(old, self.decay**self.after - old, self.before + self.after)


def find_early_update(averages: Sequence[AverageTensor], decay: float) -> EarlyUpdate | None:
    """Return the updates that explain all averaged tensors that moved; None if none do.

    Args:
        averages: an average's tensors.
        decay: the weight of the old value that the user expects.
    """
    floats = [each for each in averages if each.dtype in UNIT and each.decay is not None]
    parameters = [each for each in floats if not each.is_buffer]
    moved = [each for each in parameters or floats if each.has_moved]
    if not any(each.model_moved for each in moved):
        return None
    candidates = (_one(decay), _by_decay(moved), _several(moved, decay))
    return next((c for c in candidates if c is not None and all(map(c.explains, moved))), None)


def _one(decay: float) -> EarlyUpdate:
    return EarlyUpdate(decay=decay, before=1, after=0)


def _by_decay(moved: Sequence[AverageTensor]) -> EarlyUpdate | None:
    """Return one update with the decay that fits, whatever the user expects."""
    used = estimate_decay(replace(each, model=each.before) for each in moved)
    return None if used is None or used == 1 else _one(used)


def _several(moved: Sequence[AverageTensor], decay: float) -> EarlyUpdate | None:
    """Return how many updates with this decay came before the step, and how many after it.

    Least squares give the weights of the three values that such updates mix: n before the step and
    p after it leave decay^(n + p) of the old value, and decay^p of that and the early one together.
    """
    if not 0 < decay < 1:
        return None
    weights = _weights(moved)
    if weights is None or not 0 < weights[0] < sum(weights) <= 1 + _DEGENERATE:
        return None
    every, after = (math.log(weight) / math.log(decay) for weight in (weights[0], sum(weights)))
    if (
        every > _MOST_UPDATES
        or max(abs(each - round(each)) for each in (every, after)) > _NEARLY_WHOLE
    ):
        return None
    before = round(every) - round(after)
    return EarlyUpdate(decay=decay, before=before, after=round(after)) if before > 0 else None


def _weights(moved: Sequence[AverageTensor]) -> tuple[float, float] | None:
    """Return the weights of the old and of the early values; None if they cannot be told apart."""
    old_old = old_early = early_early = old_now = early_now = 0.0
    for each in moved:
        old, early, now = (v - each.model for v in (each.was, each.before, each.now))
        old_old += float((old * old).sum())
        old_early += float((old * early).sum())
        early_early += float((early * early).sum())
        old_now += float((old * now).sum())
        early_now += float((early * now).sum())
    determinant = old_old * early_early - old_early**2
    if not determinant > _DEGENERATE * old_old * early_early:
        return None
    return (
        (old_now * early_early - early_now * old_early) / determinant,
        (early_now * old_old - old_now * old_early) / determinant,
    )
