"""Whether running statistics are new or have seen data, and whether they can be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from pytest_bninvariants.selection.bn_layers import STATISTICS
from pytest_bninvariants.selection.walk import registered
from pytest_bninvariants.snapshot.host_copies import read_flags
from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS, is_uninitialised, values_of

StatisticsState = Literal[
    "none", "new", "warm", "not finite", "negative variance", "not yet made", "unreadable"
]


@torch.no_grad()
def statistics_states(
    buffers: Sequence[Mapping[str, Tensor | None]],
) -> list[StatisticsState]:
    """Return the state of each layer's running statistics; the host waits once for each device.

    Args:
        buffers: the buffers of each layer by name.

    Returns:
        For each: `new` if running_mean is 0 and running_var is 1 throughout, `warm` if they are
        other finite values, or what is wrong or missing.
    """
    states: list[StatisticsState] = []
    flags: list[Tensor] = []
    asked: list[int] = []
    for number, each in enumerate(buffers):
        known, questions = _ask(each)
        states.append(known)
        flags += questions
        if questions:
            asked.append(number)
    answers = iter(read_flags(flags))
    for number in asked:
        states[number] = _judge(next(answers), next(answers), next(answers))
    return states


def _ask(buffers: Mapping[str, Tensor | None]) -> tuple[StatisticsState, list[Tensor]]:
    """Return what is known without a look at values, and what has to be asked of the device."""
    mean, var = (registered(buffers, name) for name in STATISTICS)
    if mean is None or var is None:
        return "none", []
    if is_uninitialised(mean) or is_uninitialised(var):
        return "not yet made", []
    try:
        (means,), (variances,) = values_of(mean), values_of(var)
        finite = means.isfinite().all() & variances.isfinite().all()
        initial = (means == 0).all() & (variances == 1).all()
        return "warm", [finite, (variances < 0).any(), initial]
    except (*READ_ERRORS, ValueError):
        return "unreadable", []


def _judge(finite: bool, negative: bool, initial: bool) -> StatisticsState:
    if not finite:
        return "not finite"
    if negative:
        return "negative variance"
    return "new" if initial else "warm"


def unusable_values(name: str, values: Tensor) -> str:
    """Return what is wrong with the values of a layer's statistics; empty if nothing is.

    Args:
        name: `running_mean` or `running_var`.
        values: the values, of shape (C,), on the host.
    """
    bad = int((~values.isfinite()).sum())
    if bad:
        return f"{bad} of {len(values)} values are not finite"
    negative = int((values < 0).sum()) if name == "running_var" else 0
    return f"{negative} of {len(values)} values are negative" if negative else ""
