"""A BN layer's statistics at a moment: their bytes on the host, or copies on their way."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ctypes import string_at
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from operator import is_

import torch
from torch import Tensor, nn

from pytest_bninvariants.selection.bn_layers import BN_STATE
from pytest_bninvariants.snapshot.buckets import fit_in_buckets
from pytest_bninvariants.snapshot.reads.together import read_together
from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS, content_of


def statistics_of(layer: nn.Module) -> dict[str, Tensor]:
    """Return a layer's statistics and counter by name, without those that are None."""
    buffers = layer._buffers.items()
    return {name: each for name, each in buffers if name in BN_STATE and each is not None}


@dataclass(frozen=True, slots=True)
class StatisticsSnapshot:
    """A layer's statistics at a moment, on the host.

    Args:
        tensors: the tensors themselves, by name.
        contents: their bytes; None for a tensor that cannot be read.
    """

    tensors: dict[str, Tensor]
    contents: dict[str, bytes | None]

    @property
    def pieces(self) -> list[Tensor]:
        """Return what is yet to be read on the host, which is nothing."""
        return []

    def on_host(self, pieces: Iterator[Tensor]) -> StatisticsSnapshot:
        """Return this snapshot."""
        return self

    @property
    def unread(self) -> StatisticsSnapshot:
        """Return a snapshot of the same tensors that could not be read."""
        return StatisticsSnapshot(self.tensors, dict.fromkeys(self.contents))

    @property
    def counter(self) -> int | None:
        """Return the counter's value; None if the layer has no counter, or it cannot be read."""
        content, tensor = self.contents.get(BN_STATE[2]), self.tensors.get(BN_STATE[2])
        if content and tensor is not None and tensor.dtype is torch.int64:
            return int.from_bytes(content, sys.byteorder, signed=True)
        values = self.values(BN_STATE[2])
        return None if values is None else int(values.sum())

    def values(self, name: str) -> Tensor | None:
        """Return the values of a tensor, flat, without any before it is initialised.

        None if the layer has no such tensor, or it cannot be read.
        """
        content, tensor = self.contents.get(name), self.tensors.get(name)
        if content is None or tensor is None:
            return None
        if not content:
            return torch.empty(0, dtype=tensor.dtype, device="cpu")
        if len(content) != tensor.nbytes:  # a class of its own, which keeps more than the values
            return None
        return torch.frombuffer(bytearray(content), dtype=tensor.dtype)

    def all_equal(self, name: str, value: float) -> bool:
        """Tell whether all values of a tensor equal this one, or it does not exist."""
        if name not in self.contents:
            return True
        values = self.values(name)
        return values is not None and bool((values == value).all())

    @property
    def readable(self) -> bool:
        """Tell whether its values could be read."""
        return None not in self.contents.values()

    @property
    def is_new(self) -> bool:
        """Tell whether these are the statistics of a layer that is new, or reset."""
        return all(
            self.all_equal(name, value) for name, value in zip(BN_STATE, (0, 1, 0), strict=True)
        )

    def differs_from(self, other: StatisticsSnapshot) -> set[str]:
        """Return the names of the tensors whose bytes differ."""
        mine, theirs = self.contents, other.contents
        if mine == theirs:
            return set()
        names = mine.keys() | theirs.keys()
        return {name for name in names if mine.get(name) != theirs.get(name)}

    @property
    def digest(self) -> bytes:
        """Return a digest of the bytes of all tensors."""
        return digest_of(content or b"" for _, content in sorted(self.contents.items()))

    def has_tensors(self, tensors: dict[str, Tensor]) -> bool:
        """Tell whether it is a snapshot of these very tensors."""
        return all(self.tensors.get(name) is tensors.get(name) for name in BN_STATE)


