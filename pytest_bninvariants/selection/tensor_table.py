"""A model's tensors by key, in columns: a row for each of ten thousand would take long to make."""

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
        """Return a table of these rows; a table is returned as it is."""
        if isinstance(watched, TensorTable):
            return watched
        every = watched.values()
        columns = TensorColumns(
            [*watched],
            [each.name for each in every],
            [each.layer for each in every],
            [each.kind for each in every],
        )
        return cls(columns, [each.tensor for each in every])

    @cached_property
    def by_key(self) -> dict[str, Tensor]:
        """Return the tensors without what the columns say of them."""
        return dict(zip(self.columns.keys, self.tensors, strict=True))

    def _make(self) -> dict[str, WatchedTensor]:
        keys, names, layers, kinds = self.columns
        made = map(WatchedTensor, names, layers, kinds, self.tensors)
        return dict(zip(keys, made, strict=True))

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.keys)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, key: object) -> bool:
        return key in self.by_key
