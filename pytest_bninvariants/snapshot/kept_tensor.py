"""What a snapshot keeps of one tensor: its spec, and its bytes or their fingerprints."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.buckets import Bucket
from pytest_bninvariants.snapshot.tensor_bytes import Content, as_bytes, parts, shape_of


class TensorSpec(NamedTuple):
    """What a tensor is besides its bytes; an uninitialised one has no shape."""

    dtype: torch.dtype
    shape: tuple[int, ...] | None
    layout: torch.layout
    device: torch.device

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> TensorSpec:
        """Read the spec of a tensor."""
        return cls(tensor.dtype, shape_of(tensor), tensor.layout, tensor.device)

    def __str__(self) -> str:
        return "uninitialised" if self.shape is None else f"{short_name(self.dtype)} {self.shape}"


def short_name(value: torch.dtype | torch.layout) -> str:
    """Return the name of a dtype or layout without `torch.`."""
    return str(value).removeprefix("torch.")


class TensorCopy(NamedTuple):
    """A copy of one tensor: its spec, and the bytes and the shapes of its parts."""

    spec: TensorSpec
    content: Content
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> TensorCopy:
        """Copy a tensor.

        Raises:
            UnreadableTensor: if its values cannot be read.
        """
        pieces = parts(tensor)
        content = tuple(as_bytes(piece).clone() for piece in pieces)
        return cls(TensorSpec.from_tensor(tensor), content, shapes_of(pieces))


def shapes_of(tensors: Iterable[Tensor]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of tensors as plain values."""
    return tuple(tuple(tensor.shape) for tensor in tensors)


class KeptTensor(NamedTuple):
    """What a snapshot holds of one watched tensor.

    Args:
        watched: the tensor that held the name, and its name.
        requires_grad: whether it required a gradient.
        source: the copy of its bytes, or the bucket that holds them.
        number: its position in the bucket.
    """

    watched: WatchedTensor
    requires_grad: bool
    source: TensorCopy | Bucket
    number: int = 0

    @property
    def device(self) -> torch.device:
        """Return where the tensor was."""
        return self.spec.device

    @property
    def is_exact(self) -> bool:
        """Tell whether its bytes are kept, and not only fingerprints."""
        return isinstance(self.source, TensorCopy) or self.source.method is None

    @property
    def spec(self) -> TensorSpec:
        """Return what it was besides its bytes."""
        if isinstance(self.source, TensorCopy):
            return self.source.spec
        shape = tuple(self.source.shapes[self.number])
        return TensorSpec(self.source.dtype, shape, torch.strided, self.source.device)

    @property
    def tensor_copy(self) -> TensorCopy | None:
        """Return its copy, valid while this object lives; None if only fingerprints are kept."""
        if isinstance(self.source, TensorCopy):
            return self.source
        flat, spec = self.source.bytes_of(self.number), self.spec
        return None if flat is None else TensorCopy(spec, (flat,), (spec.shape or (),))

    @property
    def value_bytes(self) -> Tensor | None:
        """Return its bytes, if they are kept and are just its values in order."""
        copy, spec = self.tensor_copy, self.spec
        if copy is None or len(copy.content) != 1 or spec.layout != torch.strided:
            return None
        (content,), (shape,) = copy.content, copy.shapes
        is_whole = content.numel() == math.prod(shape) * spec.dtype.itemsize
        return content if is_whole else None

    @property
    def content(self) -> Content:
        """Return its bytes, valid while this object lives; the snapshot must be exact."""
        copy = self.tensor_copy
        assert copy is not None
        return copy.content

    @property
    def values(self) -> Tensor:
        """Return the values of its first part, in their shape; the snapshot must be exact."""
        copy = self.tensor_copy
        assert copy is not None
        return copy.content[0].view(self.dtype).view(copy.shapes[0])

    @property
    def dtype(self) -> torch.dtype:
        """Return its dtype."""
        return self.spec.dtype

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Return its shape; None while it was uninitialised."""
        return self.spec.shape
