"""Keep torch ready to be watched between two audits, and know which optimizers live."""

from __future__ import annotations

import weakref

from torch import nn
from torch.optim import Optimizer

from pytest_bninvariants.instrumentation import installation
from pytest_bninvariants.instrumentation.optimizers import held_by
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo


class IdleWatcher(installation.Watcher):
    """Keep torch's functions wrapped between one auditor and the next, and note each optimizer.

    Wrapping them takes as long as a small test. A fixture of a wider scope may make an optimizer
    in the setup of one test, for the model of all.
    """

    def __init__(self) -> None:
        self._optimizers = weakref.WeakValueDictionary[int, Optimizer]()

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Ignore all calls."""
        return True

    def observes_layer(self, layer: nn.Module) -> bool:
        """Observe no layer."""
        return False

    def saw_param_group(self, optimizer: Optimizer) -> None:
        """Note an optimizer."""
        self._optimizers[id(optimizer)] = optimizer

    def held(self) -> set[int]:
        """Return the ids of the parameters that living optimizers hold."""
        return {each for optimizer in self._optimizers.values() for each in held_by(optimizer)}
