"""Prove, around your own train step, that what must not change did not change."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_bninvariants.batchnorm.laws.conform import assert_bn_conforms as assert_bn_conforms
    from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm as ReferenceBatchNorm
    from pytest_bninvariants.batchnorm.train_batches import TrainBatch as TrainBatch
    from pytest_bninvariants.batchnorm.train_batches import train_batches as train_batches
    from pytest_bninvariants.errors import FrozenStateChanged as FrozenStateChanged
    from pytest_bninvariants.errors import GateError as GateError
    from pytest_bninvariants.errors import InvariantBroken as InvariantBroken
    from pytest_bninvariants.errors import InvariantHazard as InvariantHazard
    from pytest_bninvariants.errors import LawBroken as LawBroken
    from pytest_bninvariants.invariants.accumulates.check import accumulates as accumulates
    from pytest_bninvariants.invariants.batch_invariant.guard import (
        batch_invariant as batch_invariant,
    )
    from pytest_bninvariants.invariants.bn_updates.guard import bn_updates as bn_updates
    from pytest_bninvariants.invariants.frozen.guard import frozen as frozen
    from pytest_bninvariants.invariants.frozen.guard import frozen_bn as frozen_bn
    from pytest_bninvariants.invariants.guard import Guard as Guard
    from pytest_bninvariants.invariants.in_sync.guard import in_sync as in_sync
    from pytest_bninvariants.invariants.same_output.guard import (
        assert_same_output as assert_same_output,
    )
    from pytest_bninvariants.invariants.same_output.guard import same_output as same_output
    from pytest_bninvariants.invariants.trains.guard import trains as trains
    from pytest_bninvariants.verdict import Verdict as Verdict

_HOMES = {
    "FrozenStateChanged": "pytest_bninvariants.errors",
    "GateError": "pytest_bninvariants.errors",
    "InvariantBroken": "pytest_bninvariants.errors",
    "InvariantHazard": "pytest_bninvariants.errors",
    "LawBroken": "pytest_bninvariants.errors",
    "ReferenceBatchNorm": "pytest_bninvariants.batchnorm.reference",
    "trains": "pytest_bninvariants.invariants.trains.guard",
    "bn_updates": "pytest_bninvariants.invariants.bn_updates.guard",
    "assert_same_output": "pytest_bninvariants.invariants.same_output.guard",
    "batch_invariant": "pytest_bninvariants.invariants.batch_invariant.guard",
    "in_sync": "pytest_bninvariants.invariants.in_sync.guard",
    "same_output": "pytest_bninvariants.invariants.same_output.guard",
    "TrainBatch": "pytest_bninvariants.batchnorm.train_batches",
    "accumulates": "pytest_bninvariants.invariants.accumulates.check",
    "assert_bn_conforms": "pytest_bninvariants.batchnorm.laws.conform",
    "Verdict": "pytest_bninvariants.verdict",
    "Guard": "pytest_bninvariants.invariants.guard",
    "frozen": "pytest_bninvariants.invariants.frozen.guard",
    "frozen_bn": "pytest_bninvariants.invariants.frozen.guard",
    "train_batches": "pytest_bninvariants.batchnorm.train_batches",
}
__all__ = [
    "FrozenStateChanged",
    "GateError",
    "Guard",
    "InvariantBroken",
    "InvariantHazard",
    "LawBroken",
    "ReferenceBatchNorm",
    "TrainBatch",
    "Verdict",
    "accumulates",
    "assert_bn_conforms",
    "assert_same_output",
    "batch_invariant",
    "bn_updates",
    "frozen",
    "frozen_bn",
    "in_sync",
    "same_output",
    "train_batches",
    "trains",
]


def __getattr__(name: str) -> Any:
    # PEP 562: this package is imported in every pytest run of its environment, torch must not be.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
