"""What `frozen_bn` and `frozen` must say of a span of the bare run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_bninvariants import Verdict
from tests.oracle.deeds import Call, Deed, bare
from tests.oracle.scopes import Ask
from tests.oracle.timeline import Reading, Stretch

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class FrozenJudgement:
    """What broke, as the bare run shows it.

    Args:
        tensors: names of the tensors whose bytes, dtype or shape differ, or that are gone or new.
        eps: names of the layers whose eps differs.
        batch: names of the layers that used batch statistics and moved none.
    """

    tensors: frozenset[str]
    eps: frozenset[str]
    batch: frozenset[str]

    @property
    def broken(self) -> bool:
        """Tell whether anything broke."""
        return bool(self.tensors or self.eps or self.batch)


def judge_frozen(ask: Ask, stretch: Stretch, *, norms_only: bool) -> FrozenJudgement:
    """Compare the first reading with the last, name by name."""
    first, last = stretch.first, stretch.last
    watched = ask.tensors(first, norms_only=norms_only) | ask.tensors(last, norms_only=norms_only)
    tensors = {name for name in watched if first.tensors.get(name) != last.tensors.get(name)}
    norms = ask.norms(first)
    moved = {n.rpartition(".")[0] for n in tensors if n.rpartition(".")[2] in STATISTICS}
    batch = (norms & used_batch(stretch)) - moved - doubtful(stretch.deeds)
    return FrozenJudgement(
        tensors=frozenset(tensors),
        eps=frozenset(
            name for name in norms & last.norms.keys() if _eps_differs(name, first, last)
        ),
        batch=frozenset(batch if ask.judges_normalisation else ()),
    )


def _eps_differs(name: str, first: Reading, last: Reading) -> bool:
    one, other = first.norms[name], last.norms[name]
    return one is not None and other is not None and one != other


def used_batch(stretch: Stretch) -> set[str]:
    """Return the names that a layer had, at the start or end, that used batch statistics.

    A layer that a step puts in and takes out again is neither.
    """
    return {
        name
        for call in calls(stretch.deeds)
        for name in call.names
        if call.used_batch
        and call.module in (stretch.modules[0].get(name), stretch.modules[-1].get(name))
    }


def doubtful(deeds: Iterable[Deed]) -> set[str]:
    """Return the names of layers of whose normalising only their outputs may tell."""
    return {name for call in calls(deeds) if call.by_hand for name in call.names}


def calls(deeds: Iterable[Deed]) -> list[Call]:
    """Return all calls of modules."""
    return [call for deed in deeds for call in deed.calls]


def said(verdict: Verdict, deeds: Iterable[Deed]) -> FrozenJudgement:
    """Return what a verdict says, in the same words."""

    def of(kind: str) -> frozenset[str]:
        return frozenset(bare(change.name) for change in verdict.changes if change.kind == kind)

    return FrozenJudgement(
        tensors=frozenset(map(bare, verdict.changed_tensors)),
        eps=of("eps"),
        batch=of("batch-statistics") - doubtful(deeds),
    )


def surely_ran(ask: Ask, stretch: Stretch, *, norms_only: bool) -> bool:
    """Tell whether something ran that each guard must have heard of."""
    layers = ask.norms(stretch.first) & ask.norms(stretch.last)
    if not norms_only:
        layers = {name.rpartition(".")[0] for name in ask.tensors(stretch.first, norms_only=False)}
    return any(deed.steps for deed in stretch.deeds) or any(
        layers.intersection(call.names) for call in calls(stretch.deeds)
    )


def surely_idle(stretch: Stretch) -> bool:
    """Tell whether nothing ran and nothing whatever changed."""
    same = all(reading == stretch.first for reading in stretch.readings)
    same &= len({tuple(map(id, names.values())) for names in stretch.modules}) == 1
    same &= len({tuple(map(id, names.values())) for names in stretch.tensors}) == 1
    may_write = ("writes", "loads")
    return same and not any(d.steps or d.calls or d.family in may_write for d in stretch.deeds)
