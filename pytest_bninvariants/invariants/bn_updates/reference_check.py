"""Check one update of a BN layer's statistics against the reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import UNIT, Arithmetic
from pytest_bninvariants.batchnorm.batch_summary import BatchSummary
from pytest_bninvariants.batchnorm.expectation import BoundedValue, expected_statistics
from pytest_bninvariants.batchnorm.reference import Statistics
from pytest_bninvariants.invariants.bn_updates.layer_forward import Batch, EndedForward
from pytest_bninvariants.invariants.bn_updates.state_history import WrongStatistic
from pytest_bninvariants.selection.bn_layers import STATISTICS


@dataclass(slots=True)
class UpdateCheck:
    """The result of checking an update.

    Args:
        batch: the batch; None if the update could not be judged.
        is_constant: whether each channel had one value.
        counter_change: by how much the counter moved; None if no counter counts.
        rounded_away: whether a dtype that is too narrow has rounded the whole update away.
        wrong: the statistics that are not what the reference says.
        is_guess: whether the batch is a guess: the layer has a custom forward that called no torch
            function to normalise, so its input is taken for what it normalised.
    """

    batch: Batch | None = None
    is_constant: bool = False
    counter_change: int | None = None
    rounded_away: bool = False
    wrong: list[WrongStatistic] = field(default_factory=list)
    is_guess: bool = False


def check_update(forward: EndedForward, number: int, *, is_right: bool) -> UpdateCheck:
    """Check an update against the reference, if possible.

    Args:
        forward: the forward that made it, read on the host.
        number: which update it is, from 1.
        is_right: whether it is known to be what the reference makes of its batch.
    """
    check = UpdateCheck(counter_change=forward.counter_change, is_guess=forward.is_guess)
    batch, momentum = forward.batch, weight_of(forward)
    if batch is None or momentum is None:
        return check
    statistics = None if is_right else _statistics(forward, batch.channels)
    if statistics is None and not is_right:
        return check
    check.batch, check.is_constant = batch, batch.is_constant
    if statistics is not None:
        old, new = (Statistics(*each) for each in statistics)
        update = _Update(old, new, batch.summary, momentum)
        state = forward.after.tensors["running_mean"].dtype
        expected = update.expected(Arithmetic.for_dtypes(batch.dtype, state))
        is_narrow = UNIT[state] > UNIT[torch.float32]
        check.rounded_away = is_narrow and update.is_rounded_away(expected)
        check.wrong = list(update.wrong(expected, number))
    return check


def weight_of(forward: EndedForward) -> float | None:
    """Return the weight that the batch has in the running statistics; None if it is unknown."""
    momentum = forward.momentum
    if momentum is None:
        return None if forward.by_call else 1.0 / ((forward.before.counter or 0) + 1)
    return None if math.isnan(momentum) else momentum


def _statistics(forward: EndedForward, channels: int) -> Tensor | None:
    """Return the statistics before and after a forward, shape (2, 2, C), float64; None if unknown.

    Those of a lazy layer are created by its first forward, and begin with 0 and 1.
    """
    values = [
        state.values(name) for state in (forward.before, forward.after) for name in STATISTICS
    ]
    known = [each for each in values if each is not None and each.dtype in UNIT]
    if len(known) < len(values):
        return None
    created = [
        each if len(each) else torch.full((channels,), initial, device="cpu")
        for each, initial in zip(known, (0.0, 1.0, 0.0, 1.0), strict=True)
    ]
    return torch.stack(created).to(torch.float64).view(2, 2, channels)


class _Update(NamedTuple):
    """An update of statistics.

    Args:
        old: the statistics before it, float64.
        new: those after it.
        batch: what the batch comes to.
        momentum: the batch's weight.
    """

    old: Statistics
    new: Statistics
    batch: BatchSummary
    momentum: float

    def expected(self, a: Arithmetic) -> tuple[BoundedValue, BoundedValue]:
        """Return what the statistics must be."""
        return expected_statistics(self.old, self.batch, self.momentum, a)

    def is_rounded_away(self, expected: Iterable[BoundedValue]) -> bool:
        """Tell whether nothing moved that should have."""
        return all(map(torch.equal, self.old, self.new)) and any(
            bool(((each.value - was).abs() > UNIT[torch.float32] * was.abs()).any())
            for each, was in zip(expected, self.old, strict=True)
        )

    def wrong(self, expected: Iterable[BoundedValue], number: int) -> Iterator[WrongStatistic]:
        """Yield the statistics that are not what they must be."""
        for name, got, bounded in zip(STATISTICS, self.new, expected, strict=True):
            text = _difference(got, bounded)
            if text:
                fits = self._what_fits(name, got, bounded)
                yield WrongStatistic(name=name, update=number, text=text, fits=fits)

    def _what_fits(self, name: str, got: Tensor, expected: BoundedValue) -> str:
        """Return the common mistake that gives such values; empty if none does."""
        m, (mean, var), unbias = self.momentum, self.batch.statistics, self._unbias
        was, batch = (
            (self.old.mean, mean) if name == "running_mean" else (self.old.var, unbias * var)
        )
        mistakes = {
            "as if the batch had been ignored": was,
            f"as if momentum were {1 - m:g}, the weight of the old value": m * was
            + (1 - m) * batch,
            "as if only the batch had been stored": batch,
        }
        if name == "running_var":
            kept = (1 - m) * was
            mistakes["with the biased variance, (n-1)/n of the unbiased one"] = kept + m * var
            mistakes["with the standard deviation, not the variance"] = kept + m * batch.sqrt()
        for text, value in mistakes.items():
            if bool(((got - value).abs() <= expected.bound).all()):
                return text
        return ""

    @property
    def _unbias(self) -> float:
        return self.batch.values / (self.batch.values - 1)


def _difference(got: Tensor, expected: BoundedValue) -> str:
    """Return how far values are from what they must be; empty if they are within the bound."""
    off = (got - expected.value).abs()
    is_bounded = expected.value.isfinite() & expected.bound.isfinite()
    ratio = torch.where(is_bounded & (got != expected.value), off / expected.bound, 0.0).nan_to_num(
        nan=math.inf
    )
    wrong = ratio > 1
    if not bool(wrong.any()):
        return ""
    worst = int(ratio.argmax())
    return (
        f"{int(wrong.sum())} of {len(got)} values, {got[worst]:.6g} at [{worst}], expected "
        f"{expected.value[worst]:.6g} within {expected.bound[worst]:.1e}"
    )
