"""What an audit tells of one BN layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_bninvariants.audit.call_context import CallContext
from pytest_bninvariants.verdict import Change, Place

How = Literal["training", "no-grad", "reset", "written", "stuck"]
"""How a layer went wrong: its statistics moved in training mode, frozen or under no_grad; they were
reset or written in eval; or an optimizer trained it in eval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFinding:
    """What an audit tells of one BN layer.

    Args:
        context: the model in which it ran, and the user's line that first ran it so.
        kind: its class name.
        how: how it went wrong.
        flipped: whether it was seen in eval before it ran in training mode.
        put_in_training: where it was put in training mode, if that was seen.
        batches: how many batches it normalised with batch statistics meanwhile.
        changes: the changes of its statistics, with qualified names; empty if they stood still.
        tensors: how many of its tensors were compared.
        optimizer: the class name of the optimizer that trained it in eval.
        stepped_at: where that optimizer stepped.
    """

    context: CallContext
    kind: str
    how: How
    flipped: bool = False
    put_in_training: Place | None = None
    batches: int = 0
    changes: tuple[Change, ...] = ()
    tensors: int = 0
    optimizer: str = ""
    stepped_at: Place | None = None


def layer_names(findings: list[AuditFinding]) -> list[str]:
    """Return the names of the layers of some findings."""
    return [finding.context.name for finding in findings]
