"""From changes and what was seen to causes, by one table of rules."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.state_change import rules_forward, rules_write
from pytest_bninvariants.state_change.evidence import ChangeEvidence, names_of
from pytest_bninvariants.verdict import Cause

RULES: tuple[Rule[ChangeEvidence], ...] = (
    rules_forward.NO_STORED_STATISTICS,
    rules_write.LOADED,
    rules_write.BROADCAST,
    rules_write.REPLACED,
    rules_write.EPS_SET,
    rules_write.GRADIENT_STEP,
    rules_write.WEIGHT_DECAY,
    rules_write.STALE_MOMENTUM,
    rules_forward.RECOMPUTATION,
    rules_forward.UPDATE_BY_OTHERS,
    rules_forward.UPDATE_IN_EVAL,
    rules_forward.MODE_FLIP,
    rules_forward.TRAINING_MODE,
    rules_forward.UPDATE_OF_SHARED,
    rules_forward.UPDATE_BY_STRANGER,
    rules_write.IN_PLACE,
)
"""Most specific first: the first that applies explains a change."""


def diagnose(evidence: Iterable[ChangeEvidence]) -> tuple[Cause, ...]:
    """Explain each change by the first rule that applies, and group those that one event explains.

    Args:
        evidence: what is known of each change.

    Returns:
        The causes, most specific first.
    """
    return explain(RULES, evidence, layers=names_of, tensors=_tensors, event=_optimizer)


def _tensors(evidence: list[ChangeEvidence]) -> Iterable[str]:
    return (each.change.name for each in evidence if each.change.of_tensor)


def _optimizer(evidence: ChangeEvidence) -> object:
    stepped = evidence.history.stepped
    return None if stepped is None else (stepped.optimizer, stepped.group)
