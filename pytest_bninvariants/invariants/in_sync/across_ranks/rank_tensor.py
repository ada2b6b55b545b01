"""What a rank tells the others about its tensors, and how they differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.evaluation.rank_exchange import rank_list
from pytest_bninvariants.selection.walk import Kind
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor, short_name
from pytest_bninvariants.snapshot.tensor_bytes import dense_values, sha256_of
from pytest_bninvariants.snapshot.value_difference import describe_difference
from pytest_bninvariants.state_change.value_patterns import has_initial_values
from pytest_bninvariants.torch_internals.sharding import Shard

_MOST_CLASSES = 3


class RankTensor(NamedTuple):
    """What a rank tells the others about one of its tensors.

    Args:
        kind: whether it is a parameter or a buffer.
        layer: the name of the module that owns it.
        dtype: its dtype.
        shape: the shape of all its shards together; None of a flat parameter's shard.
        shard: which part of the tensor the rank holds.
        digest: the SHA-256 of its bytes.
        mean: the mean of its values; None if it has none.
        is_initial: whether it is as in a new BN layer.
    """

    kind: Kind
    layer: str
    dtype: torch.dtype
    shape: tuple[int, ...] | None
    shard: Shard
    digest: str
    mean: float | None
    is_initial: bool

    @classmethod
    def from_kept(cls, kept: KeptTensor, shard: Shard, *, is_flat: bool) -> RankTensor:
        """Describe a tensor by its snapshot.

        Args:
            kept: its snapshot, which has its bytes.
            shard: which part of the tensor this rank holds.
            is_flat: whether it is a shard of a flat parameter, whose shape differs between ranks.
        """
        watched = kept.watched
        return cls(
            kind=watched.kind,
            layer=watched.layer,
            dtype=kept.dtype,
            shape=None if is_flat else kept.shape,
            shard=shard,
            digest=sha256_of(kept.content),
            mean=_mean(watched.tensor),
            is_initial=has_initial_values(watched.tensor, watched.name.rpartition(".")[2]),
        )

    @property
    def spec(self) -> str:
        """Return its dtype and shape for a sentence."""
        return short_name(self.dtype) + ("" if self.shape is None else f" {self.shape}")

    @property
    def shown(self) -> str:
        """Return how a verdict shows it."""
        if self.mean is None:
            return self.spec
        return f"{self.mean:.6g}" if self.shape == () else f"mean {self.mean:.6g}"


def _mean(tensor: Tensor) -> float | None:
    values = dense_values(tensor)
    if values is None or values.numel() == 0 or values.is_complex():
        return None
    return float(values.detach().to("cpu").double().mean())


class ComparedTensor(NamedTuple):
    """One name on all ranks.

    Args:
        name: the name.
        ranks: the numbers of the ranks.
        tensors: what each rank has under it; None if nothing.
    """

    name: str
    ranks: Sequence[int]
    tensors: Sequence[RankTensor | None]

    @property
    def present(self) -> list[tuple[int, RankTensor]]:
        """Return the ranks that have it, and what they have."""
        pairs = zip(self.ranks, self.tensors, strict=True)
        return [(rank, tensor) for rank, tensor in pairs if tensor is not None]

    @property
    def missing_on(self) -> list[int]:
        """Return the ranks that lack it."""
        pairs = zip(self.ranks, self.tensors, strict=True)
        return [rank for rank, tensor in pairs if tensor is None]

    @property
    def first(self) -> RankTensor:
        """Return what the first rank that has it has."""
        return self.present[0][1]

    @property
    def is_compared(self) -> bool:
        """Tell whether any two ranks hold the same part of it."""
        shards = [tensor.shard for _, tensor in self.present]
        return len(set(shards)) < len(shards) or bool(self.missing_on)

    @property
    def classes(self) -> list[list[int]]:
        """Return the ranks that hold the same bytes together, for the first part that differs.

        It is empty if all ranks that hold the same part agree.
        """
        by_spec = self._grouped([(rank, each.spec) for rank, each in self.present])
        if len(by_spec) > 1:
            return by_spec
        for shard in dict.fromkeys(each.shard for _, each in self.present):
            holders = [(r, each.digest) for r, each in self.present if each.shard == shard]
            by_digest = self._grouped(holders)
            if len(by_digest) > 1:
                return by_digest
        return []

    @staticmethod
    def _grouped(keys: list[tuple[int, str]]) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for rank, key in keys:
            groups.setdefault(key, []).append(rank)
        return list(groups.values())

    @property
    def differs(self) -> bool:
        """Tell whether ranks disagree."""
        return bool(self.missing_on or self.classes)

    def describe(self, contents: dict[int, bytes]) -> str:
        """Say on which ranks it is what.

        Args:
            contents: its bytes on the ranks, as far as they were exchanged.
        """
        if self.missing_on:
            return f"only on {rank_list([rank for rank, _ in self.present])}"
        return "; ".join(filter(None, (", ".join(self._shown()), self._distance(contents))))

    def _shown(self) -> Iterator[str]:
        shown = dict(self.present)
        specs_differ = len({tensor.spec for tensor in shown.values()}) > 1
        for ranks in self.classes[:_MOST_CLASSES]:
            tensor = shown[ranks[0]]
            yield f"{tensor.spec if specs_differ else tensor.shown} on {rank_list(ranks)}"
        if len(self.classes) > _MOST_CLASSES:
            yield f"and {len(self.classes) - _MOST_CLASSES} other values on other ranks"

    def _distance(self, contents: dict[int, bytes]) -> str:
        """Say how far the first two values are apart, if they are known."""
        one, other = (ranks[0] for ranks in self.classes[:2])
        dtype, shape = self.first.dtype, self.first.shape
        if not shape or not (contents.get(one) and contents.get(other)):
            return ""
        old, new = (_as_tensor(contents[rank]) for rank in (one, other))
        is_whole = old.numel() == new.numel() == math.prod(shape) * dtype.itemsize
        return describe_difference(old, new, dtype, shape) if is_whole else ""


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
