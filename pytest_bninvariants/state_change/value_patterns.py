"""Recognise how values moved: shrunk, rounded to another dtype, or set as in a new layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pytest_bninvariants.selection.bn_layers import STATISTICS
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor, TensorSpec
from pytest_bninvariants.snapshot.reads.together import read_together
from pytest_bninvariants.snapshot.tensor_bytes import (
    READ_ERRORS,
    are_backed,
    as_bytes,
    dense_values,
    parts,
    same_bytes,
    values_of,
)


def _float_bytes(kept: KeptTensor, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the bytes of a tensor's floats before and now, on the host.

    A device may lack memory or float64. Return None if they are not floats in order, or if the
    dtype, shape or layout changed.
    """
    old = kept.value_bytes
    if (
        old is None
        or not kept.dtype.is_floating_point
        or TensorSpec.from_tensor(tensor)[:3] != kept.spec[:3]
    ):
        return None
    try:
        now = [as_bytes(part).cpu() for part in parts(tensor)]
    except READ_ERRORS:
        return None
    return (old.cpu(), now[0]) if [len(flat) for flat in now] == [len(old)] else None


def uniform_factor(kept: KeptTensor, tensor: Tensor) -> float | None:
    """Return the factor below 1 by which all values of a tensor shrank, as weight decay does.

    Rounding makes the factors of the values differ; they count as one factor while they differ by
    less than a quarter of its distance to 1.
    """
    dtype, both = kept.spec.dtype, _float_bytes(kept, tensor)
    if both is None:
        return None
    old, new = (flat.view(dtype).double() for flat in both)
    counts = old.abs() > torch.finfo(dtype).tiny
    factors = new[counts] / old[counts]
    if not len(factors):
        return None
    factor, spread = float(factors.mean()), float(factors.max() - factors.min())
    return factor if 0 < factor < 1 and spread <= (1 - factor) / 4 else None


def are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Tell of tensors whether all values are certainly finite; the host waits once for each device.

    A sum that is finite has finite terms only.
    """
    sums = [(number, each) for number, tensor in enumerate(tensors) for each in _sums(tensor)]
    answers = read_together([each for _, each in sums])
    infinite = {n for (n, _), sum_ in zip(sums, answers, strict=True) if not sum_.isfinite()}
    return [number not in infinite for number in range(len(tensors))]


def _sums(tensor: Tensor) -> list[Tensor]:
    """Return the sums of a tensor's parts, NaN for one that torch cannot add up."""
    try:
        return [values.sum() for values in values_of(tensor)]
    except READ_ERRORS:
        return [torch.tensor(math.nan)]


def count_no_longer_finite(kept: KeptTensor, tensor: Tensor) -> int:
    """Return how many more values of a tensor are NaN or infinite than when it was kept."""
    try:
        values = [
            each.cpu()  # a device may lack memory
            for each in values_of(tensor)
            if each.is_floating_point() or each.is_complex()
        ]
        count = sum(int((~each.isfinite()).sum()) for each in values)
    except READ_ERRORS:
        return 0
    if not count:
        return 0
    old = kept.value_bytes
    return count - (0 if old is None else int((~old.cpu().view(kept.dtype).isfinite()).sum()))


def only_nan_moved(kept: KeptTensor, tensor: Tensor) -> bool:
    """Tell whether each value that moved was NaN and is NaN, of which a cast keeps no bits."""
    both = _float_bytes(kept, tensor)
    if both is None:
        return False
    old, new = (flat.view(kept.dtype) for flat in both)
    return bool(((old == new) | (old.isnan() & new.isnan())).all())


_TYPES = [(name, getattr(torch, name)) for name in ("float32", "bfloat16", "float16")]


@torch.no_grad()
def casts_of(kept: KeptTensor, tensor: Tensor) -> frozenset[str]:
    """Return the names of the dtypes to which a cast and back explains a tensor's values.

    Args:
        kept: what a snapshot holds of the tensor.
        tensor: the tensor, now.
    """
    both = _float_bytes(kept, tensor)
    if both is None or same_bytes(*both):
        return frozenset()
    old, now = both
    values = old.view(kept.dtype)
    try:
        rounded = {name: values.to(each).to(kept.dtype).view(torch.uint8) for name, each in _TYPES}
    except READ_ERRORS:  # dtypes that torch only stores
        return frozenset()
    return frozenset(name for name, each in rounded.items() if same_bytes(each, now))


def only_became_plain(kept: KeptTensor, tensor: Tensor) -> bool:
    """Tell whether each value that moved is plain now, such as 0, 0.5 or 1.

    An initialisation and a clamp leave such values, of at most four binary digits, as well as a
    cast does.
    """
    both = _float_bytes(kept, tensor)
    if both is None:
        return False
    old, new = (flat.view(kept.dtype).double() for flat in both)
    moved = new[old != new]
    sixteenths = torch.frexp(moved).mantissa * 16
    return bool(((sixteenths == sixteenths.round()) | ~moved.isfinite()).all())


_INITIAL = {
    "running_mean": 0,
    "running_var": 1,
    "num_batches_tracked": 0,
    "weight": 1,
    "bias": 0,
}


def has_initial_values(tensor: Tensor, name: str) -> bool:
    """Tell whether a BN layer's tensor has the values that it has in a new layer.

    Args:
        tensor: the tensor.
        name: its name in the layer.
    """
    values = dense_values(tensor) if name in _INITIAL else None
    return values is not None and bool((values == _INITIAL[name]).all())


def has_initial_statistics(layer: nn.Module | None) -> bool:
    """Tell whether a layer has the running mean and variance of a new one."""
    mean, var = (readable_values(layer, name) for name in STATISTICS)
    if mean is None or var is None:
        return False
    return not mean.any() and bool((var == 1).all())


def readable_values(layer: nn.Module | None, name: str) -> Tensor | None:
    """Return one of a layer's tensors, if its values can be read."""
    buffers = {} if layer is None else layer._buffers  # first, since getattr of a module is slow
    value = buffers[name] if name in buffers else getattr(layer, name, None)
    values = dense_values(value) if isinstance(value, Tensor) else None
    return values if values is None or are_backed([values]) else None
