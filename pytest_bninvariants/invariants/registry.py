"""What a project says about its layers; apart, so that setting it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

bn_layer_types: frozenset[str] = frozenset()
"""Names of types that count as BN layers: `Class`, `pkg.module.Class` or `pkg.module:Class`."""


def use(names: Iterable[str]) -> Callable[[], None]:
    """Set the names of types that count as BN layers, and return what puts the old ones back."""
    global bn_layer_types
    before, bn_layer_types = bn_layer_types, frozenset(names)

    def put_back() -> None:
        global bn_layer_types
        bn_layer_types = before

    return put_back
