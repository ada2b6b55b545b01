"""A model's tensors by key, stored in columns: making ten thousand rows would take long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from pytest_bninvariants.selection.lazy_mapping import LazyMapping
from pytest_bninvariants.selection.walk import Kind


class WatchedTensor(NamedTuple):
    """One watched tensor, under one of its names.

    Args:
        name: qualified name in the model.
        layer: qualified name of the module that owns it.
        kind: whether it is registered as a parameter or as a buffer, or is a module's output.
        tensor: the tensor itself.
    """

    name: str
    layer: str
    kind: Kind
    tensor: Tensor


class TensorColumns(NamedTuple):
    """What a table says of its tensors: one list for each property, in the tensors' order.

    Args:
        keys: qualified names without wrapper prefixes.
        names: qualified names.
        layers: qualified names of the modules that own them.
        kinds: what they are registered as.
    """

    keys: list[str]
    names: list[str]
    layers: list[str]
    kinds: list[Kind]


class TensorTable(LazyMapping[WatchedTensor]):
    """A model's tensors by key.

    Args:
        columns: what the table says of the tensors.
        tensors: the tensors, in the same order.
    """

    def __init__(self, columns: TensorColumns, tensors: list[Tensor]) -> None:
        self.columns, self.tensors = columns, tensors

    @classmethod
    def from_mapping(cls, watched: Mapping[str, WatchedTensor]) -> TensorTable:
        """Return a table of these rows, or the mapping itself if it is a table."""
        if isinstance(watched, TensorTable):
            return watched
        rows = watched.values()
        columns = TensorColumns(
            [*watched],
            [row.name for row in rows],
            [row.layer for row in rows],
            [row.kind for row in rows],
        )
        return cls(columns, [row.tensor for row in rows])

    @cached_property
    def by_key(self) -> dict[str, Tensor]:
        """Return the tensors alone, by key."""
        return dict(zip(self.columns.keys, self.tensors, strict=True))

    def _make_values(self) -> dict[str, WatchedTensor]:
        keys, names, layers, kinds = self.columns
        rows = map(WatchedTensor, names, layers, kinds, self.tensors)
        return dict(zip(keys, rows, strict=True))

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.keys)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, key: object) -> bool:
        return key in self.by_key
