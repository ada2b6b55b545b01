"""One forward of a BN layer while it runs: its input, and the values that it normalised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.arithmetic import UNIT, Arithmetic
from pytest_bninvariants.batchnorm.batch_summary import (
    BatchSummary,
    BatchSums,
    depth_of,
    summarise,
)
from pytest_bninvariants.devices import has_float64, is_capturing
from pytest_bninvariants.evaluation.rank_exchange import is_distributed
from pytest_bninvariants.invariants.bn_updates.statistics_snapshot import (
    StatisticsReader,
    StatisticsReading,
    StatisticsSnapshot,
)
from pytest_bninvariants.selection.bn_layers import counts_batches, has_known_forward
from pytest_bninvariants.snapshot.tensor_bytes import (
    OUT_OF_MEMORY,
    are_backed,
    is_plain,
    is_uninitialised,
    version,
)
from pytest_bninvariants.torch_internals.isolation import in_transform
from pytest_bninvariants.torch_internals.private_api import (
    InstanceNorm,
    NormBase,
    current_graph_task_id,
)
from pytest_bninvariants.verdict import Place

_UNKNOWN = math.nan
"""The momentum of a layer that has none, or one that is no number; None: a cumulative average."""


@dataclass(frozen=True, slots=True)
class VersionedTensor:
    """A tensor, and its version when a forward received it.

    Args:
        tensor: the tensor.
        version: its version at that time; None if it has none.
    """

    tensor: Tensor
    version: int | None

    @classmethod
    def from_tensor(cls, tensor: Tensor | None) -> VersionedTensor | None:
        """Return a tensor with its version; None if there is no tensor."""
        return None if tensor is None else cls(tensor, version(tensor))

    @property
    def has_same_values(self) -> bool:
        """Tell whether it certainly still has the values that the forward received."""
        written = self.version is None or self.version != version(self.tensor)
        return not written and are_backed([self.tensor])


@dataclass(slots=True)
class LayerForward:
    """One forward of a BN layer, or a call of torch's function with the layer's statistics.

    Args:
        reader: copies the layer's statistics.
        before: its statistics before the forward.
        x: the first tensor that the layer was called with.
        training: the layer's mode.
        momentum: the layer's momentum.
        values: the values that it normalised with batch statistics, if it called torch's function
            for that.
        parts: how many times it normalised with batch statistics, each time a part of its batch.
        by_call: whether this is a call of torch's function, and not a forward of the layer.
    """

    reader: StatisticsReader
    before: StatisticsReading
    x: VersionedTensor | None
    training: bool
    momentum: float | None
    values: VersionedTensor | None = None
    parts: int = 0
    by_call: bool = False

    @classmethod
    def begin(cls, reader: StatisticsReader, x: Tensor | None) -> LayerForward:
        """Return the record of a layer's forward that begins."""
        return cls(
            reader=reader,
            before=reader.read(),
            x=VersionedTensor.from_tensor(x),
            training=reader.layer.training,
            momentum=_momentum_of(reader.layer),
        )

    @classmethod
    def begin_call(
        cls, reader: StatisticsReader, values: Tensor | None, *, batch: bool
    ) -> LayerForward:
        """Return the record of a call of torch's function with a layer's statistics.

        Args:
            reader: copies the layer's statistics.
            values: the values that the call normalises, if they are known.
            batch: whether it normalises them with batch statistics.
        """
        return cls(
            reader=reader,
            before=reader.read(),
            x=None,
            training=batch and reader.layer.training,
            momentum=_momentum_of(reader.layer),
            values=VersionedTensor.from_tensor(values),
            parts=int(batch),
            by_call=True,
        )

    def add_part(self, values: Tensor | None) -> None:
        """Note that it normalises values with batch statistics; keep them if they are the first."""
        self.parts += 1
        if self.parts == 1:
            self.values = VersionedTensor.from_tensor(values)
        else:
            self.x = self.values = None

    def end(self, place: Place | None, *, failed: bool) -> UnreadForward:
        """Return what remains of it when it has ended; the host waits for no device.

        Args:
            place: where the outermost forward that it is part of was called.
            failed: whether it raised.
        """
        layer, after = self.reader.layer, self.reader.read()
        known = has_known_forward(layer)
        unread = in_transform() or any(is_capturing(each.device) for each in after.pieces)
        may_update = bool(self.parts or self.training or not known)
        facts = partial(
            EndedForward,
            is_guess=not (isinstance(layer, NormBase) or self.by_call or self.values),
            training=self.training,
            momentum=self.momentum,
            parts=self.parts,
            by_call=self.by_call,
            has_known_forward=known,
            tracks=bool(getattr(layer, "track_running_stats", True)),
            counts=counts_batches(layer),
            in_backward=current_graph_task_id() != -1,
            failed=failed,
            place=place,
        )
        if unread:
            return UnreadForward(self.before.unread, after.unread, None, facts)
        return UnreadForward(self.before, after, self._batch() if may_update else None, facts)

    def _batch(self) -> Batch | None:
        """Add up what the layer normalised, if it is known and usable."""
        x = self._normalised()
        if x is None:
            return None
        state = self.before.tensors["running_mean"].dtype
        in_float32 = state in UNIT and Arithmetic.for_dtypes(x.dtype, state).sums is torch.float32
        if in_float32 and x.device.type == "cpu":
            with suppress(OUT_OF_MEMORY):
                return BatchSums.from_values(x, depth_of(x))
        if has_float64(x.device):
            with suppress(OUT_OF_MEMORY):
                return summarise(x, depth_of(x))
        return summarise(x.cpu(), depth_of(x))

    def _normalised(self) -> Tensor | None:
        """Return the values that a layer normalised, as (N, C, *), if they are known and usable."""
        layer, values = self.reader.layer, self.values or self.x
        channels = self.before.tensors.get("running_mean")
        other = isinstance(layer, InstanceNorm) or _is_synchronised(layer)
        if values is None or channels is None or other:
            return None
        x = values.tensor
        if not is_plain(x) or x.dtype not in UNIT or not 2 <= x.dim() <= 5:
            return None
        fits = is_uninitialised(channels) or x.shape[1] == channels.numel()
        return x.detach() if x.numel() > x.shape[1] and fits and values.has_same_values else None


