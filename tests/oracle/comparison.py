"""Compare what a guard said with the slow judgement, for each kind of guard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_bninvariants import Guard, Verdict
from tests.oracle.deeds import bare
from tests.oracle.judgement.averages import fates_of_average
from tests.oracle.judgement.causes import complaints
from tests.oracle.judgement.frozen import judge_frozen, said, surely_idle, surely_ran
from tests.oracle.judgement.training import (
    fate_of_layer,
    fate_of_parameter,
    parameters_to_train,
)
from tests.oracle.judgement.training_causes import (
    complaints_about_average,
    complaints_about_parameters,
    complaints_about_updates,
)
from tests.oracle.judgement.updates import Fate, LayerHistory, fate_of, histories, is_judged
from tests.oracle.scopes import Ask
from tests.oracle.timeline import Stretch


class Disagreement(AssertionError):
    """The guard and the slow judgement say different things."""


@dataclass
class Span:
    """A guard's block.

    Args:
        kind: the guard's name.
        ask: its arguments.
        guard: the guard.
        start: how many actions came before it.
        end: how many came before its end.
        interrupted: whether its block ended with an exception.
        verdict: what it found.
        refused: why it could not judge.
    """

    kind: str
    ask: Ask
    guard: Guard
    start: int
    end: int = -1
    interrupted: bool = False
    verdict: Verdict | None = None
    refused: str | None = None

    @property
    def is_unclear(self) -> bool:
        """Tell whether it may have been refused because a name matches nothing."""
        return self.start == self.end and bool(self.ask.names or self.ask.exclude)

    def __str__(self) -> str:
        return f"{self.kind}({self.ask}) around actions {self.start} to {self.end}"


def compare_frozen(span: Span, stretch: Stretch) -> None:
    """Compare what changed, name by name."""
    bn = span.kind == "frozen_bn"
    right = judge_frozen(span.ask, stretch, norms_only=bn)
    if span.verdict is not None and (what := said(span.verdict, stretch.deeds)) != right:
        raise Disagreement(f"{span}: said {what}, but {right}\n{span.verdict}")
    if span.verdict is None and span.refused is None and not span.interrupted:
        raise Disagreement(f"{span}: neither a verdict nor a refusal")
    if span.verdict is not None and surely_idle(stretch):
        raise Disagreement(f"{span}: holds, though nothing ran")
    if span.refused is None or not span.ask.tensors(stretch.first, norms_only=bn):
        return
    if right.broken or surely_ran(span.ask, stretch, norms_only=bn):
        deeds = [deed.name for deed in stretch.deeds]
        raise Disagreement(f"{span}: refused, though {right} by {deeds}: {span.refused}")


def compare_causes(span: Span, stretch: Stretch) -> None:
    """Compare why tensors changed, and where, with what was done."""
    if span.verdict is not None and (wrong := list(_complaints(span, stretch, span.verdict))):
        raise Disagreement(f"{span}: {wrong}\n{span.verdict}")


def _complaints(span: Span, stretch: Stretch, verdict: Verdict) -> Iterator[str]:
    if span.kind in ("frozen", "frozen_bn"):
        yield from complaints(verdict, stretch)
    if span.kind in ("bn_updates", "trains"):
        expected = 1 if span.kind == "trains" else _expected(span, stretch)
        yield from complaints_about_updates(verdict, span.ask, stretch, expected)
    if span.kind == "trains":
        yield from complaints_about_parameters(verdict, stretch)
    if span.kind == "in_sync":
        yield from complaints_about_average(verdict, stretch)


def _expected(span: Span, stretch: Stretch) -> int | None:
    """Return how many updates a guard expects; None for one in each forward."""
    times = span.ask.options.get("times", 1)
    if times == "forwards":
        return None
    assert isinstance(times, int)
    counts_steps = span.ask.options.get("per") == "optimizer_step"
    return times * (sum(deed.whole_steps for deed in stretch.deeds) if counts_steps else 1)


def compare_updates(span: Span, stretch: Stretch) -> None:
    """Compare which layers were updated as often as they should be, and how often they were."""
    layers = histories(span.ask, stretch)
    judged = {each.names: is_judged(each, span.ask, stretch) for each in layers}
    expected = _expected(span, stretch)
    if span.ask.options.get("per") and not expected:
        if span.verdict is not None:
            raise Disagreement(f"{span}: no optimizer stepped, but it said\n{span.verdict}")
        return
    if span.verdict is None:
        _insist_on_refusal(span, [each for each in layers if judged[each.names]])
        return
    for layer in layers:
        fate = fate_of(layer, "forwards" if expected is None else expected)
        if judged[layer.names] is not None:
            _compare_fate(span, layer.names, fate if judged[layer.names] else "holds")
        _compare_count(span, layer)


def compare_training(span: Span, stretch: Stretch) -> None:
    """Compare which parameters and statistics trained."""
    layers = histories(span.ask, stretch) if span.ask.options.get("buffers", True) else []
    judged = [e for e in layers if is_judged(e, span.ask, stretch) and not e.is_frozen_type]
    names = parameters_to_train(span.ask, stretch)
    if span.verdict is None:
        if names and not (span.interrupted or span.is_unclear):
            raise Disagreement(f"{span}: refused, though it is about {names}: {span.refused}")
        return
    negligible = {bare(hazard.name) for hazard in span.verdict.hazards}
    for name in sorted(names):
        fate = fate_of_parameter(name, stretch)
        if not (fate == "breaks" and name in negligible):
            _compare_fate(span, frozenset({name}), fate)
    for layer in judged:
        _compare_fate(span, layer.names, fate_of_layer(layer))


def compare_average(span: Span, stretch: Stretch) -> None:
    """Compare which tensors of an average are not what the formula makes of them."""
    if span.verdict is None:
        return
    told = {bare(change.name) for change in span.verdict.changes}
    for name, fate in fates_of_average(stretch).items():
        if fate != "unknown" and (fate == "breaks") != (name in told):
            raise Disagreement(f"{span}: {name} {fate}, but it said\n{span.verdict}")


def _insist_on_refusal(span: Span, judged: list[LayerHistory]) -> None:
    ran = [each.names for each in judged if each.is_whole and each.updates and not each.is_back]
    if ran and not (span.interrupted or span.is_unclear):
        raise Disagreement(f"{span}: refused, though {ran} were updated: {span.refused}")


def _compare_fate(span: Span, names: frozenset[str], fate: Fate) -> None:
    assert span.verdict is not None
    told = {bare(change.layer) for change in span.verdict.changes}
    if fate == "unknown" or (fate == "breaks") == bool(names & told):
        return
    raise Disagreement(f"{span}: {sorted(names)} {fate}, but it said\n{span.verdict}")


def _compare_count(span: Span, layer: LayerHistory) -> None:
    assert span.verdict is not None
    if not layer.is_whole or layer.is_back or layer.unusable:
        return
    for change in span.verdict.changes:
        count = re.match(r"(\d+) updates?(, \d+ forwards? without)?, expected", change.text)
        if bare(change.layer) in layer.names and count and int(count[1]) != len(layer.updates):
            raise Disagreement(f"{span}: {len(layer.updates)} updates, but {span.verdict}")


COMPARISONS = {
    "frozen": compare_frozen,
    "frozen_bn": compare_frozen,
    "bn_updates": compare_updates,
    "trains": compare_training,
    "in_sync": compare_average,
}
