"""Where in its model each module is, found once for each model."""

from __future__ import annotations

import weakref

from torch import nn

from pytest_bninvariants.audit.call_context import CallContext, contexts_in, running_modules
from pytest_bninvariants.instrumentation.module_map import ModuleMap


class LayerPlaces:
    """The contexts of the modules of the models that ran; no model is kept alive."""

    def __init__(self) -> None:
        self._contexts = ModuleMap[dict[int, CallContext]]()
        self._models: list[weakref.ref[nn.Module]] = []

    def models(self) -> list[nn.Module]:
        """Return the models that ran, and live."""
        return [model for ref in self._models if (model := ref()) is not None]

    def of_running(self, layer: nn.Module) -> CallContext | None:
        """Return the context of a layer that runs now, in the outermost module that contains it."""
        for module in running_modules():
            context = self.in_model(module, layer)
            if context is not None:
                return context
        return None

    def in_model(self, model: nn.Module, module: nn.Module) -> CallContext | None:
        """Return the context of a module in a model; None if the model does not contain it."""
        known = self._contexts.get(model)
        if known is None or id(module) not in known:
            found = contexts_in(model)
            if id(module) not in found:
                return None
            if known is None:
                self._models.append(weakref.ref(model))
            self._contexts.add(model, found)
            known = found
        return known[id(module)]