Batch = BatchSummary | BatchSums


class UnreadForward(NamedTuple):
    """A forward that has ended, of which devices may hold what is to be read on the host.

    Args:
        before: the layer's statistics before it.
        after: those after it.
        batch: the batch; None if it is unknown, or no update could have used it.
        facts: makes the record of the forward, with the three of them on the host.
    """

    before: StatisticsReading
    after: StatisticsReading
    batch: Batch | None
    facts: Callable[..., EndedForward]

    @property
    def pieces(self) -> list[Tensor]:
        """Return what is to be read on the host."""
        batch = [] if self.batch is None else self.batch.pieces
        return [*self.before.pieces, *self.after.pieces, *batch]

    def on_host(self, pieces: Iterable[Tensor]) -> EndedForward:
        """Return the record of this forward.

        Args:
            pieces: what `pieces` has, on the host.
        """
        rest = iter(pieces)
        before, after = self.before.on_host(rest), self.after.on_host(rest)
        batch = None if self.batch is None else self.batch.on_host(rest)
        return self.facts(before=before, after=after, batch=batch)


class EndedForward(NamedTuple):
    """A forward that has ended, and was read on the host.

    Args:
        before: the layer's statistics before it.
        after: those after it.
        batch: the batch; None if it is unknown, or no update could have used it.
        is_guess: whether the batch is a guess: the layer has a custom forward that called no torch
            function to normalise, so its input is taken for what it normalised.
        training: the layer's mode.
        momentum: the layer's momentum.
        parts: how many times it normalised with batch statistics, each time a part of its batch.
        by_call: whether it is a call of torch's function, and not a forward of the layer.
        has_known_forward: whether the layer's forward is torch's own.
        tracks: whether the layer tracks running statistics.
        counts: whether the layer counts its batches.
        in_backward: whether it ran in a backward pass.
        failed: whether it raised.
        place: where the outermost forward that it is part of was called.
    """

    before: StatisticsSnapshot
    after: StatisticsSnapshot
    batch: Batch | None
    is_guess: bool
    training: bool
    momentum: float | None
    parts: int
    by_call: bool
    has_known_forward: bool
    tracks: bool
    counts: bool
    in_backward: bool
    failed: bool
    place: Place | None

    @property
    def moved(self) -> set[str]:
        """Return the names of the statistics that moved."""
        return self.after.differs_from(self.before)

    @property
    def counter_change(self) -> int | None:
        """Return by how much the counter moved; None if no counter counts."""
        now = self.after.counter if self.counts else None
        return None if now is None else now - (self.before.counter or 0)


def _momentum_of(layer: nn.Module) -> float | None:
    momentum = getattr(layer, "momentum", _UNKNOWN)
    if momentum is None:  # which InstanceNorm takes for 0
        return 0.0 if isinstance(layer, InstanceNorm) else None
    is_number = isinstance(momentum, int | float)
    is_number |= isinstance(momentum, Tensor) and momentum.numel() == 1
    return float(momentum) if is_number else _UNKNOWN


def _is_synchronised(layer: nn.Module) -> bool:
    """Tell whether a layer's statistics are those of all processes' batches together."""
    return (
        isinstance(layer, nn.SyncBatchNorm)
        and is_distributed()
        and torch.distributed.get_world_size(layer.process_group) > 1
    )
