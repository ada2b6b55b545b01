"""Tell whether somebody averages a model into parameters that ask for no gradient."""

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

_TELLING = 2  # who averages one model into another writes all of its parameters


class FrozenParameters:
    """The parameters of a frozen layer, from when it was first seen.

    They were averaged if all of them have been written, though to the same values, or if one has
    other values. What a load or an optimizer writes is an average only if it has other values, and
    what an optimizer does with a gradient is none.

    Args:
        module: the module that holds them.

    Raises:
        GateError: they cannot be compared.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = (each for each in module.parameters() if not is_uninitialised(each))
        self._telling = sorted(parameters, key=Tensor.numel)[:_TELLING]
        self._averaged = False
        self._versions = self._versions_now()
        self._keep()

    @property
    def averaged(self) -> bool:
        """Tell whether they were."""
        if self._written():
            return True
        with undisturbed():
            found = changes_since(self._kept, self._kept.tensors, ())
        return any(change.kind == "values" for change in found)

    def leave_out(self, *, values: bool) -> AfterCall:
        """Note what was done up to an operation; return what is called after it.

        Args:
            values: whether what the operation writes is no average, though it has other values.
        """
        self._averaged = self.averaged if values else self._written()

        def finish() -> None:
            if not self._averaged:
                self._versions = self._versions_now()
                if values:
                    self._keep()

        return finish

    def have_gradients_in(self, optimizer: Optimizer) -> bool:
        """Tell whether an optimizer holds any that has a gradient."""
        held = held_by(optimizer)
        return any(id(each) in held and each.grad is not None for each in self._telling)

    def _written(self) -> bool:
        now = self._versions_now()
        moved = [old != new for old, new in zip(self._versions, now, strict=True)]
        return self._averaged or (bool(moved) and all(moved))

    def _versions_now(self) -> list[int | None]:
        with undisturbed():
            return list(map(version, self._telling))

    def _keep(self) -> None:
        with undisturbed():
            self._kept = take_snapshot(_watched(self._telling))


def _watched(tensors: Iterable[Tensor]) -> dict[str, WatchedTensor]:
    named = ((f"parameter {number}", tensor) for number, tensor in enumerate(tensors))
    return {name: WatchedTensor(name, "", "parameter", tensor) for name, tensor in named}
