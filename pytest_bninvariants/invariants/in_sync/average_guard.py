"""Hold that a model is the exponential moving average of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.invariants.in_sync.average_rules import causes_of
from pytest_bninvariants.invariants.in_sync.average_tensor import Average
from pytest_bninvariants.invariants.in_sync.pair import Pair, insist_on_copies, is_one
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.snapshot.tensors import KeptTensor, take_snapshot
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Verdict

Buffers = Literal["copied", "averaged"]


class AverageGuard(Guard):
    """Hold that a step moves an average as its decay says.

    Args:
        pair: the model and its average.
        scope: what is compared.
        decay: the weight of the old value.
        buffers: what buffers are: copied, or averaged.
        spelling: the guard as its user wrote it.
    """

    def __init__(
        self, pair: Pair, scope: Scope, decay: float, buffers: Buffers, spelling: str
    ) -> None:
        super().__init__(pair.one, spelling)
        self._pair, self._scope, self._decay, self._buffers = pair, scope, decay, buffers
        self._kept: Mapping[str, KeptTensor] = {}
        self._is_first = False

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """Return both."""
        return self._pair.one, self._pair.other

    def _begin(self) -> None:
        first, second = self._pair.tensors(self._scope)
        alone = sorted(first.keys() ^ second.keys())
        if alone:
            raise Refusal(
                f"only one of the two models has {alone[0]!r}; leave it out with "
                f"exclude={alone[0]!r}"
            )
        with undisturbed():
            self._kept = take_snapshot(second, ignore_budget=True)
        count = getattr(self._pair.other, "n_averaged", None)
        self._is_first = isinstance(count, Tensor) and count.numel() == 1 and not count.item()

    def _judge(self) -> Verdict:
        first, second = self._pair.tensors(self._scope)
        gone = sorted(self._kept.keys() - (first.keys() & second.keys()))
        if gone:
            raise Refusal(f"{gone[0]!r} is gone from one of the models")
        with undisturbed():
            averages = {
                key: Average.of(kept, second[key], first[key], self._decay_of(kept))
                for key, kept in self._kept.items()
            }
            shared = [
                key
                for key, average in averages.items()
                if average.has_moved and is_one(first[key].tensor, second[key].tensor)
            ]
            insist_on_copies(shared)
            every = [*averages.values()]
            changes = tuple(average.change for average in every if not average.holds)
            trained = [
                average
                for key, average in averages.items()
                if first[key].tensor.requires_grad and average.is_to_move
            ]
            if not changes and not any(average.tells for average in trained or every):
                raise Refusal(
                    "nothing moved far enough to tell an average that was updated "
                    "from one that was not: train and update inside the guard"
                    f"{_too_coarse(trained)}"
                )
            pair = replace(self._pair, sources=self.sources)
            causes = causes_of(every, pair, self._decay) if changes else ()
        first_update = "the first update of an AveragedModel copies the model"
        return Verdict(
            guard=self.spelled,
            noun="layer",
            broke=f"not averaged with decay {self._decay:g}",
            model=self._pair.types,
            source=self.source,
            layers=len({watched.layer for watched in second.values()}),
            tensors=None,
            changes=changes,
            causes=causes,
            notes=(first_update,) if self._is_first and changes else (),
        )

    def _decay_of(self, kept: KeptTensor) -> float | None:
        """Return the weight of a tensor's old value; None where it is copied."""
        is_copied = kept.watched.kind == "buffer" and self._buffers == "copied"
        return None if is_copied or self._is_first else self._decay


def _too_coarse(averages: list[Average]) -> str:
    """Name the dtypes of averages that their update is too small for."""
    dtypes = sorted({str(each.dtype) for each in averages if each.dtype.itemsize < 4})
    return f", and keep the average in torch.float32, not {' or '.join(dtypes)}" if dtypes else ""
