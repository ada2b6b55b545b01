"""All rules about the updates of BN layers, in the order in which a verdict gives their causes."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.invariants.bn_updates.layer_result import LayerResult
from pytest_bninvariants.invariants.bn_updates.rules.extra import EXTRA_UPDATES
from pytest_bninvariants.invariants.bn_updates.rules.missing import MISSING_UPDATES
from pytest_bninvariants.invariants.bn_updates.rules.statistics import WRONG_STATISTICS
from pytest_bninvariants.verdict import Cause

RULES: tuple[Rule[LayerResult], ...] = (*EXTRA_UPDATES, *MISSING_UPDATES, *WRONG_STATISTICS)
"""Several may apply to one layer."""


def diagnose(results: Iterable[LayerResult]) -> tuple[Cause, ...]:
    """Explain each layer by every rule that applies, and group the layers of one event."""
    return explain(RULES, results, layers=_names, every=True)


def _names(results: list[LayerResult]) -> list[str]:
    return [each.name for each in results]
