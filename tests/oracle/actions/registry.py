"""The actions by family; each is run in both worlds, which choose alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from tests.oracle.world import Action

FAMILIES: dict[str, dict[str, Action]] = defaultdict(dict)


def action(family: str) -> Callable[[Action], Action]:
    """Register a function as an action of a family, under its own name."""

    def register(function: Action) -> Action:
        FAMILIES[family][function.__name__] = function
        return function

    return register


def find(name: str) -> Action:
    """Return the action of a name."""
    return next(actions[name] for actions in FAMILIES.values() if name in actions)


def family_of(name: str) -> str:
    """Return the family of an action."""
    return next(family for family, actions in FAMILIES.items() if name in actions)
