"""From changes and what was seen to causes, by one table of rules."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_bninvariants.invariants import normalising, writing
from pytest_bninvariants.invariants.evidence import Evidence, names_of
from pytest_bninvariants.invariants.rule import Rule, explain
from pytest_bninvariants.invariants.verdict import Cause

RULES: tuple[Rule[Evidence], ...] = (
    normalising.NO_STORED_STATISTICS,
    writing.LOADED,
    writing.BROADCAST,
    writing.REPLACED,
    writing.EPS_SET,
    writing.GRADIENT_STEP,
    writing.WEIGHT_DECAY,
    writing.STALE_MOMENTUM,
    normalising.RECOMPUTATION,
    normalising.UPDATE_BY_OTHERS,
    normalising.UPDATE_IN_EVAL,
    normalising.MODE_FLIP,
    normalising.TRAINING_MODE,
    normalising.UPDATE_OF_SHARED,
    normalising.UPDATE_BY_STRANGER,
    writing.IN_PLACE,
)
"""Most specific first: the first that applies explains a change."""


def diagnose(evidence: Iterable[Evidence]) -> tuple[Cause, ...]:
    """Explain each change by the first rule that applies, and group those that one event explains.

    Args:
        evidence: what is known of each change.

    Returns:
        The causes, most specific first.
    """
    return explain(RULES, evidence, layers=names_of, tensors=_tensors, event=_optimizer)


def _tensors(evidence: list[Evidence]) -> Iterable[str]:
    return (each.change.name for each in evidence if each.change.of_tensor)


def _optimizer(evidence: Evidence) -> object:
    stepped = evidence.handled.stepped
    return None if stepped is None else (stepped.optimizer, stepped.group)
