"""The types that `bn_layer_types` declares to be BN layers; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module

from pytest_bninvariants import run_config
from pytest_bninvariants.errors import GateError, describe

_compared_names: tuple[str, ...] = ()  # whose types `_import_type` has cached


def includes(kind: type) -> bool:
    """Tell whether `bn_layer_types` names a type or one of its bases.

    Raises:
        GateError: if a name with a module cannot be imported.
    """
    global _compared_names
    bn_layer_types = run_config.current.bn_layer_types
    if not bn_layer_types:
        return False
    if bn_layer_types is not _compared_names:
        _compared_names = bn_layer_types
        _import_type.cache_clear()  # in another run the same name may mean another class
    return any(
        base.__qualname__ == name if _module_of(name) == "" else base is _import_type(name)
        for base in kind.__mro__
        for name in bn_layer_types
    )


def were_used() -> bool:
    """Tell whether a type was compared with the names of this run."""
    bn_layer_types = run_config.current.bn_layer_types
    return bool(bn_layer_types) and _compared_names is bn_layer_types


def require_importable(names: Iterable[str]) -> None:
    """Check that each name with a module can be imported and is a class.

    Raises:
        GateError: if one cannot, or is not.
    """
    for name in names:
        if _module_of(name):
            _import_type(name)


def find_undefined(names: Iterable[str]) -> set[str]:
    """Return the names without a module that no subclass of torch.nn.Module has."""
    from torch import nn

    defined = {kind.__qualname__ for kind in _subclasses(nn.Module)}
    return {name for name in names if not _module_of(name) and name not in defined}


def _subclasses(kind: type) -> Iterator[type]:
    subclasses: list[type] = kind.__subclasses__()
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)


def _module_of(name: str) -> str:
    return name.replace(":", ".").rpartition(".")[0]


@cache
def _import_type(name: str) -> object:
    module, _, qualified = name.partition(":") if ":" in name else name.rpartition(".")
    try:
        value: object = import_module(module)
        for attribute in qualified.split("."):
            value = getattr(value, attribute)
    except (ImportError, AttributeError) as error:
        raise GateError(f"bn_layer_types: {name!r} cannot be imported: {error}") from None
    if not isinstance(value, type):
        raise GateError(f"bn_layer_types: {name!r} is not a class, but {describe(value)}")
    return value
