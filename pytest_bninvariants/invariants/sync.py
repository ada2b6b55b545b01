"""The invariant `in_sync`: two modules hold the same state, or one follows the other's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, overload

from torch import Tensor, nn

from pytest_bninvariants.errors import GateError, shown
from pytest_bninvariants.invariants import snapshot
from pytest_bninvariants.invariants.averaging import AverageGuard, Buffers
from pytest_bninvariants.invariants.guards import Guard, at_once
from pytest_bninvariants.invariants.pairing import Pair
from pytest_bninvariants.invariants.selection import Scope, Watched, is_bn_layer, layers_of, names_of
from pytest_bninvariants.invariants.spelling import model_of, names_among, spelled
from pytest_bninvariants.invariants.undisturbed import undisturbed
from pytest_bninvariants.invariants.verdict import Cause, Change, Verdict
from pytest_bninvariants.invariants.wording import name_list


class SyncGuard(Guard):
    """Hold, when a step ends, that two modules hold the same bytes by name.

    Args:
        pair: the modules.
        scope: what is compared.
        spelling: the guard as its user wrote it.
    """

    def __init__(self, pair: Pair, scope: Scope, spelling: str) -> None:
        super().__init__(pair.one, spelling)
        self._pair, self._scope = pair, scope

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """Return both."""
        return self._pair.one, self._pair.other

    def _begin(self) -> None:
        """What is judged is what the step leaves."""

    def _judge(self) -> Verdict:
        first, second = self._pair.tensors(self._scope, self.spelled)
        with undisturbed():
            new = [key for key in second if key not in first]
            found = snapshot.changes(snapshot.take(first), second, new)
            causes = tuple(_causes(found, first, second, self._pair))
        one, other = self._pair.names
        changes = tuple(_worded(change, one, other) for change in found)
        layers = {watched.layer for watched in (*first.values(), *second.values())}
        return Verdict(
            guard=self.spelled,
            noun="layer",
            broke="differ" if len({change.layer for change in changes}) > 1 else "differs",
            model=self._pair.types,
            source=self._pair.source,
            layers=len(layers),
            tensors=None,
            changes=changes,
            causes=causes,
            notes=(f"a row has the value in {one}, then the one in {other}",) if changes else (),
        )


def _worded(change: Change, one: str, other: str) -> Change:
    if change.kind == "gone":
        return replace(change, text=f"only in {one}")
    if change.kind == "new":
        return replace(change, text=change.text.replace("new:", f"only in {other}:"))
    return change


def _causes(
    found: list[Change], first: dict[str, Watched], second: dict[str, Watched], pair: Pair
) -> Iterable[Cause]:
    """Yield why running statistics differ, if it can be seen: they are still the initial ones."""
    behind: dict[int, list[str]] = {}
    names = {watched.name: key for key, watched in first.items()}
    for change in found:
        statistics = change.name.endswith(("running_mean", "running_var"))
        if not statistics or change.kind != "values" or change.name not in names:
            continue
        key = names[change.name]
        for side, watched in enumerate((first[key], second[key])):
            if _is_initial(watched.tensor, key):
                behind.setdefault(side, []).append(change.layer)
    for side, layers in behind.items():
        behind_name, ahead = pair.names[side], pair.names[1 - side]
        yield left_behind(list(dict.fromkeys(layers)), behind_name, ahead, "still initial")


def _is_initial(tensor: Tensor, key: str) -> bool:
    return bool((tensor == (1.0 if key.endswith("running_var") else 0.0)).all())
