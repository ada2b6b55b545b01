"""Find the causes of changes, by one table of rules."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.state_change.evidence import ChangeEvidence, names_of
from pytest_bninvariants.state_change.rules import forward, write
from pytest_bninvariants.verdict import Cause

RULES: tuple[Rule[ChangeEvidence], ...] = (
    forward.NO_STORED_STATISTICS,
    write.LOADED,
    write.BROADCAST,
    write.REPLACED,
    write.EPS_SET,
    write.GRADIENT_STEP,
    write.WEIGHT_DECAY,
    write.STALE_MOMENTUM,
    forward.RECOMPUTATION,
    forward.UPDATE_BY_OTHERS,
    forward.UPDATE_IN_EVAL,
    forward.MODE_FLIP,
    forward.TRAINING_MODE,
    forward.UPDATE_OF_SHARED,
    forward.UPDATE_OUTSIDE,
    write.IN_PLACE,
)
"""The rules, most specific first: the first that applies explains a change."""


def diagnose(evidence: Iterable[ChangeEvidence]) -> tuple[Cause, ...]:
    """Explain each change by the first rule that applies, and group those that one event explains.

    Args:
        evidence: what is known about each change.

    Returns:
        The causes, most specific first.
    """
    return explain(RULES, evidence, layers=names_of, tensors=_tensors, event=_step_of)


def _tensors(evidence: list[ChangeEvidence]) -> Iterable[str]:
    return (each.change.name for each in evidence if each.change.of_tensor)


def _step_of(evidence: ChangeEvidence) -> object:
    step = evidence.history.step
    return None if step is None else (step.optimizer, step.group)
