"""A layer's result, of which a test says only what it is about."""

from __future__ import annotations

from typing import Any

from torch import nn

from pytest_bninvariants.invariants.bn_updates.layer_record import LayerRecord
from pytest_bninvariants.invariants.bn_updates.layer_result import LayerResult
from pytest_bninvariants.invariants.bn_updates.state_history import Provenance, StatisticsHistory
from pytest_bninvariants.invariants.bn_updates.statistics_snapshot import (
    StatisticsReader,
    read_statistics,
)
from pytest_bninvariants.invariants.bn_updates.update_groups import UpdateGroups


def groups(*sizes: int) -> UpdateGroups:
    """Return groups that are numbered from 0, with so many updates each."""
    made = UpdateGroups()
    for group, size in enumerate(sizes):
        for _ in range(size):
            made.add(group)
    return made


def result(
    record: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
    layer: nn.Module | None = None,
    **options: Any,
) -> LayerResult:
    """Return the result of a layer that was updated once in one forward, but for what is given."""
    layer = nn.BatchNorm1d(2) if layer is None else layer
    reader = StatisticsReader(layer)
    (start,) = read_statistics([reader])
    history = StatisticsHistory.begin(start)
    did: dict[str, Any] = {"updates": 1, "forwards": 1, "is_to_train": True} | (record or {})
    plain: dict[str, Any] = {
        "name": "bn",
        "record": LayerRecord(layer, reader, history, began_in_training=True, **did),
        "provenance": Provenance(**{"updates": 1} | (provenance or {})),
        "times": 1,
        "steps": 1,
        "compiled": False,
        "optimizer_steps": 1,
        "optimizers": 1,
        "updates_elsewhere": 0,
        "replaced": False,
        "type_now": type(layer).__name__,
        "counter_change": 1,
        "unusable": [],
    }
    return LayerResult(**plain | options)
