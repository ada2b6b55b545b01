"""Check one update of a BN layer's statistics against the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import UNIT, Arithmetic
from pytest_bninvariants.batchnorm.expectation import (
    BoundedValue,
    expected_statistics,
    is_surely_right,
)
from pytest_bninvariants.batchnorm.reference import Statistics
from pytest_bninvariants.invariants.bn_updates.layer_forward import EndedForward
from pytest_bninvariants.invariants.bn_updates.state_history import (
    StatisticsSnapshot,
    WrongStatistic,
)
from pytest_bninvariants.selection.bn_layers import STATISTICS


@dataclass(slots=True)
class UpdateCheck:
    """The result of checking an update.

    Args:
        batch: the batch's statistics; None if the update could not be judged.
        count: how many values each channel had.
        is_constant: whether each channel had one value.
        counter_change: by how much the counter moved; None if no counter counts.
        rounded_away: whether a dtype that is too narrow has rounded the whole update away.
        wrong: the statistics that are not what the reference says.
        is_guess: whether the batch is a guess: the layer has a custom forward that called no torch
            function to normalise, so its input is taken for what it normalised.
    """

    batch: Statistics | None = None
    count: int = 0
    is_constant: bool = False
    counter_change: int | None = None
    rounded_away: bool = False
    wrong: list[WrongStatistic] = field(default_factory=list)
    is_guess: bool = False


def check_update(forward: EndedForward, number: int) -> UpdateCheck:
    """Check an update against the reference, if possible.

    Args:
        forward: the forward that made it, read on the host.
        number: which update it is, from 1.
    """
    check = UpdateCheck(counter_change=forward.counter_change, is_guess=forward.is_guess)
    batch, momentum = forward.batch, _weight(forward)
    if batch is None or momentum is None:
        return check
    channels = batch.vectors.shape[1]
    old, new = (_statistics(each, channels) for each in (forward.before, forward.after))
    if old is None or new is None:
        return check
    check.batch, check.count = batch.statistics, batch.values
    check.is_constant = batch.is_constant
    state = forward.after.tensors["running_mean"].dtype
    arithmetic = Arithmetic.for_dtypes(batch.dtype, state)
    if is_surely_right(old, new, batch, momentum, arithmetic):
        return check
    expected = expected_statistics(old, batch, momentum, arithmetic)
    check.rounded_away = all(map(torch.equal, old, new)) and any(
        bool(((each.value - was).abs() > UNIT[torch.float32] * was.abs()).any())
        for each, was in zip(expected, old, strict=True)
    )
    for name, got, bounded in zip(STATISTICS, new, expected, strict=True):
        text = _difference(got, bounded)
        if text:
            fits = _what_fits(name, got, bounded, old, check, momentum)
            check.wrong.append(WrongStatistic(name=name, update=number, text=text, fits=fits))
    return check


def _weight(forward: EndedForward) -> float | None:
    """Return the weight that the batch has in the running statistics; None if it is unknown."""
    momentum = forward.momentum
    if momentum is None:
        return None if forward.by_call else 1.0 / ((forward.before.counter or 0) + 1)
    return None if math.isnan(momentum) else momentum


def _statistics(state: StatisticsSnapshot, channels: int) -> Statistics | None:
    """Return running statistics in float64; those of a lazy layer are not created yet."""
    statistics = []
    for name, initial in zip(STATISTICS, (0.0, 1.0), strict=True):
        content, tensor = state.contents.get(name), state.tensors.get(name)
        if tensor is None or content is None or tensor.dtype not in UNIT:
            return None
        if not content:
            statistics.append(torch.full((channels,), initial, dtype=torch.float64, device="cpu"))
        else:
            statistics.append(content[0].view(tensor.dtype).to(torch.float64))
    return Statistics(*statistics)


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


def _what_fits(
    name: str,
    got: Tensor,
    expected: BoundedValue,
    old: Statistics,
    check: UpdateCheck,
    m: float,
) -> str:
    """Return the common mistake that gives such values; empty if none does."""
    assert check.batch is not None
    was = old.mean if name == "running_mean" else old.var
    n = check.count
    batch = check.batch.mean if name == "running_mean" else check.batch.var * (n / (n - 1))
    mistakes = {
        "as if the batch had been ignored": was,
        f"as if momentum were {1 - m:g}, the weight of the old value": m * was + (1 - m) * batch,
        "as if only the batch had been stored": batch,
    }
    if name == "running_var":
        kept, biased = (1 - m) * was, check.batch.var
        mistakes["with the biased variance, (n-1)/n of the unbiased one"] = kept + m * biased
        mistakes["with the standard deviation, not the variance"] = kept + m * batch.sqrt()
    for text, value in mistakes.items():
        if bool(((got - value).abs() <= expected.bound).all()):
            return text
    return ""
