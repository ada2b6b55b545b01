"""A class whose state has nn.BatchNorm's names, for a layer that has it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any


def renaming_source(base: str, state: Mapping[str, str | None]) -> list[str]:
    """Return lines of code that extend a class by properties for its state.

    Args:
        base: the name of the class; the new one has an underscore behind it.
        state: where each part of the state is; None: nowhere.
    """
    lines = ["", "", f"class {base}_({base}):"]
    for name, path in state.items():
        lines += [f"    {name} = None"] if path is None else _property(name, path)
    return [*lines, "", ""]


def _property(name: str, path: str) -> list[str]:
    owner, _, attribute = f"self.{path}".rpartition(".")
    return [
        f"    {name} = property(",
        f"        lambda self: {owner}.{attribute},",
        f"        lambda self, value: setattr({owner}, {attribute!r}, value),",
        "    )",
    ]


def rename_state(factory: Any, state: Mapping[str, str | None]) -> type[Any]:
    """Return a class that extends another by properties for its state; pickle takes its layers."""
    renamed: type[Any] = _renamed(factory, tuple(state.items()))
    return renamed


@cache
def _renamed(factory: Any, state: tuple[tuple[str, str | None], ...]) -> Any:
    base = factory.__name__
    names: dict[str, Any] = {base: factory}
    exec("\n".join(renaming_source(base, dict(state))), names)
    renamed = names[f"{base}_"]
    # pickle would look for the class in a module; a snippet has it in one
    renamed.__reduce__ = lambda layer: (_new_layer, (factory, state), vars(layer))
    return renamed


def _new_layer(factory: Any, state: tuple[tuple[str, str | None], ...]) -> Any:
    """Return a layer that pickle will fill."""
    renamed = _renamed(factory, state)
    return renamed.__new__(renamed)
