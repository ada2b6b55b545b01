"""From changes and what was seen to causes, by one table of rules."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_bninvariants.invariants import normalising, writing
from pytest_bninvariants.invariants.evidence import Evidence, names_of
from pytest_bninvariants.invariants.rule import Rule
from pytest_bninvariants.invariants.verdict import Cause

RULES: tuple[Rule, ...] = (
    normalising.NO_STORED_STATISTICS,
    writing.LOADED,
    writing.BROADCAST,
    writing.REPLACED,
    writing.GRADIENT_STEP,
    writing.WEIGHT_DECAY,
    writing.STALE_MOMENTUM,
    normalising.RECOMPUTATION,
    normalising.UPDATE_IN_EVAL,
    normalising.MODE_FLIP,
    normalising.TRAINING_MODE,
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
    grouped: dict[tuple[int, object], list[Evidence]] = {}
    for each in evidence:
        for number, rule in enumerate(RULES):
            if rule.applies(each):
                grouped.setdefault((number, rule.event(each)), []).append(each)
                break
    return tuple(
        _cause(RULES[number], grouped[number, event])
        for number, event in sorted(grouped, key=lambda group: group[0])
    )


def _cause(rule: Rule, evidence: list[Evidence]) -> Cause:
    why, fix = rule.explain(evidence)
    return Cause(
        name=rule.cause,
        layers=tuple(names_of(evidence)),
        tensors=tuple(each.change.name for each in evidence if each.change.of_tensor),
        why=why,
        fix=fix,
        place=rule.place(evidence[0]),
        did=rule.did,
    )
