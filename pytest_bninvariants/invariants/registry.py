"""What a project says about its layers; apart, so that setting it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module

from pytest_bninvariants.errors import GateError

bn_layer_types: frozenset[str] = frozenset()
"""Names of types that count as BN layers: `Class`, `pkg.module.Class` or `pkg.module:Class`."""


def use(names: Iterable[str]) -> Callable[[], None]:
    """Set the names of types that count as BN layers, and return what puts the old ones back."""
    global bn_layer_types
    before, bn_layer_types = bn_layer_types, frozenset(names)
    _imported.cache_clear()

    def put_back() -> None:
        global bn_layer_types
        bn_layer_types = before

    return put_back


def names(kind: type) -> bool:
    """Tell whether `bn_layer_types` names a type or a base of it.

    Raises:
        GateError: a name with a module cannot be imported.
    """
    if not bn_layer_types:
        return False
    return any(
        base.__qualname__ == name if _module_of(name) == "" else base is _imported(name)
        for base in kind.__mro__
        for name in bn_layer_types
    )


def _module_of(name: str) -> str:
    return name.replace(":", ".").rpartition(".")[0]


@cache
def _imported(name: str) -> object:
    module, _, qualified = name.partition(":") if ":" in name else name.rpartition(".")
    try:
        found: object = import_module(module)
        for part in qualified.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise GateError(f"bn_layer_types: {name!r} cannot be imported: {error}") from None
    return found
