"""A tensor of an average: what it is, and what it must be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import TINY, UNIT, gamma
from pytest_bninvariants.evaluation.rounding import distances
from pytest_bninvariants.selection.model_names import WatchedTensor
from pytest_bninvariants.snapshot.tensors import KeptTensor
from pytest_bninvariants.snapshot.value_difference import arrow
from pytest_bninvariants.verdict import Change


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Average:
    """A tensor of an average, and what it must be; values in float64, or complex128.

    Args:
        watched: the tensor.
        dtype: its dtype before the step.
        was: its values before the step.
        now: its values after it.
        model: the model's, after the step.
        copied: what a copy of them is in its dtype.
        decay: the weight of the old value; None for a copy.
        expected: what it must be.
        bound: how far it may be off.
    """

    watched: WatchedTensor
    dtype: torch.dtype
    was: Tensor
    now: Tensor
    model: Tensor
    copied: Tensor
    decay: float | None
    expected: Tensor
    bound: Tensor

    @classmethod
    def of(
        cls, kept: KeptTensor, now: WatchedTensor, model: WatchedTensor, decay: float | None
    ) -> Average:
        """Say what a tensor must be.

        Args:
            kept: the tensor before the step.
            now: the tensor after it.
            model: the model's.
            decay: the weight of the old value; None for a copy.
        """
        copied = _wide(model.tensor.detach().to(kept.dtype))
        made = cls(
            watched=now,
            dtype=kept.dtype,
            was=_wide(kept.content[0].view(kept.dtype).view(kept.shape or ())),
            now=_wide(now.tensor),
            model=_wide(model.tensor),
            copied=copied,
            decay=None,
            expected=copied,
            bound=torch.zeros_like(copied.abs()),
        )
        return made if decay is None else made.under(decay)

    def under(self, decay: float) -> Average:
        """Say what it must be as an average with this decay.

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
    def copy_is_fine(self) -> bool:
        """Tell whether it may be the model's as well."""
        return self.dtype not in UNIT

    @property
    def is_copy(self) -> bool:
        """Tell whether it is the model's."""
        return bool((distances(self.now, self.copied) == 0).all())

    @property
    def holds(self) -> bool:
        """Tell whether it is what it must be."""
        return not bool((self._excess(self.now) > 1).any())

    @property
    def is_to_move(self) -> bool:
        """Tell whether the model's values draw it anywhere."""
        drawn = self.decay is not None and self.decay < 1
        return drawn and bool((distances(self.was, self.model) > 0).any())

    @property
    def tells(self) -> bool:
        """Tell whether it would not hold if it had not been updated."""
        return bool((self._excess(self.was) > 1).any())

    @property
    def is_left_behind(self) -> bool:
        """Tell whether it was not updated, and should have been."""
        return not self.holds and not self.has_moved

    @property
    def has_moved(self) -> bool:
        """Tell whether the step changed it."""
        return bool((distances(self.now, self.was) > 0).any())

    def _excess(self, values: Tensor) -> Tensor:
        """Return how far values are off, in bounds; above 1 is too far."""
        off = distances(values, self.expected)
        if self.copy_is_fine:
            off = torch.where(values == self.copied, 0.0, off)
        return torch.where(off > 0, off / self.bound, 0.0)

    @property
    def change(self) -> Change:
        """Return how it differs from what it must be."""
        excess = self._excess(self.now)
        worst = int(excess.flatten().argmax())
        at = [int(i) for i in torch.unravel_index(torch.tensor(worst), excess.shape or (1,))]
        got, expected, bound = (
            t.flatten()[worst].item() for t in (self.now, self.expected, self.bound)
        )
        if self.copy_is_fine and float(expected).is_integer():
            got, expected = int(got), int(expected)
        shown, wanted = arrow(got, expected).split(" -> ")
        count = f"{int((excess > 1).sum())} of {excess.numel()} values, " if excess.dim() else ""
        text = (
            f"{count}{shown}{f' at {at}' if excess.dim() else ''}, expected {wanted}"
            f"{f' within {bound:.1e}' if bound else ''}{self._what_fits()}"
        )
        layer = self.watched.layer
        return Change(name=self.watched.name, layer=layer, kind="values", text=text)

    def _what_fits(self) -> str:
        if self.is_left_behind:
            return ": not updated"
        if self.is_copy:
            return ": a copy of the model's"
        swapped = self.was + self.model - self.expected
        if bool((distances(self.now, swapped) <= self.bound).all()):
            return ": as if decay weighed the new value"
        return ""


def _wide(tensor: Tensor) -> Tensor:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.detach().to("cpu", wide)
