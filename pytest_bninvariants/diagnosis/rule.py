"""What a rule is, and how a table of rules explains what a guard found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pytest_bninvariants.verdict import Cause, Place

T = TypeVar("T")


def _nothing(_: object) -> None:
    return None


def _no_tensors(_: object) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Generic[T]):
    """When a cause applies to an item that a guard found, and what the verdict then says.

    Args:
        cause: the cause's name, as in the docs.
        applies: tells whether the cause explains an item.
        explain: returns the reason and the fix for the items that one event explains.
        place: returns where the event happened, if that was seen.
        did: what happened at that place, up to the call; required if there is a place.
    """

    cause: str
    applies: Callable[[T], bool]
    explain: Callable[[list[T]], tuple[str, str]]
    place: Callable[[T], Place | None] = _nothing
    did: str = ""


def explain(
    rules: Sequence[Rule[T]],
    items: Iterable[T],
    *,
    layers: Callable[[list[T]], Iterable[str]],
    tensors: Callable[[list[T]], Iterable[str]] = _no_tensors,
    event: Callable[[T], object] = _nothing,
    every: bool = False,
) -> tuple[Cause, ...]:
    """Explain items, with one cause for all items that one rule explains by one event.

    Args:
        rules: the table, most specific rule first.
        items: what to explain.
        layers: returns the names of the layers of some items.
        tensors: returns the names of the tensors of some items.
        event: returns a key that tells events of one place apart.
        every: let every rule that applies explain an item, not only the first.

    Returns:
        The causes, in the order of the rules.
    """
    groups: dict[tuple[int, Any], list[T]] = {}
    for item in items:
        numbers = [number for number, rule in enumerate(rules) if rule.applies(item)]
        for number in numbers if every else numbers[:1]:
            key = number, (rules[number].place(item), event(item))
            groups.setdefault(key, []).append(item)
    causes = []
    for (number, _), group in sorted(groups.items(), key=lambda entry: entry[0][0]):
        causes.append(_cause(rules[number], group, layers(group), tensors(group)))
    return tuple(causes)


def _cause(rule: Rule[T], items: list[T], layers: Iterable[str], tensors: Iterable[str]) -> Cause:
    why, fix = rule.explain(items)
    return Cause(
        name=rule.cause,
        layers=tuple(layers),
        tensors=tuple(tensors),
        why=why,
        fix=fix,
        place=rule.place(items[0]),
        did=rule.did,
    )
