"""Record which layers normalise with batch statistics while code runs."""

from __future__ import annotations

from torch import Tensor, nn

from pytest_bninvariants.instrumentation import installation
from pytest_bninvariants.instrumentation.observer_api import ForwardKind, Observer
from pytest_bninvariants.selection.bn_layers import (
    has_known_forward,
    is_bn_layer,
    uses_batch_statistics,
)
from pytest_bninvariants.selection.walk import named_modules
from pytest_bninvariants.torch_internals.private_api import InstanceNorm


class BatchStatisticsUse(Observer):
    """Record which layers normalise with batch statistics, and in which mode."""

    def __init__(self) -> None:
        self._training: dict[int, bool] = {}
        self._compiled = False

    def __enter__(self) -> None:
        installation.add(self)

    def __exit__(self, *error: object) -> None:
        installation.discard(self)

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Note that a layer normalises."""
        if not isinstance(layer, InstanceNorm):  # it uses each sample's own statistics
            self._training[id(layer)] = layer.training

    def saw_compiled_code(self) -> None:
        """Note that compiled code runs."""
        self._compiled = True

    def layers_in(self, model: nn.Module) -> dict[str, bool]:
        """Return the layers' names and whether they were in training mode.

        Compiled code hides its layers, so there a layer's mode decides.
        """
        training = {}
        for name, module in named_modules(model):
            by_mode = self._compiled and is_bn_layer(module) and has_known_forward(module)
            if id(module) in self._training:
                training[name] = self._training[id(module)]
            elif by_mode and uses_batch_statistics(module):
                training[name] = module.training
        return training
