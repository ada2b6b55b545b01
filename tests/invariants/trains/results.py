"""A parameter's result, of which a test says only what it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pytest_bninvariants.invariants.trains.parameter_record import ParameterRecord
from pytest_bninvariants.invariants.trains.parameter_result import ParameterResult

LEFT: dict[str, Any] = {"optimizer": "SGD", "gradient": "nonzero", "rate": 0.1, "size": 1e-3}
"""A parameter with a gradient whose optimizer stepped, and left it as it was."""


def result(record: dict[str, Any] | None = None, **options: Any) -> ParameterResult:
    start = {"start": torch.ones(3).double()}
    plain = ParameterResult(
        name="w",
        record=ParameterRecord(**{**start, **LEFT, **(record or {})}),
        moved=False,
        replaced=False,
        overwritten=False,
        not_finite=0,
        may_have_missed=False,
        requires_grad=True,
        twins=[],
        shrank=False,
        dtype=torch.float32,
        stepped=["SGD"],
    )
    return replace(plain, **options)
