"""Tell whether frozen parameters are an average of another model, as an EMA is."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants.instrumentation.observer_api import AfterCall
from pytest_bninvariants.instrumentation.optimizers import held_by
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.changes import changes_since
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.snapshot.tensor_bytes import is_uninitialised, version
from pytest_bninvariants.torch_internals.isolation import undisturbed

_CHECKED = 2  # an average writes all parameters, so checking a few small ones is enough


class FrozenParameters:
    """The parameters of a frozen layer since its frozen period began.

    They count as averaged if all of them were written, even with the same values, or if one has
    other values. A load, or a step of an optimizer without gradients, only counts if values differ;
    a step with gradients does not count.

    Args:
        module: the module that holds them.

    Raises:
        GateError: if the parameters cannot be compared.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = (each for each in module.parameters() if not is_uninitialised(each))
        self._checked = sorted(parameters, key=Tensor.numel)[:_CHECKED]
        self._averaged = False
        self._versions = self._versions_now()
        self._keep()

    @property
    def averaged(self) -> bool:
        """Tell whether the parameters were averaged."""
        if self._written():
            return True
        with undisturbed():
            changes = changes_since(self._kept, self._kept.tensors, ())
        return any(change.kind == "values" for change in changes)

    def exclude_operation(self, *, values: bool) -> AfterCall:
        """Exclude the writes of an operation from averaging; return a function to call after it.

        Args:
            values: whether writes of other values are excluded, too, and not only those that leave
                the values as they are.
        """
        self._averaged = self.averaged if values else self._written()

        def finish() -> None:
            if not self._averaged:
                self._versions = self._versions_now()
                if values:
                    self._keep()

        return finish

    def have_gradients_in(self, optimizer: Optimizer) -> bool:
        """Tell whether an optimizer holds a checked parameter that has a gradient."""
        held = held_by(optimizer)
        return any(id(each) in held and each.grad is not None for each in self._checked)

    def _written(self) -> bool:
        now = self._versions_now()
        moved = [old != new for old, new in zip(self._versions, now, strict=True)]
        return self._averaged or (bool(moved) and all(moved))

    def _versions_now(self) -> list[int | None]:
        with undisturbed():
            return list(map(version, self._checked))

    def _keep(self) -> None:
        with undisturbed():
            self._kept = take_snapshot(_watched(self._checked))


def _watched(tensors: Iterable[Tensor]) -> dict[str, WatchedTensor]:
    named = ((f"parameter {number}", tensor) for number, tensor in enumerate(tensors))
    return {name: WatchedTensor(name, "", "parameter", tensor) for name, tensor in named}
