"""Whether the running statistics of layers are new or have seen data, and whether they can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pytest_bninvariants.selection.bn_layers import STATISTICS, has_stored_statistics
from pytest_bninvariants.snapshot.host_copies import read_flags
from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS, is_uninitialised, values_of

StatisticsState = Literal[
    "none", "new", "warm", "not finite", "negative variance", "not yet made", "unreadable"
]


@torch.no_grad()
def statistics_states(layers: Sequence[nn.Module]) -> list[StatisticsState]:
    """Return the state of each layer's running statistics; the host waits once for each device.

    Args:
        layers: any modules.

    Returns:
        For each: `new` if running_mean is 0 and running_var is 1 throughout, `warm` if they are
        other finite values, or what is wrong or missing.
    """
    states: list[StatisticsState] = []
    flags: list[Tensor] = []
    asked: list[int] = []
    for number, layer in enumerate(layers):
        known, questions = _ask(layer)
        states.append(known)
        flags += questions
        if questions:
            asked.append(number)
    answers = iter(read_flags(flags))
    for number in asked:
        states[number] = _judge(next(answers), next(answers), next(answers))
    return states


def _ask(layer: nn.Module) -> tuple[StatisticsState, list[Tensor]]:
    """Return what is known without a look at values, and what has to be asked of the device."""
    if not has_stored_statistics(layer):
        return "none", []
    mean, var = (layer._buffers[name] for name in STATISTICS)
    assert mean is not None
    assert var is not None
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
