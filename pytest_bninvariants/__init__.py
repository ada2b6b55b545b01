"""Prove, around your own train step, that what must not change did not change."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_bninvariants import catalogue

if TYPE_CHECKING:
    from pytest_bninvariants.batchnorm.laws.conform import assert_bn_conforms as assert_bn_conforms
    from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm as ReferenceBatchNorm
    from pytest_bninvariants.batchnorm.train_batches import (
        TrainBatch as TrainBatch,
        train_batches as train_batches,
    )
    from pytest_bninvariants.description.describe import (
        ModelDescription as ModelDescription,
        describe as describe,
    )
    from pytest_bninvariants.errors import (
        FrozenStateChanged as FrozenStateChanged,
        GateError as GateError,
        InvariantBroken as InvariantBroken,
        InvariantHazard as InvariantHazard,
        LawBroken as LawBroken,
    )
    from pytest_bninvariants.invariants.accumulates.check import accumulates as accumulates
    from pytest_bninvariants.invariants.batch_invariant.guard import (
        batch_invariant as batch_invariant,
    )
    from pytest_bninvariants.invariants.bn_updates.guard import bn_updates as bn_updates
    from pytest_bninvariants.invariants.frozen.guard import frozen as frozen, frozen_bn as frozen_bn
    from pytest_bninvariants.invariants.guard import (
        Guard as Guard,
        GuardNeverEntered as GuardNeverEntered,
    )
    from pytest_bninvariants.invariants.in_sync.guard import in_sync as in_sync
    from pytest_bninvariants.invariants.rank_invariant.check import (
        rank_invariant as rank_invariant,
    )
    from pytest_bninvariants.invariants.same_output.guard import (
        assert_same_output as assert_same_output,
        same_output as same_output,
    )
    from pytest_bninvariants.invariants.trains.guard import trains as trains
    from pytest_bninvariants.verdict import Verdict as Verdict

_HOMES = {name: invariant.module for name, invariant in catalogue.INVARIANTS.items()} | {
    "FrozenStateChanged": "errors",
    "GateError": "errors",
    "Guard": "invariants.guard",
    "GuardNeverEntered": "invariants.guard",
    "InvariantBroken": "errors",
    "InvariantHazard": "errors",
    "LawBroken": "errors",
    "ModelDescription": "description.describe",
    "ReferenceBatchNorm": "batchnorm.reference",
    "TrainBatch": "batchnorm.train_batches",
    "Verdict": "verdict",
    "assert_bn_conforms": "batchnorm.laws.conform",
    "assert_same_output": "invariants.same_output.guard",
    "describe": "description.describe",
    "train_batches": "batchnorm.train_batches",
}
if not TYPE_CHECKING:  # type checkers cannot compute it, and take the imports above
    __all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # PEP 562: this package is imported in every pytest run of its environment, torch must not be.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
