"""The marker that guards a test against what an audit found in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pytest_bninvariants.audit_rules import AUDIT_RULES
from pytest_bninvariants.selection.model_names import covers


def guarding_marker(rule: str, layers: Sequence[str], others: Collection[str]) -> str:
    """Return the marker to write on a test, as code.

    Args:
        rule: the rule that found something.
        layers: the names of the layers of which it did.
        others: names of layers that the marker must not cover, since they do what is right.
    """
    names: list[str] = []
    for layer in layers:
        name = _shortest_prefix(layer, others)
        if not any(covers(known, name) for known in names):
            names.append(name)
    arguments = ", ".join(repr(name).replace("'", '"') for name in names if name)
    return f"@pytest.mark.{AUDIT_RULES[rule].marker}" + (f"({arguments})" if arguments else "")


def _shortest_prefix(layer: str, others: Collection[str]) -> str:
    """Return the outermost module around a layer that covers none of the others."""
    parts = layer.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts) + 1)]
    for prefix in prefixes:
        if not any(covers(prefix, other) for other in others):
            return prefix
    return layer
