"""Find out from the stack in which model, and from which line of the user, a layer runs."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from types import FrameType

from torch import nn

from pytest_bninvariants.frames import callers, place_of
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.selection.walk import all_parameters, named_modules
from pytest_bninvariants.verdict import Place

_ON_PURPOSE = {
    ("torch.optim.swa_utils", "update_bn"),  # computes statistics anew
    ("torch.nn.utils.stateless", "_functional_call"),  # runs on state that the caller passes
}


@dataclass(frozen=True, slots=True)
class CallContext:
    """The model and the user's line for which a layer runs.

    Args:
        model: class name of the outermost module that runs; of a wrapper, that of its module.
        name: the layer's qualified name in it.
        position: the layer's place in the order of the model's names.
        holder: the layer, or the innermost module around it, that has parameters, if there is one.
        place: the user's line that ran the model.
    """

    model: str
    name: str
    position: int
    holder: weakref.ref[nn.Module] | None
    place: Place | None


def call_context_of(layer: nn.Module) -> CallContext | None:
    """Return the context in which a layer runs.

    Return None if its statistics move on purpose, or are not its own.

    Args:
        layer: a layer that runs, or is about to.
    """
    stack = list(callers(sys._getframe(1)))  # not this frame, which would then refer to itself
    if any((f.f_globals.get("__name__"), f.f_code.co_name) in _ON_PURPOSE for f in stack):
        return None
    for depth in reversed(range(len(stack))):
        module = _running_module(stack[depth])
        if module is not None and contains(module, layer):
            return context_in(module, layer, stack[depth].f_back)
    return None


def running_modules() -> list[nn.Module]:
    """Return the modules whose methods run now, the outermost first."""
    modules = map(_running_module, callers(sys._getframe(1)))
    return [module for module in modules if module is not None][::-1]


def contains(module: nn.Module, layer: nn.Module) -> bool:
    """Tell whether a layer is a module, or is inside it."""
    return any(each is layer for _, each in named_modules(module))


def contexts_in(model: nn.Module) -> dict[int, CallContext]:
    """Return the contexts of a model and of all modules in it, by id, without holder and place."""
    names = ModelNames.from_model(model)
    unwrapped = _class_name(names)
    return {
        id(module): CallContext(unwrapped, names.bare[full], position, None, None)
        for position, (full, module) in reversed(list(enumerate(names.modules.items())))
    }


def context_in(outermost: nn.Module, layer: nn.Module, caller: FrameType | None) -> CallContext:
    """Return the context of a layer in the outermost module that runs.

    Args:
        outermost: the outermost module that runs, and contains the layer.
        layer: the layer.
        caller: the frame that called the outermost module, if that is known.
    """
    names = ModelNames.from_model(outermost)
    full = next(name for name, module in names.modules.items() if module is layer)
    around = [
        module
        for name, module in names.modules.items()
        if name in ("", full) or full.startswith(f"{name}.")
    ]
    holding = [module for module in around if next(all_parameters(module), None) is not None]
    model = _class_name(names)
    return CallContext(
        model=model,
        name=names.bare[full],
        position=list(names.modules).index(full),
        holder=weakref.ref(holding[-1]) if holding else None,
        place=place_of(caller, f"{model}()"),
    )


def _class_name(names: ModelNames) -> str:
    """Return the class name of a model; of a wrapper, that of its module."""
    unwrapped = [module for name, module in names.modules.items() if names.bare[name] == ""]
    return type(unwrapped[-1]).__name__


def _running_module(frame: FrameType) -> nn.Module | None:
    """Return the module whose method a frame runs, if it runs one."""
    code = frame.f_code
    if not code.co_argcount or code.co_varnames[0] != "self":
        return None
    owner = frame.f_locals.get("self")
    return owner if isinstance(owner, nn.Module) else None
