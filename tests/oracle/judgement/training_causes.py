"""Whether the causes of `bn_updates`, `trains` and `in_sync` really happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pytest_bninvariants import Verdict
from tests.invariants.neutral_runs import in_bytes
from tests.oracle.deeds import Call, Deed, Held, bare
from tests.oracle.judgement.causes import LOADS
from tests.oracle.judgement.updates import (
    NAMES,
    LayerHistory,
    decode,
    histories,
    is_finite,
    is_positive,
    is_right,
)
from tests.oracle.scopes import Ask
from tests.oracle.timeline import Stretch


@dataclass(frozen=True)
class Updates:
    """One layer's updates, and what a guard expects of them.

    Args:
        layer: what became of its statistics.
        stretch: what was done.
        expected: how many updates it should make; None for one in each forward.
    """

    layer: LayerHistory
    stretch: Stretch
    expected: int | None

    @property
    def used_batch(self) -> list[Call]:
        """Return the calls that normalised with batch statistics."""
        return [call for call in self.layer.calls if call.used_batch]

    @property
    def is_replaced(self) -> bool:
        """Tell whether another module had the layer's name at some time."""
        name = min(self.layer.names)
        return any(m.get(name) is not self.stretch.modules[0][name] for m in self.stretch.modules)

    @property
    def ends_unusable(self) -> bool:
        """Tell whether what has the layer's name in the end has statistics that none can use."""
        mean, var = (self.stretch.last.tensors[f"{min(self.layer.names)}.{n}"] for n in NAMES[:2])
        return not (is_finite(mean) and is_finite(var) and is_positive(var))

    def did(self, *names: str) -> bool:
        """Tell whether any of these actions was done."""
        return any(deed.name in names for deed in self.stretch.deeds)


def _repeats(updates: Updates) -> bool:
    batches = [in_bytes(call.batch) for call in updates.used_batch]
    return any(batches.count(batch) > 1 for batch in batches)


def _counter_says_more(updates: Updates) -> bool:
    """Tell whether the counter, by which another module of the name is judged, counts too much."""
    name = f"{min(updates.layer.names)}.{NAMES[2]}"
    read = [reading.tensors.get(name) for reading in (updates.stretch.first, updates.stretch.last)]
    if not updates.is_replaced or read[0] is None or read[1] is None:
        return False
    return int(decode(read[1])) - int(decode(read[0])) > (updates.expected or 0)


def _counted(call: Call) -> int | None:
    before, after = (s["num_batches_tracked"] for s in (call.before, call.after))
    return None if before is None or after is None else int(after) - int(before)


UPDATE_CHECKS: dict[str, Callable[[Updates], bool]] = {
    "recomputation": lambda each: any(call.in_backward for call in each.used_batch),
    "extra-forward": lambda each: (
        len(each.used_batch) > (each.expected or 0) or _repeats(each) or _counter_says_more(each)
    ),
    "update-in-eval": lambda each: any(not call.training for call in each.used_batch),
    "stuck-in-eval": lambda each: any(not call.training for call in each.layer.calls),
    "not-run": lambda each: not each.layer.calls,
    "momentum-zero": lambda each: any(call.momentum in (0, None) for call in each.layer.calls),
    "tracking-off": lambda each: any(not call.tracks for call in each.layer.calls),
    "updated-elsewhere": lambda each: each.did("call_functionally_with_others"),
    "not-written": lambda each: (
        each.layer.is_frozen_type or any(call not in each.layer.updates for call in each.used_batch)
    ),
    "fewer-forwards": lambda each: len(each.layer.updates) < (each.expected or 0),
    "wrong-update": lambda each: any(not is_right(call) for call in each.layer.updates),
    "not-finite": lambda each: each.ends_unusable,
    "miscounted": lambda each: any(_counted(call) != 1 for call in each.layer.updates),
    "replaced": lambda each: each.is_replaced,
    "undone": lambda each: bool(each.layer.updates) and (each.layer.is_back or each.layer.written),
    "loaded": lambda each: each.layer.written and each.did(*LOADS),
    "reset": lambda each: each.layer.written,
    "in-place": lambda each: each.layer.written,
}


def complaints_about_updates(
    verdict: Verdict, ask: Ask, stretch: Stretch, expected: int | None
) -> Iterator[str]:
    """Yield what is wrong with the causes that a verdict names for BN layers."""
    layers = {name: each for each in histories(ask, stretch) for name in each.names}
    for cause in verdict.causes:
        known = {name: layers[name] for name in map(bare, cause.layers) if name in layers}
        check = UPDATE_CHECKS.get(cause.name)
        if known and check is None:
            yield f"{cause.name} cannot have happened"
        for name, layer in known.items():
            if check is not None and not check(Updates(layer, stretch, expected)):
                yield f"{cause.name} is not what happened to {name}"


