"""Tell how far the running statistics of BN layers drifted, from a snapshot to now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from torch import Tensor

from pytest_bninvariants.batchnorm.drift import statistics_drift
from pytest_bninvariants.checks import is_number
from pytest_bninvariants.selection.bn_layers import STATISTICS
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.selection.walk import join
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.snapshot.reads.together import read_together
from pytest_bninvariants.snapshot.snapshot import Snapshot
from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS, are_backed, dense_values
from pytest_bninvariants.verdict import Change


def with_drift(
    changes: Iterable[Change],
    kept: Snapshot,
    now: Mapping[str, WatchedTensor],
    eps: Mapping[str, object],
) -> list[Change]:
    """Return changes, of which the first one of a layer's statistics has the layer's drift.

    The host waits once for each device on which large statistics changed. The caller must hold
    `undisturbed()`.

    Args:
        changes: the changes of tensors.
        kept: what the tensors held before.
        now: the tensors now, by key.
        eps: what each layer adds to its variance, by the layer's name.
    """
    changes = list(changes)
    firsts: dict[str, int] = {}
    for number, change in enumerate(changes):
        if change.kind == "values" and change.name.rpartition(".")[2] in STATISTICS:
            firsts.setdefault(change.layer, number)
    known = _known_statistics(firsts, kept, now) if firsts else {}
    with suppress(*READ_ERRORS):
        on_host = iter(read_together([each for four in known.values() for each in four]))
        for layer in known:
            mean, var, mean_now, var_now = (next(on_host) for _ in range(4))
            added = eps.get(layer)
            eps_ = added if is_number(added) else 0.0
            drift = statistics_drift(mean, var, mean_now, var_now, eps_)
            changes[firsts[layer]] = replace(changes[firsts[layer]], drift=drift)
    return changes


def _known_statistics(
    layers: Collection[str], kept: Snapshot, now: Mapping[str, WatchedTensor]
) -> dict[str, list[Tensor]]:
    """Return mean and variance before, and now, of the layers of which all four can be read."""
    keys = {each.watched.name: key for key, each in kept.items()}
    known = {}
    for layer in layers:
        held = [keys.get(join(layer, name), "") for name in STATISTICS]
        pairs = [_values(kept[key], now[key].tensor) for key in held if key in kept and key in now]
        four = [pair[side] for side in (0, 1) for pair in pairs if pair is not None]
        if len(four) == 4 and len({each.numel() for each in four}) == 1:
            known[layer] = four
    return known


def _values(kept: KeptTensor, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return a tensor's values before and now, flat; None if they are not known.

    They are not if only fingerprints were kept.
    """
    old = kept.value_bytes
    if old is None or not kept.dtype.is_floating_point:
        return None
    with suppress(*READ_ERRORS):
        new = dense_values(tensor)
        if new is not None and new.dtype == kept.dtype and are_backed([new]):
            return old.view(kept.dtype), new.detach().resolve_neg().flatten()
    return None
