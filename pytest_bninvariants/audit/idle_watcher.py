"""Keep torch ready to be watched between two audits."""

from __future__ import annotations

from torch import nn

from pytest_bninvariants.instrumentation import installation
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo


class IdleWatcher(installation.Watcher):
    """Observe nothing, but keep torch's functions wrapped between one auditor and the next.

    Wrapping them takes as long as a small test.
    """

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Ignore all calls."""
        return True

    def observes_layer(self, layer: nn.Module) -> bool:
        """Observe no layer."""
        return False
