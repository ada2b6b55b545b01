"""Compare a model's watched state before and after a step, and explain what differs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.snapshot.host_copies import reading_once
from pytest_bninvariants.state_change.before_after import StateBefore
from pytest_bninvariants.state_change.evidence import gather_evidence
from pytest_bninvariants.state_change.hazards import find_hazards
from pytest_bninvariants.state_change.observation import observe
from pytest_bninvariants.state_change.rules.order import diagnose
from pytest_bninvariants.state_change.witness import Witness
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Cause, Change, Hazard


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDifference:
    """What differs after a step.

    Args:
        changes: what broke the invariant, in the model's order.
        causes: why the changes happened.
        hazards: what may go wrong later.
        touched: whether any memory was written or replaced, as far as a quick check tells.
    """

    changes: tuple[Change, ...]
    causes: tuple[Cause, ...]
    hazards: tuple[Hazard, ...]
    touched: bool


def compare(
    before: StateBefore, witness: Witness, scope: Scope, known: Collection[Change] = ()
) -> StateDifference:
    """Compare a model with its state before the step, and explain what differs.

    Args:
        before: the state before the step.
        witness: what was seen since, of the same model.
        scope: what is watched.
        known: changes that need no cause, because they happened before the witness started.
    """
    with undisturbed(), reading_once():
        observation = observe(before, witness, scope)
        changes = [change for change in observation.changes if change not in known]
        return StateDifference(
            changes=observation.changes,
            causes=diagnose(gather_evidence(observation, changes)),
            hazards=tuple(find_hazards(observation)),
            touched=observation.touched,
        )
