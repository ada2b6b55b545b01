"""What `trains` must say of each parameter: by the steps of optimizers that the bare run heard."""

from __future__ import annotations

from tests.invariants.neutral_runs import in_bytes
from tests.oracle.deeds import Held
from tests.oracle.judgement.updates import Fate, LayerHistory, is_finite
from tests.oracle.scopes import Ask
from tests.oracle.timeline import Stretch


def parameters_to_train(ask: Ask, stretch: Stretch) -> set[str]:
    """Return the parameters that a guard is about."""
    asked = stretch.first.parameters
    return {n for n, wants in asked.items() if ask.covers(n) and (ask.names or wants)}


def fate_of_parameter(name: str, stretch: Stretch) -> Fate:
    """Return whether a parameter must be told to train or not, where that is certain."""
    first, last = stretch.first.tensors[name], stretch.last.tensors.get(name)
    steps = [s[name] for deed in stretch.deeds for s in deed.steps if name in s]
    if last is None:
        return "unknown"
    if not is_finite(last):
        return "breaks"
    learnt = [step for step in steps if step.gradient == "finite" and _moved(step)]
    if first == last:
        return "unknown" if any(step.gradient == "finite" for step in steps) else "breaks"
    if learnt and in_bytes(learnt[-1].after) == last:
        return "holds"
    return "unknown"


def _moved(step: Held) -> bool:
    return in_bytes(step.before) != in_bytes(step.after)


def fate_of_layer(layer: LayerHistory) -> Fate:
    """Return whether a layer's statistics must be told to train or not."""
    if layer.unusable:
        return "breaks"
    if not layer.is_whole or (layer.updates and layer.is_back):
        return "unknown"
    return "holds" if layer.updates else "breaks"
