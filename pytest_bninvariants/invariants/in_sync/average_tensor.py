"""A tensor of an average: its values, and the values that it must have."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import TINY, UNIT, gamma
from pytest_bninvariants.evaluation.rounding import distances
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.host_copies import widen
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AverageTensor:
    """A tensor of an average, and what it must be; values in float64, or complex128.

    Args:
        watched: the tensor.
        dtype: its dtype before the step.
        was: its values before the step.
        now: its values after the step.
        before: the model's values before the step.
        model: the model's values after the step.
        copied: the model's values, rounded to the tensor's dtype.
        decay: the weight of the old value; None if the tensor must be a copy.
        expected: the values that it must have after the step.
        bound: how far off they may be.
    """

    watched: WatchedTensor
    dtype: torch.dtype
    was: Tensor
    now: Tensor
    before: Tensor
    model: Tensor
    copied: Tensor
    decay: float | None
    expected: Tensor
    bound: Tensor

    @classmethod
    def after_step(
        cls,
        kept: KeptTensor,
        now: WatchedTensor,
        model_before: KeptTensor,
        model: WatchedTensor,
        decay: float | None,
    ) -> AverageTensor:
        """Return a tensor after a step, with what it must be.

        Args:
            kept: the tensor before the step.
            now: the tensor after the step.
            model_before: the model's tensor before the step.
            model: the model's tensor after the step.
            decay: the weight of the old value; None if the tensor must be a copy.
        """
        copied = widen(model.tensor.detach().to(kept.dtype))
        copy = cls(
            watched=now,
            dtype=kept.dtype,
            was=_kept_values(kept),
            now=widen(now.tensor),
            before=_kept_values(model_before),
            model=widen(model.tensor),
            copied=copied,
            decay=None,
            expected=copied,
            bound=torch.zeros_like(copied.abs()),
        )
        return copy if decay is None else copy.with_decay(decay)

    def with_decay(self, decay: float) -> AverageTensor:
        """Return the same tensor, with the values that it must have as an average with this decay.

        `decay * was + (1 - decay) * model` rounds decay, its complement, two products and the sum;
        `was + (1 - decay) * (model - was)` rounds their difference, too. Where decay itself is
        rounded to the tensor's dtype, that is off by u decay |model - was|. Integers are rounded or
        cut to the next one, or copied.
        """
        was, new, unit = self.was, self.model, UNIT.get(self.dtype)
        if unit is None:
            bound = torch.full_like(new.abs(), 1 - 2**-20)
        else:
            size = decay * was.abs() + (1 - decay) * new.abs() + (new - was).abs()
            bound = gamma(4, unit) * size + 2 * TINY[self.dtype]
        return replace(self, decay=decay, expected=decay * was + (1 - decay) * new, bound=bound)

    @property
    def is_buffer(self) -> bool:
        """Tell whether it is a buffer."""
        return self.watched.kind == "buffer"

    @property
    def may_be_copied(self) -> bool:
        """Tell whether a copy is right, too: integers cannot be averaged exactly."""
        return self.dtype not in UNIT

    @property
    def is_copy(self) -> bool:
        """Tell whether it equals the model's tensor."""
        return bool((distances(self.now, self.copied) == 0).all())

    @property
    def holds(self) -> bool:
        """Tell whether it is what it must be."""
        return not bool((self.excess(self.now) > 1).any())

    @property
    def is_to_move(self) -> bool:
        """Tell whether an update would move it towards the model's values."""
        is_averaged = self.decay is not None and self.decay < 1
        return is_averaged and bool((distances(self.was, self.model) > 0).any())

    @property
    def shows_update(self) -> bool:
        """Tell whether it would be wrong if it had not been updated."""
        return bool((self.excess(self.was) > 1).any())

    @property
    def is_left_behind(self) -> bool:
        """Tell whether it was not updated, and should have been."""
        return not self.holds and not self.has_moved

    @property
    def has_moved(self) -> bool:
        """Tell whether the step changed it."""
        return bool((distances(self.now, self.was) > 0).any())

    @property
    def model_moved(self) -> bool:
        """Tell whether the step changed the model's values."""
        return bool((distances(self.before, self.model) > 0).any())

    @property
    def was_copy(self) -> bool:
        """Tell whether it equalled the model's tensor before the step."""
        return bool((distances(self.was, self._rounded(self.before)) == 0).all())

    @property
    def is_early_copy(self) -> bool:
        """Tell whether it equals what the model's tensor was before the step, but is no more."""
        is_copy = bool((distances(self.now, self._rounded(self.before)) == 0).all())
        return is_copy and not self.is_copy

    def is_mixture(self, old: float, early: float, updates: int) -> bool:
        """Tell whether it is a mixture of its old values and the model's two, within rounding.

        Args:
            old: the weight of its old values.
            early: the weight of the model's values from before the step; the rest is the weight of
                those from after it.
            updates: the number of updates that made it, each of which rounds.
        """
        unit = UNIT.get(self.dtype)
        if unit is None:
            return False
        parts = old * self.was, early * self.before, (1 - old - early) * self.model
        moves = (self.before - self.was).abs() + (self.model - self.was).abs()
        size = sum((part.abs() for part in parts), moves)
        bound = gamma(4 * updates, unit) * size + 2 * updates * TINY[self.dtype]
        return bool((distances(self.now, sum(parts, torch.zeros_like(self.now))) <= bound).all())

    def _rounded(self, values: Tensor) -> Tensor:
        return widen(values.to(self.dtype))

    @property
    def is_swapped(self) -> bool:
        """Tell whether it is what it would be if decay were the weight of the new value."""
        swapped = self.was + self.model - self.expected
        return bool((distances(self.now, swapped) <= self.bound).all())

    def excess(self, values: Tensor) -> Tensor:
        """Return how far off values are, in bounds; above 1 is too far."""
        errors = distances(values, self.expected)
        if self.may_be_copied:
            errors = torch.where(values == self.copied, 0.0, errors)
        return torch.where(errors > 0, errors / self.bound, 0.0)


def _kept_values(kept: KeptTensor) -> Tensor:
    return widen(kept.values)
