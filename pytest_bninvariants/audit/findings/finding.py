"""What an audit tells of one BN layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_bninvariants.audit.call_context import CallContext
from pytest_bninvariants.verdict import Change, Place

How = Literal[
    "training", "no-grad", "reset", "written", "recomputed", "not-finite", "stuck", "unheld"
]
"""How a layer went wrong: its statistics moved in training mode, frozen or under no_grad; they were
reset or written in eval; they were updated again in backward; they are not finite; an optimizer
trained it in eval; or no optimizer holds it."""
_RULE_OF: dict[How, str] = {
    "training": "frozen-moved",
    "written": "frozen-moved",
    "reset": "frozen-reset",
    "no-grad": "teacher-in-training",
    "recomputed": "recomputation",
    "not-finite": "not-finite",
    "stuck": "stuck-in-eval",
    "unheld": "not-in-optimizer",
}
"""The rule of `audit_rules` that finds each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFinding:
    """What an audit tells of one BN layer.

    Args:
        context: the model in which it ran, and the user's line that first ran it so.
        kind: its class name.
        how: how it went wrong.
        flipped: whether it was seen in eval before it ran in training mode.
        put_in_training: where it was put in training mode, if that was seen.
        batches: how many batches it normalised with batch statistics meanwhile, or in backward.
        changes: what is wrong with its tensors or with itself, with qualified names.
        tensors: how many of its tensors were compared.
        optimizer: the class name of the optimizer that trained it in eval, or that lacks it.
        stepped_at: where that optimizer stepped.
    """

    context: CallContext
    kind: str
    how: How
    flipped: bool = False
    put_in_training: Place | None = None
    batches: int = 0
    changes: tuple[Change, ...]
    tensors: int = 0
    optimizer: str = ""
    stepped_at: Place | None = None

    @property
    def rule(self) -> str:
        """Return the rule that found it."""
        return _RULE_OF[self.how]

    @property
    def id(self) -> str:
        """Return what names it in a file of expected findings, beside its test."""
        return f"{self.rule}-{self.context.model}-{self.context.name or 'the model'}"


def layer_names(findings: list[AuditFinding]) -> list[str]:
    """Return the names of the layers of some findings."""
    return [finding.context.name for finding in findings]
