"""Hold that a model is the exponential moving average of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.tolerance import TINY, UNIT, gamma
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.invariants import snapshot
from pytest_bninvariants.invariants.bn_layers import STATISTICS
from pytest_bninvariants.invariants.guards import Guard
from pytest_bninvariants.invariants.names import Watched
from pytest_bninvariants.invariants.pairing import Pair, insist_on_copies, is_one, left_behind
from pytest_bninvariants.invariants.rounding import distances
from pytest_bninvariants.invariants.selection import Scope
from pytest_bninvariants.invariants.snapshot import Kept
from pytest_bninvariants.invariants.undisturbed import undisturbed
from pytest_bninvariants.invariants.values import arrow
from pytest_bninvariants.invariants.verdict import Cause, Change, Verdict

Buffers = Literal["copied", "averaged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A tensor of an average, and what it must be; values in float64, or complex128.

    Args:
        watched: the tensor.
        was: its values before the step.
        now: its values after it.
        model: the model's, after the step.
        expected: what it must be.
        bound: how far it may be off.
        copy_is_fine: whether it may be the model's as well.
    """

    watched: Watched
    was: Tensor
    now: Tensor
    model: Tensor
    expected: Tensor
    bound: Tensor
    copy_is_fine: bool = False

    @classmethod
    def of(cls, kept: Kept, now: Watched, model: Watched, decay: float | None) -> Average:
        """Say what a tensor must be.

        `decay * was + (1 - decay) * model` rounds decay, its complement, two products and the sum;
        `was + (1 - decay) * (model - was)` rounds their difference, too. Where decay itself is
        rounded to the tensor's dtype, that is off by u decay |model - was|. Integers are rounded or
        cut to the next one, or copied.

        Args:
            kept: the tensor before the step.
            now: the tensor after it.
            model: the model's.
            decay: the weight of the old value; None for a copy.
        """
        was = _wide(kept.content[0].view(kept.dtype).view(kept.shape or ()))
        new = _wide(model.tensor)
        weight = 0.0 if decay is None else decay
        unit = UNIT.get(kept.dtype)
        if decay is None:
            bound = torch.zeros_like(new.abs())
        elif unit is None:
            bound = torch.full_like(new.abs(), 1 - 2**-20)
        else:
            size = weight * was.abs() + (1 - weight) * new.abs() + (new - was).abs()
            bound = gamma(4, unit) * size + 2 * TINY[kept.dtype]
        return cls(
            watched=now,
            was=was,
            now=_wide(now.tensor),
            model=new,
            expected=weight * was + (1 - weight) * new if decay is not None else new,
            bound=bound,
            copy_is_fine=unit is None,
        )

    @property
    def holds(self) -> bool:
        """Tell whether it is what it must be."""
        return not bool((self._excess(self.now) > 1).any())

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
            off = torch.where(values == self.model, 0.0, off)
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
        if bool((self.now == self.model).all()):
            return ": a copy of the model's"
        swapped = self.was + self.model - self.expected
        if bool((distances(self.now, swapped) <= self.bound).all()):
            return ": as if decay weighed the new value"
        return ""


def _wide(tensor: Tensor) -> Tensor:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.detach().to("cpu", wide)


class AverageGuard(Guard):
    """Hold that a step moves an average as its decay says.

    Args:
        pair: the model and its average.
        scope: what is compared.
        decay: the weight of the old value.
        buffers: what buffers are: copied, or averaged.
        spelling: the guard as its user wrote it.
    """

    def __init__(
        self, pair: Pair, scope: Scope, decay: float, buffers: Buffers, spelling: str
    ) -> None:
        super().__init__(pair.one, spelling)
        self._pair, self._scope, self._decay, self._buffers = pair, scope, decay, buffers
        self._kept: Mapping[str, Kept] = {}
        self._is_first = False

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """Return both."""
        return self._pair.one, self._pair.other

    def _begin(self) -> None:
        first, second = self._pair.tensors(self._scope, self.spelled)
        alone = sorted(first.keys() ^ second.keys())
        if alone:
            raise GateError(
                f"{self.spelled}: only one of the two models has {alone[0]!r}; leave it out with "
                f"exclude={alone[0]!r}"
            )
        with undisturbed():
            self._kept = snapshot.take(second, exact=True)
        count = getattr(self._pair.other, "n_averaged", None)
        self._is_first = isinstance(count, Tensor) and count.numel() == 1 and not count.item()

    def _judge(self) -> Verdict:
        first, second = self._pair.tensors(self._scope, self.spelled)
        gone = sorted(self._kept.keys() - (first.keys() & second.keys()))
        if gone:
            raise GateError(f"{self.spelled}: {gone[0]!r} is gone from one of the models")
        with undisturbed():
            averages = [
                Average.of(kept, second[key], first[key], self._decay_of(kept))
                for key, kept in self._kept.items()
            ]
            shared = [
                key
                for key, average in zip(self._kept, averages, strict=True)
                if average.has_moved and is_one(first[key].tensor, second[key].tensor)
            ]
            insist_on_copies(shared, self.spelled)
            wrong = [average for average in averages if not average.holds]
            if not wrong and not any(average.tells for average in averages):
                raise GateError(
                    f"{self.spelled}: nothing moved far enough to tell an average that was updated "
                    "from one that was not: train and update inside the guard"
                )
            changes = tuple(average.change for average in wrong)
            causes = self._causes(averages)
        first_update = "the first update of an AveragedModel copies the model"
        return Verdict(
            guard=self.spelled,
            noun="layer",
            broke=f"not averaged with decay {self._decay:g}",
            model=self._pair.types,
            source=self._pair.source,
            layers=len({watched.layer for watched in second.values()}),
            tensors=None,
            changes=changes,
            causes=causes,
            notes=(first_update,) if self._is_first and changes else (),
        )

    def _decay_of(self, kept: Kept) -> float | None:
        """Return the weight of a tensor's old value; None where it is copied."""
        is_copied = kept.watched.kind == "buffer" and self._buffers == "copied"
        return None if is_copied or self._is_first else self._decay

    def _causes(self, averages: list[Average]) -> tuple[Cause, ...]:
        average, model = self._pair.names[::-1]
        behind = [each for each in averages if each.is_left_behind]
        layers = [each.watched.layer for each in behind]
        if behind and len(behind) == sum(each.tells for each in averages):
            why = f"nothing in {average} was updated: no update of it ran in the step"
            fix = f"update {average} after each step of the optimizer"
            names = tuple(dict.fromkeys(layers))
            return (Cause(name="left-behind", layers=names, why=why, fix=fix),)
        of_bn = [each.watched.layer for each in behind if each.watched.name.endswith(STATISTICS)]
        return (left_behind(of_bn, average, model, "did not move"),) if of_bn else ()
