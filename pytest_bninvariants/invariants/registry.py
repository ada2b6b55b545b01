"""The types of layers that a project says are BN layers."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from pytest_bninvariants import asked
from pytest_bninvariants.errors import GateError, shown

_known: frozenset[str] = frozenset()  # the names that types were imported for


def names(kind: type) -> bool:
    """Tell whether `bn_layer_types` names a type or a base of it.

    Raises:
        GateError: a name with a module cannot be imported.
    """
    global _known
    bn_layer_types = asked.bn_layer_types
    if not bn_layer_types:
        return False
    if bn_layer_types is not _known:
        _known = bn_layer_types
        _imported.cache_clear()  # for another run the same name may be another class
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
    if not isinstance(found, type):
        raise GateError(f"bn_layer_types: {name!r} is no class, but {shown(found)}")
    return found
