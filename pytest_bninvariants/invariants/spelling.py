"""How a guard is spelled, and what may be passed to one."""

from __future__ import annotations

from torch import nn

from pytest_bninvariants.errors import GateError, shown


def spelled(invariant: str, modules: tuple[str, ...], **options: object) -> str:
    """Return a guard as its user wrote it.

    Args:
        invariant: its name.
        modules: the names that it was given.
        options: its keywords that are not at their default.
    """
    arguments = [repr(name) for name in modules]
    arguments += [f"{name}={value!r}" for name, value in options.items()]
    return f"{invariant}({', '.join(arguments)})"


def model_of(invariant: str, model: object, signature: str = "(model, *modules)") -> nn.Module:
    """Return the model that a guard was given.

    Args:
        invariant: its name.
        model: what it was given.
        signature: how it is called.

    Raises:
        GateError: it is none.
    """
    if not isinstance(model, nn.Module):
        raise GateError(
            f"{invariant}{signature} takes the model, a torch.nn.Module, first; got {shown(model)}"
        )
    return model


def names_among(model: object, modules: tuple[object, ...]) -> tuple[str, ...]:
    """Return the modules' names, or say how to write what was passed instead of names.

    Raises:
        GateError: a module was passed itself, or a list of names.
    """
    for module in modules:
        if isinstance(module, nn.Module) and isinstance(model, nn.Module):
            names = [name for name, part in model.named_modules() if part is module]
            raise GateError(f"modules are given by name: {_advice(names)}; got {shown(module)}")
        if isinstance(module, (list, tuple, set)):
            names = [name for name in module if isinstance(name, str)]
            raise GateError(f"names are given one by one: {_advice(names)}; got {shown(module)}")
    return modules  # type: ignore[return-value]


def _advice(names: list[str]) -> str:
    return f"write {', '.join(map(repr, names))}" if names else "such as 'backbone.bn1'"
