"""Snapshots of a module's outputs, and how later outputs differ from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pytest_bninvariants.errors import describe
from pytest_bninvariants.evaluation.pytrees import leaves
from pytest_bninvariants.evaluation.rounding import Tolerance
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.changes import changes_since
from pytest_bninvariants.snapshot.snapshot import Snapshot, take_snapshot
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Change


@dataclass(frozen=True, slots=True)
class OutputSnapshot:
    """A module's outputs at one moment, by path.

    Args:
        tensors: the tensors among them.
        others: the other values.
    """

    tensors: Snapshot
    others: dict[str, object]

    @classmethod
    def take(cls, value: object, name: str, *, exact: bool) -> OutputSnapshot:
        """Return a snapshot of what a module returned.

        Args:
            value: tensors, nested in any way.
            name: the name of the whole output.
            exact: whether the values are needed, and not only whether they change.

        Raises:
            GateError: if a tensor cannot be compared, e.g. because it is on the meta device.
        """
        outputs = dict(leaves(value, name))
        tensors = {
            path: WatchedTensor(name=path, layer=path, kind="output", tensor=leaf)
            for path, leaf in outputs.items()
            if isinstance(leaf, Tensor)
        }
        others = {path: leaf for path, leaf in outputs.items() if path not in tensors}
        with undisturbed():
            return cls(take_snapshot(tensors, exact=exact), others)

    @property
    def paths(self) -> list[str]:
        """Return the paths of all outputs."""
        return [*self.tensors, *self.others]

    def changes_to(self, now: OutputSnapshot, tolerance: Tolerance) -> list[Change]:
        """Return how later outputs differ: in their values, or because outputs are gone or new."""
        mixed = [path for path in self.tensors if path in now.others]
        mixed += [path for path in self.others if path in now.tensors]
        with undisturbed():
            changes = [_change(path, self._shown(path), now._shown(path)) for path in mixed]
            changes += self._tensor_changes(now, tolerance, mixed)
            changes += self._other_changes(now, mixed)
        return changes

    def _tensor_changes(
        self, now: OutputSnapshot, tolerance: Tolerance, mixed: list[str]
    ) -> Iterator[Change]:
        kept, tensors = self.tensors, now.tensors.tensors
        new = [path for path in tensors if path not in kept and path not in mixed]
        for change in changes_since(kept, tensors, new):
            if change.name in mixed:
                continue
            if change.kind != "values" or tolerance.exact or kept[change.name].value_bytes is None:
                yield change
            elif excess := tolerance.excess(kept[change.name], tensors[change.name].tensor):
                yield replace(change, text=f"{change.text}; {excess} beyond the tolerance")

    def _other_changes(self, now: OutputSnapshot, mixed: list[str]) -> Iterator[Change]:
        for path in dict.fromkeys([*self.others, *now.others]):
            if path in mixed:
                continue
            if path not in now.others:
                yield _change(path, self._shown(path), "gone")
            elif path not in self.others:
                yield replace(_change(path, "new", now._shown(path)), kind="new")
            elif not _equal(self.others[path], now.others[path]):
                yield _change(path, self._shown(path), now._shown(path))

    def _shown(self, path: str) -> str:
        if path in self.tensors:
            kept = self.tensors[path]
            return f"{str(kept.dtype).removeprefix('torch.')} {kept.shape}"
        return describe(self.others[path])


def _change(path: str, before: str, after: str) -> Change:
    return Change(name=path, layer=path, kind="values", text=f"{before} -> {after}")


def _equal(one: object, other: object) -> bool:
    """Tell whether two values are equal; NaN equals NaN."""
    if one is other:
        return True
    equal: Any = one == other
    if hasattr(equal, "all"):  # arrays compare value by value
        return bool(equal.all())
    return bool(equal) or bool(one != one and other != other)
