"""Running statistics are new, have seen data, or cannot be used, and it is told which."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.snapshot.reads.statistics_state import (
    StatisticsState,
    statistics_states,
    unusable_values,
)


def of(mean: Tensor | None, var: Tensor | None) -> dict[str, Tensor | None]:
    return {"running_mean": mean, "running_var": var}


CASES: list[tuple[StatisticsState, dict[str, Any]]] = [
    ("new", of(torch.zeros(2), torch.ones(2))),
    ("none", of(None, None)),
    ("none", of(torch.zeros(2), None)),
    ("warm", of(torch.tensor([0.0, 0.1]), torch.ones(2))),
    ("warm", of(torch.zeros(2), torch.tensor([1.0, 0.0]))),
    ("not finite", of(torch.tensor([0.0, float("nan")]), torch.ones(2))),
    ("not finite", of(torch.zeros(2), torch.tensor([1.0, float("inf")]))),
    ("negative variance", of(torch.zeros(2), torch.tensor([1.0, -1e-9]))),
    ("not yet made", dict(nn.LazyBatchNorm1d()._buffers)),
    ("not yet made", of(torch.zeros(2), nn.UninitializedBuffer())),
    ("unreadable", of(torch.zeros(2, device="meta"), torch.ones(2))),
]


def test_each_layer_of_many_is_told_its_own_state() -> None:
    for cases in (CASES, CASES[::-1]):
        told = statistics_states([buffers for _, buffers in cases])
        assert told == [state for state, _ in cases]


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("running_mean", [0.0, -1.0], ""),
        ("running_var", [0.0, 1.0], ""),
        ("running_var", [-0.5, 1.0, -2.0], "2 of 3 values are negative"),
        ("running_var", [-0.5, float("nan")], "1 of 2 values are not finite"),
        ("running_mean", [float("inf"), 1.0], "1 of 2 values are not finite"),
    ],
)
def test_what_is_wrong_with_values_is_counted(name: str, values: list[float], text: str) -> None:
    assert unusable_values(name, torch.tensor(values)) == text
