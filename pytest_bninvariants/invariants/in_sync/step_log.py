"""Record what happened to two models during a step: optimizer steps, and loads of own tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants.instrumentation.installation import Watcher
from pytest_bninvariants.instrumentation.observer_api import AfterCall
from pytest_bninvariants.instrumentation.optimizers import OuterSteps, held_by
from pytest_bninvariants.instrumentation.own_loads import OwnLoads
from pytest_bninvariants.invariants.in_sync.pair import Tensors
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.snapshot.tensor_bytes import has_content, version
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Place


class StepLog(Watcher):
    """Record what happens to a model and to its copy or average.

    Args:
        model: the model's tensors.
        other: the other's tensors.
        kept: what a snapshot holds of the other's tensors; empty if it is no average.
    """

    def __init__(
        self, model: Tensors, other: Tensors, kept: Mapping[str, KeptTensor] | None = None
    ) -> None:
        self._model = {id(watched.tensor) for watched in model.values()}
        self._other = {key: watched.tensor for key, watched in other.items()}
        self._kept = kept or {}
        self._versions = self._read_versions()
        self._versions_at_step: dict[str, int | None] | None = None
        self._own_loads = OwnLoads([each.tensor for each in (*model.values(), *other.values())])
        self._outer_steps = OuterSteps()
        self.average_ran_first: bool | None = None
        """Whether the average was updated before the model's optimizer stepped, if that did."""

    @property
    def steps(self) -> int:
        """Return how many steps of optimizers that hold parameters of the model have ended."""
        return self._outer_steps.count

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Ignore all calls."""
        return True

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Count steps of optimizers that hold the model; look at the average before the first."""
        if self._model.isdisjoint(held_by(optimizer)):
            return None
        if self._versions_at_step is None:
            with undisturbed():
                self._versions_at_step = self._read_versions()
                self.average_ran_first = self._versions_at_step != self._versions or any(
                    has_content(kept.content, self._other[key]) is False
                    for key, kept in self._kept.items()
                )
        is_outer = self._outer_steps.begins(frame)
        return partial(self._outer_steps.ended, frame) if is_outer else None

    def before_load(
        self, module: nn.Module, state: Mapping[str, Any], frame: FrameType | None
    ) -> AfterCall | None:
        """Look for own tensors in a state_dict that is about to be loaded."""
        self._own_loads.saw_load(module, state, frame)
        return None

    def loaded_itself_at(self, tensor: Tensor) -> Place | None:
        """Return where a tensor was last loaded from itself, if nothing changed it after that."""
        return self._own_loads.place_of_last(tensor, tensor)

    def was_written(self, key: str) -> bool:
        """Tell whether a write to a tensor of the average was seen; writes to `.data` are not."""
        return version(self._other[key]) != self._versions[key]

    def was_written_first(self, key: str) -> bool:
        """Tell whether it was written to before the optimizer's step, and never after it."""
        at_step = self._versions_at_step
        if at_step is None:
            return False
        return self._versions[key] != at_step[key] == version(self._other[key])

    def _read_versions(self) -> dict[str, int | None]:
        return {key: version(tensor) for key, tensor in self._other.items()}
