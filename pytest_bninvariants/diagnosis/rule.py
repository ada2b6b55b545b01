"""What a rule of a diagnosis is, and how a table of rules explains what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pytest_bninvariants.verdict import Cause, Place

T = TypeVar("T")


def _nowhere(_: object) -> Place | None:
    return None


def _none(_: object) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Generic[T]):
    """When a cause applies to something that was found, and what a verdict says about it.

    Args:
        cause: the cause's name; the docs have it, too.
        applies: tells whether the cause explains something.
        explain: returns why, and the fix, for all that one event explains.
        place: returns where it happened, if that was seen.
        did: what was done at that place, up to the call; a rule with a place says it.
    """

    cause: str
    applies: Callable[[T], bool]
    explain: Callable[[list[T]], tuple[str, str]]
    place: Callable[[T], Place | None] = _nowhere
    did: str = ""


def explain(
    rules: Sequence[Rule[T]],
    found: Iterable[T],
    *,
    layers: Callable[[list[T]], Iterable[str]],
    tensors: Callable[[list[T]], Iterable[str]] = _none,
    event: Callable[[T], object] = _nowhere,
    every: bool = False,
) -> tuple[Cause, ...]:
    """Explain what was found, with one cause for all that one rule explains by one event.

    Args:
        rules: the table, most specific rule first.
        found: what is to be explained.
        layers: returns the names of the layers that a group is about.
        tensors: returns the names of its tensors.
        event: tells events of one place apart.
        every: let all rules that apply explain a thing, not only the first.

    Returns:
        The causes, in the order of the rules.
    """
    grouped: dict[tuple[int, Any], list[T]] = {}
    for each in found:
        numbers = [number for number, rule in enumerate(rules) if rule.applies(each)]
        for number in numbers if every else numbers[:1]:
            key = number, (rules[number].place(each), event(each))
            grouped.setdefault(key, []).append(each)
    causes = []
    for number, happened in sorted(grouped, key=lambda key: key[0]):
        rule, group = rules[number], grouped[number, happened]
        why, fix = rule.explain(group)
        causes.append(
            Cause(
                name=rule.cause,
                layers=tuple(layers(group)),
                tensors=tuple(tensors(group)),
                why=why,
                fix=fix,
                place=rule.place(group[0]),
                did=rule.did,
            )
        )
    return tuple(causes)
