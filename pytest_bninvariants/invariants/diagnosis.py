"""From changes and what was seen to causes, each with its fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pytest_bninvariants.invariants.verdict import Cause, Change, Place
from pytest_bninvariants.invariants.witness import Seen

_IDENTITY = ("gone", "new", "dtype", "shape", "layout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """All that is known of one layer that changed.

    Args:
        name: its qualified name.
        changes: its changes.
        seen: what the witness saw of the module that holds the name now.
        is_bn: whether it is a BN layer.
        began_in_training: its mode when the step began.
        stored: whether it had running statistics when the step began.
        before: the class name of the module that held the name before.
        after: the class name of the module that holds it now; None if it is gone.
        replaced: whether these are two modules, and the first had done nothing yet.
        in_training: its mode now.
        trains: whether one of its own parameters requires a gradient.
    """

    name: str
    changes: tuple[Change, ...]
    seen: Seen
    is_bn: bool
    began_in_training: bool
    stored: bool
    before: str | None
    after: str | None
    replaced: bool
    in_training: bool
    trains: bool

    @property
    def statistics_changed(self) -> bool:
        """Tell whether it has a change that normalising with batch statistics explains."""
        return any(
            change.kind in ("batch-statistics", "initialised") or change.of_statistics
            for change in self.changes
        )

    @property
    def normalised(self) -> bool:
        """Tell whether normalising with batch statistics explains its changes."""
        if not (self.is_bn and self.statistics_changed):
            return False
        return self.seen.normalised or (
            self.seen.own_forwards > 0 and all(map(_is_of_statistics, self.changes))
        )


def _is_of_statistics(change: Change) -> bool:
    return change.kind in ("batch-statistics", "initialised", "values") and (
        change.kind == "batch-statistics" or change.of_statistics
    )


def _lacks_statistics(layer: Layer) -> bool:
    return layer.normalised and not layer.stored


def _is_replaced(layer: Layer) -> bool:
    """Tell whether another object holds a name, and training mode does not explain it."""
    rebound = any(not c.same_object for c in layer.changes) and not layer.normalised
    return layer.replaced or rebound or any(change.kind in _IDENTITY for change in layer.changes)


def _is_flipped(layer: Layer) -> bool:
    return layer.normalised and layer.seen.flipped and not layer.began_in_training


def _is_in_training(layer: Layer) -> bool:
    return layer.normalised and layer.began_in_training


def _explain_lacking(layers: list[Layer]) -> tuple[str, str]:
    names = name_list(layers)
    return (
        f"{names} {_has(layers)} no running statistics, so {_it(layers)} "
        f"{_did(layers)}, whatever {_its(layers)} mode",
        f"build {names} with track_running_stats=True and load statistics, "
        "or accept it with allow_batch_stats=True",
    )


def _explain_replaced(layers: list[Layer]) -> tuple[str, str]:
    swapped = [layer for layer in layers if layer.replaced]
    told = [
        f"{_named(layer)} was {layer.before} and is "
        + (
            "gone"
            if layer.after is None
            else f"another module now: {layer.after}"
            + (" in training mode" if layer.in_training and not layer.began_in_training else "")
        )
        for layer in swapped
        if layer.before is not None
    ]
    told += [
        f"{change.name} {_REPLACED.get(change.kind, 'is held by another tensor now')}"
        for layer in layers
        if not layer.replaced or layer.before is None
        for change in layer.changes
        if change.kind in _IDENTITY or not change.same_object
    ]
    return (
        few(told),
        "replace, convert or cast before the guarded step, and build the optimizer after that",
    )


_REPLACED = {
    "gone": "is gone",
    "new": "is new",
    "dtype": "was cast",
    "shape": "has another shape",
    "layout": "has another layout",
}


def _explain_flip(layers: list[Layer]) -> tuple[str, str]:
    why = (
        f"{name_list(layers)} {_was(layers)} in eval, then put in training mode, and {_did(layers)}"
    )
    return why, _keep_in_eval(layers)


def _explain_training(layers: list[Layer]) -> tuple[str, str]:
    why = f"{name_list(layers)} {_each(layers)}{_did(layers)}"
    if layers[0].seen.put_in_training is None:
        why += ", in training mode since before the step"
    if not any(layer.trains for layer in layers):
        why += "; requires_grad=False does not stop running statistics"
    return why, _keep_in_eval(layers)


def _keep_in_eval(layers: list[Layer]) -> str:
    names = name_list(layers)
    place = layers[0].seen.put_in_training
    if place is not None and place.tool is not None:
        return f"override train() on the model, so that it ends with .eval() on {names}"
    return f"call .eval() on {names} after every model.train(), or override train() on the model"


@dataclass(frozen=True, slots=True)
class Rule:
    """A cause, when it applies to a layer, and what it says of all layers that it applies to."""

    cause: str
    applies: Callable[[Layer], bool]
    explain: Callable[[list[Layer]], tuple[str, str]]


RULES = (
    Rule("no-stored-statistics", _lacks_statistics, _explain_lacking),
    Rule("replaced", _is_replaced, _explain_replaced),
    Rule("mode-flip", _is_flipped, _explain_flip),
    Rule("training-mode", _is_in_training, _explain_training),
)


def diagnose(layers: Iterable[Layer]) -> tuple[Cause, ...]:
    """Explain each layer by the first rule that applies, and group those that one place explains.

    Args:
        layers: the layers that changed.

    Returns:
        The causes, most specific first; a layer that no rule explains is in none of them.
    """
    grouped: dict[tuple[int, Place | None], list[Layer]] = {}
    for layer in layers:
        for number, rule in enumerate(RULES):
            if rule.applies(layer):
                grouped.setdefault((number, layer.seen.put_in_training), []).append(layer)
                break
    return tuple(
        _cause(RULES[number], place, grouped[number, place])
        for number, place in sorted(grouped, key=lambda group: group[0])
    )


def _cause(rule: Rule, place: Place | None, layers: list[Layer]) -> Cause:
    why, fix = rule.explain(layers)
    return Cause(
        name=rule.cause,  # type: ignore[arg-type]
        layers=tuple(layer.name for layer in layers),
        why=why,
        fix=fix,
        place=place,
    )


def few(texts: list[str], most: int = 3) -> str:
    """Join texts with semicolons, the first few of many."""
    more = len(texts) - most
    return "; ".join([*texts[:most], *([f"and {more} more"] if more > 0 else [])])


def _named(layer: Layer) -> str:
    return layer.name or "the model"


def name_list(layers: list[Layer]) -> str:
    """Return layers' names as a sentence has them, the first two of many."""
    names = [_named(layer) for layer in layers]
    if len(names) <= 2:
        return " and ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more"


def _did(layers: list[Layer]) -> str:
    """Return what layers did, as far as it was seen."""
    eager = [layer.seen.batches or layer.seen.failed for layer in layers]
    own = [layer.seen.own_forwards for layer in layers]
    if all(eager):
        return f"normalised {_span(eager)} with batch statistics"
    if all(own):
        return f"ran {_span(own)} in training mode, by a forward of {_its(layers)} own"
    return "normalised with batch statistics, some of it in compiled code"


def _span(counts: list[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least} to {most} batches" if least < most else f"{most} batch{'es' * (most > 1)}"


def _was(layers: list[Layer]) -> str:
    return "was" if len(layers) == 1 else "were"


def _has(layers: list[Layer]) -> str:
    return "has" if len(layers) == 1 else "have"


def _it(layers: list[Layer]) -> str:
    return "it" if len(layers) == 1 else "they"


def _its(layers: list[Layer]) -> str:
    return "its" if len(layers) == 1 else "their"


def _each(layers: list[Layer]) -> str:
    return "" if len(layers) == 1 else "each "