@dataclass(frozen=True)
class Parameter:
    """One parameter, and what was done.

    Args:
        name: its name.
        stretch: what was done.
    """

    name: str
    stretch: Stretch

    @property
    def steps(self) -> list[Held]:
        """Return the steps of optimizers that held it."""
        return [step[self.name] for deed in self.stretch.deeds for step in self._steps(deed)]

    def _steps(self, deed: Deed) -> list[dict[str, Held]]:
        return [step for step in deed.steps if self.name in step]

    @property
    def is_gone(self) -> bool:
        """Tell whether no parameter has its name at the end."""
        return self.name not in self.stretch.last.parameters

    @property
    def was_rebound(self) -> bool:
        """Tell whether another tensor had its name at some time."""
        return len({id(tensors.get(self.name)) for tensors in self.stretch.tensors}) > 1

    @property
    def was_tied(self) -> bool:
        """Tell whether its tensor has another name at the end."""
        mine, tensors = self.stretch.tensors[-1].get(self.name), self.stretch.tensors[-1]
        return any(name != self.name and each is mine for name, each in tensors.items())

    @property
    def was_written(self) -> bool:
        """Tell whether something other than a step set its values."""
        for number, deed in enumerate(self.stretch.deeds):
            before, after = (r.tensors.get(self.name) for r in self.stretch.readings[number:][:2])
            steps = self._steps(deed)
            left = in_bytes(steps[-1][self.name].after) if steps else before
            if left != after:
                return True
        return self.was_rebound

    def had(self, *gradients: str) -> bool:
        """Tell whether it had such a gradient in some step."""
        return any(step.gradient in gradients for step in self.steps)

    @property
    def stood_still(self) -> bool:
        """Tell whether some step with a gradient left it as it was."""
        finite = [step for step in self.steps if step.gradient == "finite"]
        return any(in_bytes(step.before) == in_bytes(step.after) for step in finite)

    @property
    def moved(self) -> bool:
        """Tell whether some step moved it."""
        return any(in_bytes(step.before) != in_bytes(step.after) for step in self.steps)


PARAMETER_CHECKS: dict[str, Callable[[Parameter], bool]] = {
    "replaced": lambda each: each.is_gone,
    "not-finite": lambda each: (
        each.had("not finite") or not is_finite(each.stretch.last.tensors[each.name])
    ),
    "loaded": lambda each: any(deed.name in LOADS for deed in each.stretch.deeds),
    "in-place": lambda each: each.was_written,
    "tied": lambda each: each.was_tied,
    "requires-grad-off": lambda each: not each.stretch.last.parameters[each.name],
    "not-in-optimizer": lambda each: not each.steps or each.was_rebound,
    "undone": lambda each: each.moved,
    "no-gradient": lambda each: each.had("none"),
    "zero-gradient": lambda each: each.had("zero"),
    "learning-rate-0": lambda each: any(step.rate == 0 for step in each.steps),
    "skipped": lambda each: each.stood_still,
    "rounded-away": lambda each: each.stood_still,
}


def complaints_about_parameters(verdict: Verdict, stretch: Stretch) -> Iterator[str]:
    """Yield what is wrong with the causes that a verdict of `trains` names for parameters."""
    for cause in verdict.causes:
        for name in map(bare, cause.tensors):
            check = PARAMETER_CHECKS.get(cause.name)
            if check is None or not check(Parameter(name, stretch)):
                yield f"{cause.name} is not what happened to {name}"


UPDATES_OF_AVERAGES = (
    "update_the_teacher",
    "update_the_teachers_parameters",
    "update_the_teacher_with_another_decay",
)


def complaints_about_average(verdict: Verdict, stretch: Stretch) -> Iterator[str]:
    """Yield what is wrong with the causes that a verdict of `in_sync` names."""
    updates = [n for n, d in enumerate(stretch.deeds) if d.name in UPDATES_OF_AVERAGES]
    parameters = [reading.parameters for reading in stretch.readings]
    moved = [
        n
        for n, (one, two) in enumerate(zip(stretch.readings, stretch.readings[1:], strict=False))
        if one.tensors != two.tensors
    ]
    names = [deed.name for deed in stretch.deeds]
    first, last = stretch.first.teacher, stretch.last.teacher
    for cause in verdict.causes:
        tensors = [*map(bare, cause.tensors)]
        happened = {
            "other-decay": UPDATES_OF_AVERAGES[2] in names or len(updates) > 1,
            "left-behind": all(first.get(name) == last.get(name) for name in tensors),
            "updated-early": any(move > update for move in moved for update in updates),
            "other-buffers": not any(name in parameters[-1] for name in tensors),
        }
        if not happened.get(cause.name, False):
            yield f"{cause.name} is not what happened to {tensors or cause.layers}"