@dataclass(frozen=True, slots=True)
class StatisticsCopy:
    """Copies of a layer's statistics at a moment, which may lie on a device.

    Args:
        tensors: the tensors themselves, by name.
        pieces: the copies, flat uint8 tensors.
        sizes: how many of the bytes each tensor has, in order; None for one that cannot be read.
    """

    tensors: dict[str, Tensor]
    pieces: list[Tensor]
    sizes: dict[str, int | None]

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> StatisticsCopy:
        """Copy tensors, on their own devices."""
        named = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
        joined = _join([tensor for _, tensor in named])
        if joined is not None:
            return cls(tensors, [joined], {name: tensor.nbytes for name, tensor in named})
        copies = {name: content_of(tensor) for name, tensor in named}
        sizes = {
            name: None if c is None else sum(p.numel() for p in c) for name, c in copies.items()
        }
        return cls(tensors, [piece for c in copies.values() for piece in c or ()], sizes)

    def on_host(self, pieces: Iterator[Tensor]) -> StatisticsSnapshot:
        """Return the snapshot of these statistics.

        Args:
            pieces: yields what `pieces` has, on the host, and maybe more.
        """
        content = b"".join(_bytes_of(piece) for piece in islice(pieces, len(self.pieces)))
        contents: dict[str, bytes | None] = {}
        start = 0
        for name, size in self.sizes.items():
            contents[name] = None if size is None else content[start : start + size]
            start += size or 0
        return StatisticsSnapshot(self.tensors, contents)

    @property
    def unread(self) -> StatisticsSnapshot:
        """Return a snapshot of the same tensors that could not be read."""
        return StatisticsSnapshot(self.tensors, dict.fromkeys(self.sizes))


StatisticsReading = StatisticsSnapshot | StatisticsCopy


class StatisticsReader:
    """Read a layer's statistics again and again: what kind of tensors they are is found out once.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self._known: dict[str, Tensor] = {}
        self._memory: list[tuple[int, int]] = []

    def read(self) -> StatisticsReading:
        """Read the statistics as they are now; copy those of a device where they lie."""
        tensors = statistics_of(self.layer)
        if not tensors or not self._know(tensors):
            copy = StatisticsCopy.from_tensors(tensors)
            waits = any(piece.device.type != "cpu" for piece in copy.pieces)
            return copy if waits else copy.on_host(iter(copy.pieces))
        read = map(string_at, *zip(*self._memory, strict=True))
        return StatisticsSnapshot(tensors, dict(zip(tensors, read, strict=True)))

    def _know(self, tensors: dict[str, Tensor]) -> bool:
        """Tell whether these are contiguous tensors of the host, and know where they lie."""
        each, known = list(tensors.values()), self._known
        same = known.keys() == tensors.keys() and all(map(is_, known.values(), each))
        if same and self._memory == _memory_of(each):
            return True
        self._known = {}
        with suppress(*READ_ERRORS):
            if fit_in_buckets(each) and all(map(_lies_on_host, each)):
                self._known, self._memory = tensors, _memory_of(each)
        return bool(self._known)


def read_statistics(readers: Iterable[StatisticsReader]) -> list[StatisticsSnapshot]:
    """Return the statistics of layers; the host waits once for each device."""
    readings = [reader.read() for reader in readers]
    pieces = iter(read_together([piece for each in readings for piece in each.pieces]))
    return [each.on_host(pieces) for each in readings]


def digest_of(parts: Iterable[bytes]) -> bytes:
    """Return a digest of bytes."""
    return blake2b(b"".join(parts), digest_size=16).digest()


def values_digest(tensor: Tensor) -> bytes:
    """Return a digest of the bytes of a contiguous tensor of the host."""
    return digest_of([_bytes_of(tensor)])


def _memory_of(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """Return addresses and sizes in bytes of plain tensors."""
    return [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]


def _lies_on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_neg()


def _bytes_of(tensor: Tensor) -> bytes:
    """Return the bytes of a contiguous tensor of the host."""
    return string_at(tensor.data_ptr(), tensor.nbytes)


def _join(tensors: list[Tensor]) -> Tensor | None:
    """Copy the bytes of tensors into one; None if they are not plain memory on one device."""
    with suppress(*READ_ERRORS):
        if tensors and fit_in_buckets(tensors):
            return torch.cat([each.resolve_neg().reshape(-1).view(torch.uint8) for each in tensors])
    return None
