"""Keep a module's outputs, and tell how others differ from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pytest_bninvariants.errors import GateError, shown
from pytest_bninvariants.invariants import snapshot
from pytest_bninvariants.invariants.names import Watched
from pytest_bninvariants.invariants.snapshot import Kept, Snapshot
from pytest_bninvariants.invariants.trees import leaves
from pytest_bninvariants.invariants.undisturbed import undisturbed
from pytest_bninvariants.invariants.verdict import Change


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far values may be apart: |d| <= atol + rtol |before|; with both 0, bits must agree.

    Raises:
        GateError: a value is no number from 0.
    """

    rtol: float = 0.0
    atol: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 <= value < math.inf):
                raise GateError(f"{name}= takes a number from 0; got {shown(value)}")

    @property
    def exact(self) -> bool:
        """Tell whether bits must agree."""
        return self.rtol == self.atol == 0

    @property
    def options(self) -> dict[str, object]:
        """Return what is not at its default."""
        given = {"rtol": self.rtol, "atol": self.atol}
        return {name: value for name, value in given.items() if value}

    def excess(self, kept: Kept, tensor: Tensor) -> int:
        """Count the values of a tensor that are too far from those that were kept."""
        old = kept.content[0].view(kept.dtype).view(tensor.shape)
        wide = torch.complex128 if old.is_complex() else torch.float64
        old, new = old.to(wide), tensor.detach().to(old.device, wide)
        near = (new - old).abs() <= self.atol + self.rtol * old.abs()
        return int((~(near | (new == old) | (new.isnan() & old.isnan()))).sum())


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs by path.

    Args:
        tensors: the tensors among them.
        others: all else.
    """

    tensors: Snapshot
    others: dict[str, object]

    @classmethod
    def of(cls, value: object, name: str) -> Outputs:
        """Keep what a module returned.

        Args:
            value: tensors, nested in any way.
            name: what the whole is called.

        Raises:
            GateError: a tensor cannot be compared, e.g. because it is on the meta device.
        """
        found = dict(leaves(value, name))
        tensors = {
            path: Watched(name=path, layer=path, kind="output", tensor=leaf)
            for path, leaf in found.items()
            if isinstance(leaf, Tensor)
        }
        others = {path: leaf for path, leaf in found.items() if path not in tensors}
        with undisturbed():
            return cls(snapshot.take(tensors, exact=True), others)

    @property
    def paths(self) -> list[str]:
        """Return the paths of all outputs."""
        return [*self.tensors, *self.others]

    def differences(self, now: Outputs, tolerance: Tolerance) -> list[Change]:
        """Tell which outputs are others now, are gone, or are new."""
        mixed = [path for path in self.tensors if path in now.others]
        mixed += [path for path in self.others if path in now.tensors]
        with undisturbed():
            found = [_change(path, self._shown(path), now._shown(path)) for path in mixed]
            found += self._of_tensors(now, tolerance, mixed)
            found += self._of_others(now, mixed)
        return found

    def _of_tensors(self, now: Outputs, tolerance: Tolerance, mixed: list[str]) -> Iterator[Change]:
        kept, there = self.tensors, now.tensors.tensors
        new = [path for path in there if path not in kept and path not in mixed]
        for change in snapshot.changes(kept, there, new):
            if change.name in mixed:
                continue
            if change.kind != "values" or tolerance.exact or not _plain(kept[change.name]):
                yield change
            elif excess := tolerance.excess(kept[change.name], there[change.name].tensor):
                yield replace(change, text=f"{change.text}; {excess} beyond the tolerance")

    def _of_others(self, now: Outputs, mixed: list[str]) -> Iterator[Change]:
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
        return shown(self.others[path])


def _change(path: str, before: str, after: str) -> Change:
    return Change(name=path, layer=path, kind="values", text=f"{before} -> {after}")


def _plain(kept: Kept) -> bool:
    return len(kept.content) == 1 and kept.layout == torch.strided


def _equal(one: object, other: object) -> bool:
    """Tell whether two values are equal; NaN equals NaN."""
    if one is other:
        return True
    same: Any = one == other
    if hasattr(same, "all"):  # of arrays
        return bool(same.all())
    return bool(same) or bool(one != one and other != other)
