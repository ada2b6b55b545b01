"""Sum up in the terminal what an audit found in all tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_bninvariants.diagnosis.wording import counted, first_few, name_list
from pytest_bninvariants.reporting.lines import labelled, wrap
from pytest_bninvariants.reporting.verdict_text import cause_lines
from pytest_bninvariants.verdict import Cause, Place

_NAMED_TESTS = 3


@dataclass(frozen=True, slots=True)
class LeakGroup:
    """Layers of one model that leaked for one reason.

    Args:
        model: the model's class name.
        cause: the reason, as found in the first of the tests.
        tests: ids of the tests in which they leaked.
    """

    model: str
    cause: Cause
    tests: dict[str, None] = field(default_factory=dict)


class AuditTally:
    """Add up the findings of all tests, in whichever process each ran."""

    def __init__(self) -> None:
        self._tests: dict[str, tuple[int, int]] = {}
        self._groups: dict[tuple[object, ...], LeakGroup] = {}

    def add(self, test: str, findings: Mapping[str, Any]) -> None:
        """Add a test's findings.

        Args:
            test: its id.
            findings: plain data: how many BN `layers` ran in training mode, how many of these were
                `frozen`, and the `causes` of leaks, each with the class name of its model.
        """
        self._tests[test] = findings["layers"], findings["frozen"]
        for model, plain in findings["causes"]:
            cause = _rebuild_cause(plain)
            key = (model, cause.name, cause.layers, cause.place)
            self._groups.setdefault(key, LeakGroup(model, cause)).tests[test] = None

    def lines(self, *, verbose: bool) -> Iterator[str]:
        """Yield the summary's lines.

        Args:
            verbose: name all layers and all tests.
        """
        for group in self._groups.values():
            yield from _group_lines(group, verbose=verbose)
            yield ""
        yield from wrap(self._total(), first="", rest="  ")

    def _total(self) -> str:
        total = f"bn audit: {counted(len(self._tests), 'test')}, "
        ran = [layers for layers, _ in self._tests.values() if layers]
        if not ran:
            return f"{total}no BN layer ran in training mode: there was nothing to audit"
        total += f"{counted(sum(ran), 'BN layer')} ran in training mode in {len(ran)} of them, "
        leaking = {test for group in self._groups.values() for test in group.tests}
        if leaking:
            return f"{total}frozen layers moved in {len(leaking)}"
        frozen = sum(layers for _, layers in self._tests.values())
        return (
            f"{total}{frozen} of them frozen, and no leak was seen"
            if frozen
            else f"{total}none of them frozen"
        )


def _rebuild_cause(plain: Mapping[str, Any]) -> Cause:
    """Rebuild a cause from the plain data that crossed processes, where tuples became lists."""
    place = plain["place"] and Place(**plain["place"])
    return Cause(**{**plain, "layers": tuple(plain["layers"]), "place": place})


def _group_lines(group: LeakGroup, *, verbose: bool) -> Iterator[str]:
    layers, tests = list(group.cause.layers), list(group.tests)
    names = ", ".join(layers) if verbose else name_list(layers)
    moved = f"{counted(len(layers), 'frozen BN layer')} moved: {names or 'the model'}"
    yield from wrap(f"{group.model}: {moved}", first="", rest="  ")
    yield from labelled("in", first_few(tests, len(tests) if verbose else _NAMED_TESTS))
    yield from cause_lines(group.cause)
