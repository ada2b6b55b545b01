"""Keep the bytes of watched tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection.lazy_mapping import LazyMapping
from pytest_bninvariants.selection.tensor_table import TensorTable, WatchedTensor
from pytest_bninvariants.snapshot.buckets import Bucket, fill_buckets
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor, TensorCopy, short_name
from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS


class Snapshot(LazyMapping[KeptTensor]):
    """What is kept of some tensors, by key.

    Args:
        tensors: the tensors.
        requires_grad: which of them required a gradient.
        kept_under: the key under which each of them is kept; tied tensors share one.
        buckets: the buckets that hold most of them.
        copies: copies of the others, by key.
    """

    def __init__(
        self,
        tensors: TensorTable,
        requires_grad: list[bool],
        kept_under: list[str],
        buckets: list[Bucket],
        copies: dict[str, TensorCopy],
    ) -> None:
        self.tensors, self.requires_grad, self.buckets = tensors, requires_grad, buckets
        self._kept_under, self._copies = kept_under, copies

    def _make_values(self) -> dict[str, KeptTensor]:
        places: dict[str, tuple[TensorCopy | Bucket, int]] = {
            key: (bucket, number)
            for bucket in self.buckets
            for number, key in enumerate(bucket.keys)
        }
        places |= {key: (copy, 0) for key, copy in self._copies.items()}
        kept = zip(self.tensors.items(), self.requires_grad, self._kept_under, strict=True)
        return {
            key: KeptTensor(watched, requires_grad, *places[under])
            for (key, watched), requires_grad, under in kept
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, key: object) -> bool:
        return key in self.tensors


def take_snapshot(
    tensors: Mapping[str, WatchedTensor],
    *,
    exact: bool = False,
    prefer_exact: Collection[str] = (),
) -> Snapshot:
    """Copy the bytes of watched tensors; a tensor with several names is copied once.

    The caller must hold `undisturbed()`.

    Args:
        tensors: watched tensors by key.
        exact: whether the values are needed, so that fingerprints, which only tell whether tensors
            differ, will not do: above the budget a device's tensors are kept on the host.
        prefer_exact: keys to keep exactly, not as fingerprints, as far as the budget allows.

    Raises:
        GateError: if a tensor cannot be compared, e.g. because it is on the meta device.
    """
    table = TensorTable.from_mapping(tensors)
    kept_under, distinct = table.columns.keys, table.by_key
    if len(set(map(id, table.tensors))) < len(kept_under):  # some are tied
        firsts = {id(tensor): key for key, tensor in reversed(distinct.items())}
        kept_under = [firsts[id(tensor)] for tensor in table.tensors]
        distinct = {key: distinct[key] for key in kept_under}
    buckets = fill_buckets(distinct, exact=exact, prefer_exact=prefer_exact)
    copies: dict[str, TensorCopy] = {}
    if sum(len(bucket.keys) for bucket in buckets) < len(distinct):
        in_buckets = {key for bucket in buckets for key in bucket.keys}
        copies = {key: _copy(table[key]) for key in distinct if key not in in_buckets}
    requires_grad = [tensor.requires_grad for tensor in table.tensors]
    return Snapshot(table, requires_grad, kept_under, buckets, copies)


def _copy(watched: WatchedTensor) -> TensorCopy:
    """Copy a tensor that fits in no bucket."""
    tensor, name = watched.tensor, watched.name
    try:
        return TensorCopy.from_tensor(tensor)
    except READ_ERRORS as error:
        advice = "" if watched.kind == "output" else f"; leave it out with exclude={name!r}"
        raise GateError(
            f"cannot compare {name} ({type(tensor).__name__}, "
            f"{short_name(tensor.dtype)}, {short_name(tensor.layout)}): {error}{advice}"
        ) from None
