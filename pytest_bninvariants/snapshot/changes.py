"""Tell which tensors differ from a snapshot, and how."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pytest_bninvariants.devices import wait_for
from pytest_bninvariants.selection.tensor_table import TensorTable, WatchedTensor
from pytest_bninvariants.selection.walk import Kind
from pytest_bninvariants.snapshot.bucket_readings import BucketComparison, compare_with_buckets
from pytest_bninvariants.snapshot.buckets import Bucket
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor, TensorSpec, shapes_of, short_name
from pytest_bninvariants.snapshot.snapshot import Snapshot
from pytest_bninvariants.snapshot.tensor_bytes import (
    READ_ERRORS,
    as_bytes,
    has_content,
    parts,
    same_bytes,
)
from pytest_bninvariants.snapshot.value_difference import describe_difference
from pytest_bninvariants.verdict import Change, ChangeKind

_KIND_WORDS: dict[Kind, str] = {"parameter": "Parameter", "buffer": "buffer", "output": "output"}


@torch.no_grad()
def is_unchanged(kept: KeptTensor, tensor: Tensor) -> bool:
    """Tell whether a tensor has the bytes, dtype, shape and layout that were kept."""
    if TensorSpec.from_tensor(tensor)[:3] != kept.spec[:3]:
        return False
    copy = kept.tensor_copy
    if copy is None:
        return _difference(kept, tensor) is None
    return has_content(copy.content, tensor) is True


@torch.no_grad()
def changes_since(
    kept: Snapshot,
    now: Mapping[str, WatchedTensor],
    new: Iterable[str],
    unchanged: Collection[str] | None = None,
) -> list[Change]:
    """Tell which names' bytes, dtype or shape differ, and which are gone or new.

    Args:
        kept: the snapshot.
        now: all tensors of the model after the step.
        new: keys in `now` that the guard would watch now, but did not before.
        unchanged: keys of tensors that are known to be unchanged, if buckets were compared.
    """
    changes = []
    if unchanged is None:
        unchanged = compare_buckets(kept, now).unchanged
    for key in [key for key in kept if key not in unchanged]:
        before, after = kept[key], now.get(key)
        if after is None:
            changes.append(_change(before.watched, "gone", "gone", same_object=False))
            continue
        difference = _difference(before, after.tensor)
        if difference is not None:
            same_object = after.tensor is before.watched.tensor
            change = _change(before.watched, *difference, same_object=same_object)
            changes.append(replace(change, exact=before.is_exact))
    for key in new:
        text = f"new: {_KIND_WORDS[now[key].kind]}, {TensorSpec.from_tensor(now[key].tensor)}"
        changes.append(_change(now[key], "new", text, same_object=False))
    return changes


def compare_buckets(kept: Snapshot, now: Mapping[str, WatchedTensor]) -> BucketComparison:
    """Compare all tensors in buckets at once; the caller must hold `undisturbed()`."""
    wait_for({bucket.device for bucket in kept.buckets})
    return compare_with_buckets(kept.buckets, TensorTable.from_mapping(now).by_key)


def _change(watched: WatchedTensor, kind: ChangeKind, text: str, *, same_object: bool) -> Change:
    return Change(
        name=watched.name,
        layer=watched.layer,
        kind=kind,
        text=text,
        same_object=same_object,
    )


def _difference(before: KeptTensor, tensor: Tensor) -> tuple[ChangeKind, str] | None:
    was, spec = before.spec, TensorSpec.from_tensor(tensor)
    if was.shape != spec.shape:
        if was.shape is None:
            return "initialised", f"uninitialised -> {spec}"
        return "shape", f"shape {was.shape} -> {spec.shape}"
    if was.dtype != spec.dtype:
        return "dtype", f"{short_name(was.dtype)} -> {short_name(spec.dtype)}"
    if was.layout != spec.layout:
        return "layout", f"{short_name(was.layout)} -> {short_name(spec.layout)}"
    try:
        pieces = parts(tensor)
        content = tuple(as_bytes(piece) for piece in pieces)
    except READ_ERRORS as error:
        return "values", f"can no longer be compared: {error}"
    source, kept = before.source, before.tensor_copy
    if isinstance(source, Bucket) and kept is None:
        text = source.describe_difference(content, spec.dtype.itemsize)
        return None if text is None else ("values", text)
    assert kept is not None
    now = [part.to(old.device) for part, old in zip(content, kept.content, strict=False)]
    if shapes_of(pieces) == kept.shapes and all(map(same_bytes, kept.content, now)):
        return None
    old = before.value_bytes
    if old is not None and len(now) == 1 and now[0].numel() == old.numel():
        return "values", describe_difference(old, now[0], spec.dtype, kept.shapes[0])
    return "values", "content differs"
