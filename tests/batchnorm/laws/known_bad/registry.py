"""Layers with one defect each, by the law that must find it."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

KNOWN_BAD: dict[str, list[type[nn.Module]]] = {}


def breaks(*laws: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a layer under the laws that it breaks."""

    def register(layer: type[nn.Module]) -> type[nn.Module]:
        for law in laws:
            KNOWN_BAD.setdefault(law, []).append(layer)
        return layer

    return register
