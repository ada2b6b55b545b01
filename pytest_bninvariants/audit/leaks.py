"""Frozen BN layers that an audit found moved, as verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_bninvariants.diagnosis.wording import keep_in_eval, name_list, one_or_many, span
from pytest_bninvariants.frames import relative
from pytest_bninvariants.verdict import AUDIT, Cause, Change, Place, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One frozen BN layer whose statistics moved.

    Args:
        model: class name of its model.
        layer: its qualified name.
        kind: its own class name.
        cause: `mode-flip` if it was seen in eval before, else `training-mode`.
        place: where it was put in training mode, if that was seen.
        ran_at: the user's line that had the model work at first.
        batches: how many batches it normalised while it was frozen.
        changes: what moved.
        tensors: how many of its tensors were compared.
    """

    model: str
    layer: str
    kind: str
    cause: Literal["training-mode", "mode-flip"]
    place: Place | None
    ran_at: Place | None
    batches: int
    changes: tuple[Change, ...]
    tensors: int


def verdicts(leaks: Iterable[Leak], frozen: Mapping[str, int]) -> tuple[Verdict, ...]:
    """Return a verdict for each model of which layers leaked.

    Args:
        leaks: the leaks.
        frozen: by class name of a model, how many of its layers ran in training mode while frozen.
    """
    models: dict[str, list[Leak]] = {}
    for leak in leaks:
        models.setdefault(leak.model, []).append(leak)
    return tuple(_verdict(model, found, frozen[model]) for model, found in models.items())


def _verdict(model: str, leaks: list[Leak], frozen: int) -> Verdict:
    groups: dict[tuple[str, Place | None, str], list[Leak]] = {}
    for leak in leaks:
        groups.setdefault((leak.cause, leak.place, leak.kind), []).append(leak)
    return Verdict(
        guard=AUDIT,
        noun="frozen BN layer",
        model=model,
        source="",
        layers=frozen,
        tensors=sum(leak.tensors for leak in leaks),
        changes=tuple(change for leak in leaks for change in leak.changes),
        causes=tuple(map(_cause, groups.values())),
    )


def _cause(leaks: list[Leak]) -> Cause:
    first = leaks[0]
    names = [leak.layer for leak in leaks]
    place = first.place or first.ran_at
    return Cause(
        name=first.cause,
        layers=tuple(names),
        tensors=tuple(change.name for leak in leaks for change in leak.changes),
        why=_why(first, names, span([leak.batches for leak in leaks], "batch", "batches")),
        fix=keep_in_eval(name_list(names), None if place is None else place.tool),
        place=first.place,
    )


def _why(first: Leak, names: list[str], batches: str) -> str:
    told = f"{name_list(names)} ({first.kind}) "
    if first.cause == "mode-flip":
        told += f"{one_or_many(names, 'was', 'were')} in eval, then put in training mode, and "
    told += f"{one_or_many(names, '', 'each ')}normalised {batches} with batch statistics"
    ran_at = first.ran_at
    if ran_at is not None:
        told += f", first at {relative(ran_at.file)}:{ran_at.line} in {ran_at.function}"
        told += f", by {ran_at.tool}" if ran_at.tool else ""
    if first.place is None:
        told += ", in training mode since before the test or since it was made"
    return f"{told}; requires_grad=False does not stop running statistics"
