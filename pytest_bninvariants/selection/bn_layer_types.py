"""The types that `bn_layer_types` declares to be BN layers; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module

from pytest_bninvariants import run_config
from pytest_bninvariants.errors import GateError, describe

_compared_names: tuple[str, ...] = ()  # those that `_imported` has types of


def names(kind: type) -> bool:
    """Tell whether `bn_layer_types` names a type or a base of it.

    Raises:
        GateError: if a name with a module cannot be imported.
    """
    global _compared_names
    bn_layer_types = run_config.current.bn_layer_types
    if not bn_layer_types:
        return False
    if bn_layer_types is not _compared_names:
        _compared_names = bn_layer_types
        _imported.cache_clear()  # for another run the same name may be another class
    return any(
        base.__qualname__ == name if _module_of(name) == "" else base is _imported(name)
        for base in kind.__mro__
        for name in bn_layer_types
    )


def were_used() -> bool:
    """Tell whether a type was compared with the names of this run."""
    bn_layer_types = run_config.current.bn_layer_types
    return bool(bn_layer_types) and _compared_names is bn_layer_types


def insist_on_imports(given: Iterable[str]) -> None:
    """Refuse names with a module that cannot be imported, or that are not a class.

    Raises:
        GateError: if there is such a name.
    """
    for name in given:
        if _module_of(name):
            _imported(name)


def unknown(given: Iterable[str]) -> set[str]:
    """Return the names without a module that no defined subclass of torch.nn.Module has."""
    from torch import nn

    defined = {kind.__qualname__ for kind in _below(nn.Module)}
    return {name for name in given if not _module_of(name) and name not in defined}


def _below(kind: type) -> Iterator[type]:
    subclasses: list[type] = kind.__subclasses__()
    for each in subclasses:
        yield each
        yield from _below(each)


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
        raise GateError(f"bn_layer_types: {name!r} is not a class, but {describe(found)}")
    return found
