"""What an audit found in all tests, as the terminal's summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_bninvariants.diagnosis.wording import first_few, name_list
from pytest_bninvariants.reporting.lines import wrapped
from pytest_bninvariants.reporting.verdict_text import explained
from pytest_bninvariants.verdict import Cause, Place

_NAMED_TESTS = 3


@dataclass(frozen=True, slots=True)
class LeakGroup:
    """Layers of one model that leaked for one reason.

    Args:
        model: the model's class name.
        cause: the reason, as the first test gave it.
        tests: ids of the tests in which they did.
    """

    model: str
    cause: Cause
    tests: dict[str, None] = field(default_factory=dict)


class AuditTally:
    """Add up what the tests' reports say, in whichever process they ran."""

    def __init__(self) -> None:
        self._tests: dict[str, tuple[int, int]] = {}
        self._groups: dict[tuple[object, ...], LeakGroup] = {}

    def add(self, test: str, findings: Mapping[str, Any]) -> None:
        """Add a test's findings.

        Args:
            test: its id.
            findings: plain data: how many BN `layers` ran in training mode, how many of them
                `frozen`, and the `causes` of leaks, each with the class name of its model.
        """
        self._tests[test] = findings["layers"], findings["frozen"]
        for model, plain in findings["causes"]:
            cause = _cause(plain)
            key = (model, cause.name, cause.layers, cause.place)
            self._groups.setdefault(key, LeakGroup(model, cause)).tests[test] = None

    def lines(self, *, verbose: bool) -> Iterator[str]:
        """Yield the summary's lines.

        Args:
            verbose: name all layers and all tests.
        """
        for group in self._groups.values():
            yield from _told(group, verbose=verbose)
            yield ""
        yield from wrapped(self._total(), first="", rest="  ")

    def _total(self) -> str:
        ran = [layers for layers, _ in self._tests.values() if layers]
        watched = f"bn audit: {_count(len(self._tests), 'test')}, "
        if not ran:
            return f"{watched}no BN layer ran in training mode: there was nothing to audit"
        watched += f"{_count(sum(ran), 'BN layer')} ran in training mode in {len(ran)} of them, "
        frozen = sum(layers for _, layers in self._tests.values())
        leaking = {test for group in self._groups.values() for test in group.tests}
        if not leaking:
            return (
                f"{watched}{frozen} of them frozen, and no leak was seen"
                if frozen
                else (f"{watched}none of them frozen")
            )
        return f"{watched}frozen layers moved in {len(leaking)}"


def _cause(plain: Mapping[str, Any]) -> Cause:
    place = plain["place"] and Place(**plain["place"])
    return Cause(**{**plain, "layers": tuple(plain["layers"]), "place": place})


def _told(group: LeakGroup, *, verbose: bool) -> Iterator[str]:
    layers, tests = list(group.cause.layers), list(group.tests)
    names = ", ".join(layers) if verbose else name_list(layers)
    head = f"{group.model}: {_count(len(layers), 'frozen BN layer')} moved: {names or 'the model'}"
    yield from wrapped(head, first="", rest="  ")
    shown = first_few(tests, len(tests) if verbose else _NAMED_TESTS)
    yield from wrapped(shown, first="in   ", rest="     ")
    yield from explained(group.cause)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
