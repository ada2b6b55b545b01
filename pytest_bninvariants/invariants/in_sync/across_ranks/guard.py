"""Check that a model is the same in all processes of a distributed run."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from torch import distributed, nn

from pytest_bninvariants.diagnosis.wording import first_few
from pytest_bninvariants.errors import GateError, Refusal
from pytest_bninvariants.evaluation.rank_exchange import Ranks, describe_error, is_distributed
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.invariants.in_sync.across_ranks.rank_tensor import (
    ComparedTensor,
    RankTensor,
)
from pytest_bninvariants.invariants.in_sync.across_ranks.rules import causes_of
from pytest_bninvariants.invariants.in_sync.pair import select_tensors
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.walk import named_modules
from pytest_bninvariants.snapshot.snapshot import Snapshot, take_snapshot
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.torch_internals.sharding import shard_of, shards_by_id
from pytest_bninvariants.verdict import Change, Hazard, Verdict

# Tensors whose bytes are exchanged, so that the verdict says how far apart they are, and bytes of
# one: others are told apart by their means alone.
_MOST_EXCHANGED, _MOST_BYTES = 64, 2**20


class RanksGuard(Guard):
    """Check, when a step ends, that all ranks hold the same bytes; each rank must judge.

    Args:
        model: this rank's model.
        scope: what to compare.
        group: the process group whose ranks are compared; None: all ranks.
        spelling: the guard as its user wrote it.
    """

    def __init__(
        self,
        model: nn.Module,
        scope: Scope,
        group: distributed.ProcessGroup | None,
        spelling: str,
    ) -> None:
        super().__init__(model, spelling)
        self._scope, self._group = scope, group

    def _begin(self) -> None:
        if not is_distributed() or len(Ranks(self._group).numbers) < 2:
            raise GateError(
                f"{self.spelling} takes a second model; without one it compares the ranks of a "
                "distributed run, and there is none"
            )

    def abandon(self, error: BaseException) -> None:
        """Tell the other ranks, which wait for this one, that its step raised."""
        if self._started:
            with suppress(GateError):  # the step's own error says more
                Ranks(self._group).refuse(f"its step raised {describe_error(error)}")

    def _judge(self) -> Verdict:
        ranks = Ranks(self._group)
        own: dict[str, RankState] = {}
        states = ranks.exchange(lambda: own.setdefault("", RankState.of(self.model, self._scope)))
        compared = [
            ComparedTensor(key, ranks.numbers, [state.tensors.get(key) for state in states])
            for key in dict.fromkeys(key for state in states for key in state.tensors)
        ]
        _insist_on_something(compared)
        differing = [each for each in compared if each.differs]
        contents = _exchange_contents(self._group, own[""], differing)
        changes = tuple(
            Change(
                name=each.name,
                layer=each.first.layer,
                kind="values",
                text=each.describe(contents.get(each.name, {})),
            )
            for each in differing
        )
        several = len({change.layer for change in changes}) > 1
        position = f"this is rank {distributed.get_rank()} of {distributed.get_world_size()}"
        return Verdict(
            guard=self.spelling,
            noun="layer",
            broke=f"differ{'' if several else 's'} between ranks",
            model=type(self.model).__name__,
            source=self.source,
            layers=len({each.first.layer for each in compared}),
            tensors=None,
            changes=changes,
            causes=causes_of(compared),
            hazards=tuple(_not_compared(compared)),
            notes=(position,) if changes else (),
        )


@dataclass(frozen=True, slots=True)
class RankState:
    """What one rank holds.

    Args:
        tensors: what it tells the others of its tensors, by name.
        kept: its own snapshot, which it does not send.
    """

    tensors: dict[str, RankTensor]
    kept: Snapshot | None

    @classmethod
    def of(cls, model: nn.Module, scope: Scope) -> RankState:
        """Describe the tensors in a scope; this starts no collective.

        Raises:
            GateError: if there are none, or one cannot be read.
        """
        with undisturbed():
            watched = select_tensors(model, scope, complain=True)
            kept = take_snapshot(watched, exact=True)
            flat = shards_by_id(module for _, module in named_modules(model))
            return cls(
                {
                    key: RankTensor.from_kept(
                        kept[key],
                        flat.get(id(each.tensor)) or shard_of(each.tensor),
                        is_flat=id(each.tensor) in flat,
                    )
                    for key, each in watched.items()
                },
                kept,
            )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.tensors, None)

    def content(self, key: str) -> bytes:
        """Return the bytes of a tensor of this rank; none if they are many, or in parts."""
        value = None if self.kept is None or key not in self.kept else self.kept[key].value_bytes
        if value is None or value.numel() > _MOST_BYTES:
            return b""
        on_cpu = value.cpu()
        return ctypes.string_at(on_cpu.data_ptr(), on_cpu.numel())


def _exchange_contents(
    group: distributed.ProcessGroup | None, own: RankState, differing: list[ComparedTensor]
) -> Mapping[str, dict[int, bytes]]:
    """Return the bytes of tensors that differ, by name and rank; all ranks know which differ."""
    names = [each.name for each in differing if not each.missing_on][:_MOST_EXCHANGED]
    if not names:
        return {}
    ranks = Ranks(group)
    told = ranks.exchange(lambda: [own.content(name) for name in names])
    return {
        name: {rank: contents[number] for rank, contents in zip(ranks.numbers, told, strict=True)}
        for number, name in enumerate(names)
    }


def _insist_on_something(compared: list[ComparedTensor]) -> None:
    if not any(each.is_compared for each in compared):
        raise Refusal(
            "every tensor is sharded, and each rank holds another part of it: there is nothing "
            "that two ranks hold, so nothing to compare"
        )


def _not_compared(compared: list[ComparedTensor]) -> list[Hazard]:
    """Return one hazard for all tensors of which no two ranks hold the same part."""
    names = [each.name for each in compared if not each.is_compared]
    if not names:
        return []
    text = "not compared, because each rank holds another part of it, and none holds a copy"
    return [Hazard(name=first_few(names, 3), text=text)]
