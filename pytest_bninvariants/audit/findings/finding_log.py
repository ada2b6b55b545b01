"""Collect what an audit finds, and return a verdict for each rule and model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pytest_bninvariants.audit.call_context import CallContext
from pytest_bninvariants.audit.findings import leaks
from pytest_bninvariants.audit.findings.finding import AuditFinding, layer_names
from pytest_bninvariants.audit.findings.guarding_marker import guarding_marker
from pytest_bninvariants.audit_rules import AUDIT_RULES
from pytest_bninvariants.diagnosis.rule import explain
from pytest_bninvariants.verdict import AUDIT, Verdict


class RuleVerdict(NamedTuple):
    """What one rule of the audit found in one model.

    Args:
        rule: the rule's name.
        ids: the ids of its findings.
        marker: the marker that guards against it, as code.
        verdict: the verdict, which never holds.
    """

    rule: str
    ids: tuple[str, ...]
    marker: str
    verdict: Verdict


class FindingLog:
    """Collect the findings of an audit: of each rule and layer the first.

    Args:
        is_wanted: tells whether a finding is wanted, by its rule and its id.
    """

    def __init__(self, is_wanted: Callable[[AuditFinding], bool]) -> None:
        self._is_wanted = is_wanted
        self._findings: dict[str, AuditFinding] = {}
        self._seen: dict[str, dict[str, set[str]]] = {}

    def saw(self, noun: str, context: CallContext) -> None:
        """Note a layer of which something may be found, by the noun of the rules that may."""
        self._seen.setdefault(context.model, {}).setdefault(noun, set()).add(context.name)

    def add(self, finding: AuditFinding) -> None:
        """Note a finding, unless there is one of this layer by the same rule."""
        if self._is_wanted(finding):
            self._findings.setdefault(finding.id, finding)

    def verdicts(self) -> tuple[RuleVerdict, ...]:
        """Return a verdict for each rule and model with a finding, in the order of the rules."""
        groups: dict[tuple[str, str], list[AuditFinding]] = {}
        for finding in self._findings.values():
            groups.setdefault((finding.rule, finding.context.model), []).append(finding)
        order = list(AUDIT_RULES)
        return tuple(
            _verdict(rule, findings, self._seen.get(model, {}))
            for (rule, model), findings in sorted(
                groups.items(), key=lambda group: order.index(group[0][0])
            )
        )


def _verdict(rule: str, findings: list[AuditFinding], seen: dict[str, set[str]]) -> RuleVerdict:
    """Return what a rule found in a model.

    Args:
        rule: the rule.
        findings: its findings.
        seen: the names of the model's layers of which something could have been found, by noun.
    """
    in_order = sorted(findings, key=lambda finding: finding.context.position)
    names = layer_names(in_order)
    others = set().union(*seen.values()).difference(names)
    verdict = Verdict(
        guard=f"{AUDIT} {rule}",
        noun=AUDIT_RULES[rule].noun,
        broke=AUDIT_RULES[rule].broke,
        model=in_order[0].context.model,
        source="",
        layers=len(seen.get(AUDIT_RULES[rule].noun, set()).union(names)),
        tensors=sum(finding.tensors for finding in findings) or None,
        changes=tuple(change for finding in in_order for change in finding.changes),
        causes=explain(leaks.RULES, in_order, layers=layer_names, tensors=_tensors),
    )
    ids = tuple(finding.id for finding in in_order)
    return RuleVerdict(rule, ids, guarding_marker(rule, names, others), verdict)


def _tensors(findings: list[AuditFinding]) -> list[str]:
    return [change.name for finding in findings for change in finding.changes if change.of_tensor]
