"""Find the causes of changes, by one table of rules."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.state_change.evidence import ChangeEvidence, names_of
from pytest_bninvariants.state_change.rules import forward, own_code, own_load, write
from pytest_bninvariants.verdict import Cause

_MOVED: tuple[Rule[ChangeEvidence], ...] = (
    forward.NO_STORED_STATISTICS,
    write.LOADED,
    write.BROADCAST,
    own_code.RESET,
    own_code.BOUND_BY_FORWARD,
    write.REPLACED,
    write.EPS_SET,
    write.STEP_AFTER_SWITCH,
    write.GRADIENT_STEP,
    write.WEIGHT_DECAY,
    write.STALE_MOMENTUM,
    forward.RECOMPUTATION,
    forward.UPDATE_BY_OTHERS,
    forward.UPDATE_IN_EVAL,
    forward.MODE_FLIP,
    forward.TRAINING_MODE,
    forward.UPDATE_OF_SHARED,
    forward.UPDATE_IN_GRAPH,
    forward.UPDATE_OF_ALIAS,
    own_code.WRITTEN_BY_FORWARD,
    write.EXTRA_STATE_SET,
    write.IN_PLACE,
)
"""What moved a tensor, most specific first: the first rule that applies explains a change."""
_NOT_RESTORED = (own_load.SHARED_MEMORY,)
"""What was to put a tensor back, and did not."""
RULES: tuple[Rule[ChangeEvidence], ...] = (*_NOT_RESTORED, *_MOVED)


def diagnose(evidence: Iterable[ChangeEvidence]) -> tuple[Cause, ...]:
    """Explain what moved each tensor, and what failed to put it back.

    Args:
        evidence: what is known about each change.

    Returns:
        The causes, most specific first.
    """
    evidence = list(evidence)
    not_restored = explain(_NOT_RESTORED, evidence, layers=names_of, tensors=_tensors)
    moved = explain(_MOVED, evidence, layers=names_of, tensors=_tensors, event=_step_of)
    return not_restored + moved


def _tensors(evidence: list[ChangeEvidence]) -> Iterable[str]:
    return (each.change.name for each in evidence if each.change.of_tensor)


def _step_of(evidence: ChangeEvidence) -> object:
    step = evidence.history.step
    return None if step is None else (step.optimizer, step.group)
