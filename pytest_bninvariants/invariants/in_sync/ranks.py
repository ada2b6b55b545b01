"""Check that a model is the same in all processes of a distributed run."""

from __future__ import annotations

import ctypes
import hashlib
from typing import NamedTuple

from torch import Tensor, distributed, nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.invariants.in_sync.pair import select_tensors
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.snapshot.tensor_bytes import Content, dense_values
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Change, Verdict


class RankDigest(NamedTuple):
    """What a rank tells the others about one of its tensors.

    Args:
        kind: its dtype and shape.
        digest: the SHA-256 of its bytes.
        mean: the mean of its values, for the verdict's text; None if it has none.
    """

    kind: str
    digest: str
    mean: float | None

    @classmethod
    def from_tensor(cls, tensor: Tensor, content: Content) -> RankDigest:
        """Return the digest of a tensor and its bytes."""
        sha256 = hashlib.sha256()
        for part in content:
            on_cpu = part.cpu()
            sha256.update(ctypes.string_at(on_cpu.data_ptr(), on_cpu.numel()))
        values, mean = dense_values(tensor), None
        if values is not None and values.numel() > 0 and not values.is_complex():
            mean = float(values.detach().to("cpu").double().mean())
        kind = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        return cls(kind, sha256.hexdigest(), mean)

    def agrees_with(self, other: RankDigest) -> bool:
        """Tell whether the tensors of two ranks are the same."""
        return (self.kind, self.digest) == (other.kind, other.digest)

    def shown(self, rank: int) -> str:
        """Return how a verdict shows the tensor of a rank."""
        return f"{self.kind if self.mean is None else f'mean {self.mean:.6g}'} on rank {rank}"


class RanksGuard(Guard):
    """Check, when a step ends, that all ranks hold the same bytes; each rank must judge.

    Args:
        model: this rank's model.
        scope: what to compare.
        spelling: the guard as its user wrote it.
    """

    def __init__(self, model: nn.Module, scope: Scope, spelling: str) -> None:
        super().__init__(model, spelling)
        self._scope = scope

    def _begin(self) -> None:
        is_distributed = distributed.is_available() and distributed.is_initialized()
        if not is_distributed or distributed.get_world_size() < 2:
            raise GateError(
                f"{self.spelling} takes a second model; without one it compares the ranks of a "
                "distributed run, and there is none"
            )

    def _judge(self) -> Verdict:
        ranks: list[dict[str, RankDigest]] = [{} for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(ranks, self._digests())
        changes = [
            Change(name=key, layer=key.rpartition(".")[0], kind="values", text=text)
            for key in dict.fromkeys(key for rank in ranks for key in rank)
            if (text := _difference([rank.get(key) for rank in ranks]))
        ]
        layers = {key.rpartition(".")[0] for rank in ranks for key in rank}
        several = len({change.layer for change in changes}) > 1
        return Verdict(
            guard=self.spelling,
            noun="layer",
            broke=f"differ{'' if several else 's'} between ranks",
            model=type(self.model).__name__,
            source=self.source,
            layers=len(layers),
            tensors=None,
            changes=tuple(changes),
            notes=(f"this is rank {distributed.get_rank()} of {len(ranks)}",) if changes else (),
        )

    def _digests(self) -> dict[str, RankDigest]:
        """Return the digests that this rank sends to the others, by name."""
        with undisturbed():
            tensors = select_tensors(self.model, self._scope, complain=True)
            kept = take_snapshot(tensors, ignore_budget=True)
            return {
                key: RankDigest.from_tensor(watched.tensor, kept[key].content)
                for key, watched in tensors.items()
            }


def _difference(digests: list[RankDigest | None]) -> str:
    """Return how the first rank that differs from rank 0 does so; empty if all agree."""
    first = digests[0]
    for rank, other in enumerate(digests):
        if first is None or other is None:
            if first is not other:
                return f"only on rank {0 if other is None else rank}"
        elif not first.agrees_with(other):
            return f"{first.shown(0)}, {other.shown(rank)}"
    return ""
