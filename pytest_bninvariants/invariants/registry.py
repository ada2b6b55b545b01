"""What a project says about its layers; apart, so that setting it imports no torch."""

from __future__ import annotations

bn_layer_types: frozenset[str] = frozenset()
"""Names of types that count as BN layers: `Class`, `package.module.Class` or `package.module:Class`."""
