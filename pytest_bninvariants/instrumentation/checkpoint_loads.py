"""Tell observers of `torch.distributed.checkpoint.load`, which writes to a state_dict's tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.torch_internals.patches import Patch, Switch
from pytest_bninvariants.torch_internals.private_api import tree_leaves

_MODULE = "torch.distributed.checkpoint"
_Function = Callable[..., Any]


class _CheckpointHooks:
    """The wrapper around `load`, in place while guards watch and the module has been imported.

    Importing it takes as long as many guards, and who loads has imported it.
    """

    def __init__(self) -> None:
        self._patch: Patch | None = None

    def install(self) -> None:
        """Wrap the function."""
        module = sys.modules.get(_MODULE)
        if self._patch is None and hasattr(module, "load"):
            self._patch = Patch(module, "load", _observing_load)
        if self._patch is not None:
            self._patch.install()

    def remove(self) -> None:
        """Take the wrapper off."""
        if self._patch is not None:
            self._patch.remove()


def _observing_load(original: _Function, switch: Switch) -> _Function:
    def load(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not switch.on:
            return original(*args, **kwargs)
        state = args[0] if args else kwargs.get("state_dict")
        tensors = [each for each in tree_leaves(state) if isinstance(each, Tensor)]
        frame = sys._getframe(1)
        after = [
            observer.before_tensor_load(f"{_MODULE}.load", tensors, frame)
            for observer in observer_api.observers_here()
        ]
        result = original(*args, **kwargs)
        for each in after:
            if each is not None:
                each()
        return result

    return load


checkpoint_hooks = _CheckpointHooks()
