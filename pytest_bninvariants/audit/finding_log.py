"""Collect what an audit finds, and return a verdict for each model."""

from __future__ import annotations

from pytest_bninvariants.audit import leaks
from pytest_bninvariants.audit.call_context import CallContext
from pytest_bninvariants.audit.finding import AuditFinding, layer_names
from pytest_bninvariants.diagnosis.rule import explain
from pytest_bninvariants.verdict import AUDIT, Verdict


class FindingLog:
    """Collect the findings of an audit: of each layer the first."""

    def __init__(self) -> None:
        self._findings: dict[tuple[str, str], AuditFinding] = {}
        self._frozen: dict[str, set[str]] = {}

    def saw_frozen(self, context: CallContext) -> None:
        """Note that a layer ran whose statistics should stay."""
        self._frozen.setdefault(context.model, set()).add(context.name)

    def add(self, finding: AuditFinding) -> None:
        """Note a finding, unless there is one of this layer."""
        context = finding.context
        self._findings.setdefault((context.model, context.name), finding)

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return a verdict for each model with a finding; it holds if no statistics moved."""
        models: dict[str, list[AuditFinding]] = {}
        for finding in self._findings.values():
            models.setdefault(finding.context.model, []).append(finding)
        return tuple(
            _verdict(model, findings, len(self._frozen.get(model, ())))
            for model, findings in models.items()
        )


def _verdict(model: str, findings: list[AuditFinding], frozen: int) -> Verdict:
    in_order = sorted(findings, key=lambda finding: finding.context.position)
    return Verdict(
        guard=AUDIT,
        noun="frozen BN layer",
        model=model,
        source="",
        layers=frozen,
        tensors=sum(finding.tensors for finding in findings),
        changes=tuple(change for finding in in_order for change in finding.changes),
        causes=explain(leaks.RULES, in_order, layers=layer_names, tensors=_tensors),
    )


def _tensors(findings: list[AuditFinding]) -> list[str]:
    return [change.name for finding in findings for change in finding.changes]
