"""The settings of a BN layer that are compared before and after a step."""

from __future__ import annotations

from functools import lru_cache
from operator import itemgetter

import torch
from torch import nn

_COMPARED = ("eps", "momentum", "track_running_stats")
_CONSTANTS = frozenset({float, int, bool, type(None)})
_ABSENT = object()
_own_settings = itemgetter(*_COMPARED)


def read_settings(layer: nn.Module) -> dict[str, object]:
    """Return a layer's `eps`, `momentum` and `track_running_stats` as plain values."""
    try:
        values = _own_settings(vars(layer))  # first, since getattr of a module is slow
    except KeyError:
        values = tuple(getattr(layer, name, _ABSENT) for name in _COMPARED)
    if _CONSTANTS.issuperset(map(type, values)):
        return _named(*values)
    return _named.__wrapped__(*map(_as_constant, values))


@lru_cache(maxsize=64, typed=True)
def _named(*values: object) -> dict[str, object]:
    """Return values of settings by name; most layers of a model have the same ones."""
    pairs = zip(_COMPARED, values, strict=True)
    return {name: _as_constant(value) for name, value in pairs if value is not _ABSENT}


def _as_constant(value: object) -> object:
    """Return a setting as an immutable value that equals itself: users assign tensors, too."""
    if isinstance(value, torch.Tensor):
        value = value.detach().tolist()
    return value if value == value else "nan"
