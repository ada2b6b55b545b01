"""Collect the leaks of an audit: frozen BN layers whose statistics moved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pytest_bninvariants.audit.call_context import CallContext
from pytest_bninvariants.audit.frozen_period import FrozenPeriod
from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import (
    NOT_STOPPED,
    PUT_IN_TRAINING,
    flipped,
    keep_in_eval,
    name_list,
    one_or_many,
    span,
)
from pytest_bninvariants.frames import relative_path
from pytest_bninvariants.instrumentation.call_sites import ModeHistory
from pytest_bninvariants.verdict import AUDIT, Change, Place, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One frozen BN layer whose statistics moved.

    Args:
        model: class name of its model.
        layer: its qualified name.
        kind: its own class name.
        flipped: whether it was seen in eval before.
        put_in_training: where it was put in training mode, if that was seen.
        ran_at: the user's line that first ran the model while the layer was frozen.
        batches: how many batches it normalised while it was frozen.
        changes: the changes of its statistics.
        tensors: how many of its tensors were compared.
    """

    model: str
    layer: str
    kind: str
    flipped: bool
    put_in_training: Place | None
    ran_at: Place | None
    batches: int
    changes: tuple[Change, ...]
    tensors: int


class LeakLog:
    """Collect the leaks of an audit."""

    def __init__(self) -> None:
        self._leaks: dict[tuple[str, str], Leak] = {}
        self._frozen: dict[str, set[str]] = {}

    def saw_frozen(self, context: CallContext) -> None:
        """Note that a frozen layer ran in training mode."""
        self._frozen.setdefault(context.model, set()).add(context.name)

    def add(self, period: FrozenPeriod, moved: Sequence[Change], modes: ModeHistory) -> None:
        """Note a layer's first leak.

        Args:
            period: its period, in a known context.
            moved: the changes of its statistics, with relative names; empty if it did not leak.
            modes: what was seen of its modes.
        """
        context = period.context
        if not moved or context is None:
            return
        prefix = f"{context.name}." if context.name else ""
        leak = Leak(
            model=context.model,
            layer=context.name,
            kind=period.kind,
            flipped=modes.flipped,
            put_in_training=modes.put_in_training,
            ran_at=context.place,
            batches=period.batches,
            changes=tuple(replace(c, name=f"{prefix}{c.name}", layer=context.name) for c in moved),
            tensors=len(period.kept),
        )
        self._leaks.setdefault((leak.model, leak.layer), leak)

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return a verdict for each model with a leak."""
        models: dict[str, list[Leak]] = {}
        for leak in self._leaks.values():
            models.setdefault(leak.model, []).append(leak)
        return tuple(
            _verdict(model, leaks, len(self._frozen[model])) for model, leaks in models.items()
        )


def _verdict(model: str, leaks: list[Leak], frozen: int) -> Verdict:
    return Verdict(
        guard=AUDIT,
        noun="frozen BN layer",
        model=model,
        source="",
        layers=frozen,
        tensors=sum(leak.tensors for leak in leaks),
        changes=tuple(change for leak in leaks for change in leak.changes),
        causes=explain(RULES, leaks, layers=_layers, tensors=_tensors, event=_kind),
    )


def _layers(leaks: list[Leak]) -> list[str]:
    return [leak.layer for leak in leaks]


def _tensors(leaks: list[Leak]) -> Iterable[str]:
    return (change.name for leak in leaks for change in leak.changes)


def _kind(leak: Leak) -> str:
    return leak.kind


def _put_in_training(leak: Leak) -> Place | None:
    return leak.put_in_training


def _explain_flip(leaks: list[Leak]) -> tuple[str, str]:
    first, names = leaks[0], _layers(leaks)
    return f"{name_list(names)} ({first.kind}) {flipped(names)} {_did(leaks)}", _fix(leaks)


def _explain_training(leaks: list[Leak]) -> tuple[str, str]:
    return f"{name_list(_layers(leaks))} ({leaks[0].kind}) {_did(leaks)}", _fix(leaks)


def _did(leaks: list[Leak]) -> str:
    """Return a clause that says what layers did, and where first."""
    first, each = leaks[0], one_or_many(_layers(leaks), "", "each ")
    batches = span([leak.batches for leak in leaks], "batch", "batches")
    did = f"{each}normalised {batches} with batch statistics"
    place = first.ran_at
    if place is not None:
        did += f", first at {relative_path(place.file)}:{place.line} in {place.function}"
        did += f", by {place.tool}" if place.tool else ""
    if first.put_in_training is None:
        did += ", in training mode since before the test or since it was created"
    return f"{did}; {NOT_STOPPED}"


def _fix(leaks: list[Leak]) -> str:
    return keep_in_eval(_layers(leaks), leaks[0].put_in_training or leaks[0].ran_at)


RULES: tuple[Rule[Leak], ...] = (
    Rule(
        cause="mode-flip",
        applies=lambda leak: leak.flipped,
        explain=_explain_flip,
        place=_put_in_training,
        did=PUT_IN_TRAINING,
    ),
    Rule(
        cause="training-mode",
        applies=lambda _: True,
        explain=_explain_training,
        place=_put_in_training,
        did=PUT_IN_TRAINING,
    ),
)
"""The rules for leaks; the first that applies explains a leak."""
