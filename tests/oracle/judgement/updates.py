"""What `bn_updates` must say of each layer: by a count of its calls, and BatchNorm in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tests.invariants.neutral_runs import in_bytes
from tests.oracle.deeds import Call, Statistics
from tests.oracle.layers import FrozenNorm, is_norm
from tests.oracle.scopes import Ask
from tests.oracle.timeline import EAGER, Stretch

Fate = Literal["holds", "breaks", "unknown"]
NAMES = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class LayerHistory:
    """What became of one layer's statistics.

    Args:
        names: the layer's bare names.
        is_frozen_type: whether its affine values are buffers, so that it can never train.
        is_whole: whether the layer is the same, and its calls alone account for its statistics.
        updates: the calls that moved its mean or its variance.
        calls: all of its calls.
        unusable: whether its statistics are not finite, or a variance is below 0.
        is_back: whether the statistics are those from the start.
        written: whether something other than its calls set them.
    """

    names: frozenset[str]
    is_frozen_type: bool
    is_whole: bool
    updates: list[Call]
    calls: list[Call]
    unusable: bool
    is_back: bool
    written: bool

    @property
    def is_clean(self) -> bool:
        """Tell whether each update is as BatchNorm makes it, in training, and with a new batch."""
        batches = [in_bytes(call.batch) for call in self.updates]
        return all(
            call.training and not call.in_backward and is_right(call) for call in self.updates
        ) and all(batches.count(batch) == 1 for batch in batches)


def histories(ask: Ask, stretch: Stretch) -> list[LayerHistory]:
    """Return the histories of all layers that have statistics and that an ask covers."""
    by_layer: dict[int, set[str]] = {}
    for name, module in stretch.modules[0].items():
        if is_norm(module) and ask.covers(name):
            by_layer.setdefault(id(module), set()).add(name)
    found = [_history(frozenset(names), stretch) for names in by_layer.values()]
    return [each for each in found if each is not None]


def _history(names: frozenset[str], stretch: Stretch) -> LayerHistory | None:
    name = sorted(names)[0]
    layer = stretch.modules[0][name]
    read = [_read(name, reading.tensors) for reading in stretch.readings]
    if read[0][0] is None or read[0][1] is None:
        return None
    mine: list[Call] = []
    written = False
    is_same = is_whole = all(modules.get(name) is layer for modules in stretch.modules)
    is_shared = any(_are_shared(names, tensors) for tensors in stretch.tensors)
    # a guard counts what compiled code does by the counter
    unheard = read[0][2] is None and any(deed.name in EAGER for deed in stretch.deeds)
    is_whole &= not (is_shared or unheard)
    for number, deed in enumerate(stretch.deeds):
        calls = [c for c in deed.calls if c.used_batch is not None and names & {*c.names}]
        mine += calls
        written |= bool(calls) and deed.name == "trace_it_and_run"  # which nobody hears
        chain = [read[number], *(_bytes(s) for c in calls for s in (c.before, c.after))]
        chain.append(read[number + 1])
        written |= any(one != other for one, other in zip(chain[::2], chain[1::2], strict=True))
    mean, var = (stretch.last.tensors.get(f"{name}.{each}") for each in NAMES[:2])
    if mean is None or var is None:
        return None
    return LayerHistory(
        names=names,
        is_frozen_type=isinstance(layer, FrozenNorm),
        is_whole=is_whole and not written,
        updates=[call for call in mine if _moved(call)],
        calls=mine,
        unusable=is_same and not (is_finite(mean) and is_finite(var) and is_positive(var)),
        is_back=read[0][:2] == read[-1][:2],
        written=written or is_shared,
    )


def _are_shared(names: frozenset[str], tensors: dict[str, Tensor]) -> bool:
    """Tell whether another layer has a statistic of this one."""
    mine = {id(tensors.get(f"{min(names)}.{each}")) for each in NAMES} - {id(None)}
    return any(id(t) in mine and n.rpartition(".")[0] not in names for n, t in tensors.items())


def _read(name: str, tensors: dict[str, Any]) -> tuple[object, ...]:
    return tuple(tensors.get(f"{name}.{each}") for each in NAMES)


def _bytes(statistics: Statistics) -> tuple[object, ...]:
    return tuple(None if (each := statistics[name]) is None else in_bytes(each) for name in NAMES)


def _moved(call: Call) -> bool:
    before, after = _bytes(call.before), _bytes(call.after)
    again = call.momentum == 1 and before != after  # with a batch that it had, only the counter
    return before[:2] != after[:2] or again


def decode(read: tuple[str, tuple[int, ...], bytes]) -> Tensor:
    """Return a tensor from its reading."""
    dtype, shape, raw = read
    if not raw:
        return torch.zeros(shape)
    kind = getattr(torch, dtype.removeprefix("torch."))
    return torch.frombuffer(bytearray(raw), dtype=kind).reshape(shape)


def is_finite(read: tuple[str, tuple[int, ...], bytes]) -> bool:
    """Tell whether all values of a reading are finite."""
    return bool(decode(read).isfinite().all())


def is_positive(read: tuple[str, tuple[int, ...], bytes]) -> bool:
    """Tell whether no value of a reading is below 0."""
    return bool((decode(read) >= 0).all())


def is_right(call: Call) -> bool:
    """Tell whether a call updated statistics as the formula says, in float64."""
    before, after, batch = call.before, call.after, call.batch
    counted, count = before["num_batches_tracked"], after["num_batches_tracked"]
    if batch is None or any(s[name] is None for s in (before, after) for name in NAMES[:2]):
        return False
    if counted is not None and count is not None and int(count) != int(counted) + 1:
        return False
    momentum = call.momentum
    if momentum is None:
        momentum = 1.0 if count is None else 1 / int(count)
    right = _statistics(batch.double(), by_instance=call.by_instance)
    return all(
        torch.allclose(
            after[name].double(),
            (1 - momentum) * before[name].double() + momentum * new,
            rtol=1e-4,
            atol=1e-5,
        )
        for name, new in zip(NAMES, right, strict=False)
    )


def _statistics(batch: Tensor, *, by_instance: bool) -> tuple[Tensor, Tensor]:
    if by_instance:
        return batch.mean(2).mean(0), batch.var(2).mean(0)
    return batch.mean((0, 2)), batch.var((0, 2))


def fate_of(layer: LayerHistory, times: int | Literal["forwards"]) -> Fate:
    """Return what must become of a layer that is judged, where that is certain."""
    if layer.unusable:
        return "breaks"
    if not layer.is_whole or (layer.updates and layer.is_back):
        return "unknown"
    if any(call.in_backward or not call.training for call in layer.updates):
        return "breaks"
    if times == "forwards":
        idle = [call for call in layer.calls if call.training and call not in layer.updates]
        if not layer.updates:
            return "breaks"
        return "holds" if layer.is_clean and not idle else "unknown"
    if len(layer.updates) != times:
        return "breaks"
    return "holds" if layer.is_clean else "unknown"


def is_judged(layer: LayerHistory, ask: Ask, stretch: Stretch) -> bool | None:
    """Tell whether a layer is judged; None if that is not certain."""
    if ask.names:
        return True
    if layer.is_frozen_type:
        return None if layer.updates else False
    if not layer.is_whole:
        return None
    if layer.updates or any(call.training for call in layer.calls):
        return True
    own = {
        (at, wants)
        for at, reading in enumerate(stretch.readings)
        for name, wants in reading.parameters.items()
        if name.rpartition(".")[0] in layer.names
    }
    wants = {each for _, each in own}
    return wants.pop() if len(wants) == 1 else None
