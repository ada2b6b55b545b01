"""Judge BN layers by what they are when an audit ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from pytest_bninvariants.audit.audited_layers import AuditedLayer
from pytest_bninvariants.audit.findings.finding import AuditFinding
from pytest_bninvariants.selection.bn_layers import STATISTICS
from pytest_bninvariants.selection.walk import join, registered
from pytest_bninvariants.snapshot.host_copies import widen
from pytest_bninvariants.snapshot.reads.statistics_state import statistics_states, unusable_values
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Change

_UNUSABLE = ("not finite", "negative variance")


def not_finite(records: Iterable[AuditedLayer]) -> Iterator[AuditFinding]:
    """Yield the layers that ran in training mode and whose statistics cannot be used any more.

    The host waits once for each device, unless there is such a layer.
    """
    ran = [record for record in records if record.context is not None]
    with undisturbed():
        states = statistics_states([record.buffers for record in ran])
        for record, state in zip(ran, states, strict=True):
            if state in _UNUSABLE:
                yield _finding(record)


def _finding(record: AuditedLayer) -> AuditFinding:
    context = record.context
    assert context is not None
    wrong = {}
    for name in STATISTICS:
        values: Tensor = registered(record.buffers, name)
        wrong[name] = unusable_values(name, widen(values).flatten())
    return AuditFinding(
        context=context,
        kind=record.kind,
        how="not-finite",
        tensors=len(STATISTICS),
        changes=tuple(
            Change(name=join(context.name, name), layer=context.name, kind="values", text=text)
            for name, text in wrong.items()
            if text
        ),
    )


def recomputed(record: AuditedLayer) -> AuditFinding | None:
    """Return that a layer was updated again in backward, if it was."""
    context = record.context
    if context is None or not record.recomputed:
        return None
    text = f"{record.recomputed} of its updates ran in backward"
    return AuditFinding(
        context=context,
        kind=record.kind,
        how="recomputed",
        batches=record.recomputed,
        changes=(Change(name=context.name, layer=context.name, kind="update", text=text),),
    )
