"""Read off the graph of a scripted or traced module what it normalises with."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from torch.jit import ScriptModule

from pytest_bninvariants.torch_internals.private_api import InstanceNorm, NormBase

BakedIn = Literal["batch", "stored"]
_FLAG = {"aten::batch_norm": 5, "aten::instance_norm": 5}  # its position among the inputs


def is_scripted_norm(module: nn.Module) -> bool:
    """Tell whether a module was scripted or traced from a BatchNorm of whatever subclass."""
    if not isinstance(module, ScriptModule):
        return False
    name = getattr(module, "original_name", "")
    return any(kind.__name__ == name for kind in _batch_norms())


def _batch_norms() -> list[type]:
    if isinstance(NormBase, tuple):  # the fallback for a torch without the base class
        return [kind for kind in NormBase if not issubclass(kind, InstanceNorm)]
    return [kind for kind in _with_subclasses(NormBase) if not issubclass(kind, InstanceNorm)]


def _with_subclasses(kind: type) -> list[type]:
    subclasses: list[type] = kind.__subclasses__()
    return [kind, *(each for sub in subclasses for each in _with_subclasses(sub))]


def baked_in(module: nn.Module) -> BakedIn | None:
    """Return what a scripted layer's code always normalises with; None if its mode decides.

    Tracing bakes in the mode that the layer had, and scripting that it has no running statistics.
    """
    try:
        graph: Any = module.inlined_graph
        flags = {
            list(node.inputs())[position].toIValue()
            for name, position in _FLAG.items()
            for node in graph.findAllNodes(name)
        }
    except (AttributeError, RuntimeError):  # it has no forward, or this torch shows no graph
        return None
    if True in flags:
        return "batch"
    return "stored" if flags == {False} else None
