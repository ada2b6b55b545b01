"""Sum up in the terminal what an audit found in all tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_bninvariants.audit_rules import AUDIT_RULES
from pytest_bninvariants.diagnosis.wording import counted, first_few
from pytest_bninvariants.reporting.lines import labelled, wrap
from pytest_bninvariants.reporting.verdict_data import cause_from_data
from pytest_bninvariants.reporting.verdict_text import cause_lines
from pytest_bninvariants.verdict import Cause

_NAMED_TESTS = 3
_NAMED_LAYERS = 2


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """Layers of one model of which one thing is to be told.

    Args:
        rule: the rule that found it.
        fails: whether the run takes it for a fault, rather than for worth saying.
        model: the model's class name.
        marker: the marker that guards against it, as code.
        cause: what, as found in the first of the tests.
        tests: ids of the tests in which it was found.
    """

    rule: str
    fails: bool
    model: str
    marker: str
    cause: Cause
    tests: dict[str, None] = field(default_factory=dict)


class AuditTally:
    """Add up the findings of all tests, in whichever process each ran."""

    def __init__(self) -> None:
        self._tests: dict[str, Mapping[str, Any]] = {}
        self._groups: dict[tuple[object, ...], FindingGroup] = {}

    def add(self, test: str, found: Mapping[str, Any]) -> None:
        """Add a test's findings.

        Args:
            test: its id.
            found: plain data: how many BN layers `ran`, how many of these `layers` in training
                mode, how many of those were `frozen`; the `findings`, each with its `rule`, whether
                it `fails`, its `ids`, its `marker` and its `verdict`, as `Verdict.to_dict` returns
                it; and the ids of the `expected` findings.
        """
        self._tests[test] = found
        for finding in found["findings"]:
            rule, fails, verdict = finding["rule"], finding["fails"], finding["verdict"]
            model = verdict["model"]
            for plain in verdict["causes"]:
                cause = cause_from_data(plain)
                key = (rule, model, cause.name, cause.layers, cause.place)
                group = FindingGroup(rule, fails, model, finding["marker"], cause)
                self._groups.setdefault(key, group).tests[test] = None

    def ids(self) -> list[tuple[str, str]]:
        """Return the test and the id of each finding that was not expected."""
        return [
            (test, each)
            for test, found in self._tests.items()
            for finding in found["findings"]
            for each in finding["ids"]
        ]

    def lines(self, *, verbose: bool) -> Iterator[str]:
        """Yield the summary's lines.

        Args:
            verbose: name all layers and all tests.
        """
        groups = sorted(self._groups.values(), key=lambda group: not group.fails)
        for group in groups:
            yield from _group_lines(group, verbose=verbose)
            yield ""
        markers: dict[str, None] = {group.marker: None for group in groups if group.fails}
        if markers:
            yield "once mended, these markers keep it so:"
            yield from (f"  {marker}" for marker in markers)
            yield ""
        yield from wrap(self._total(), first="", rest="  ")

    def _total(self) -> str:
        parts = [counted(len(self._tests), "test"), self._what_ran()]
        if self._count("ran") or self._groups:
            parts.append(self._what_was_found())
        return f"bn audit: {'; '.join(parts)}"

    def _what_was_found(self) -> str:
        found = []
        for rule in dict.fromkeys(group.rule for group in self._groups.values()):
            tests = {t for g in self._groups.values() if g.rule == rule for t in g.tests}
            found.append(f"{rule} in {counted(len(tests), 'test')}")
        expected = sum(len(each["expected"]) for each in self._tests.values())
        if expected:
            found.append(f"{counted(expected, 'finding')} as expected")
        return f"found {', '.join(found)}" if found else "nothing was found"

    def _what_ran(self) -> str:
        ran, training, frozen = map(self._count, ("ran", "layers", "frozen"))
        if not ran:
            return "no BN layer ran: there was nothing to audit"
        tests = sum(bool(found["ran"]) for found in self._tests.values())
        layers = f"{counted(ran, 'BN layer')} ran in {tests} of them"
        frozen_ones = f", {frozen or 'none'} of these frozen" if training else ""
        return f"{layers}, {training or 'none'} in training mode{frozen_ones}"

    def _count(self, what: str) -> int:
        return sum(found[what] for found in self._tests.values())


def _group_lines(group: FindingGroup, *, verbose: bool) -> Iterator[str]:
    rule = AUDIT_RULES[group.rule]
    layers, tests = list(group.cause.layers), list(group.tests)
    named = [layer or "the model" for layer in layers]
    names = first_few(named, len(named) if verbose else _NAMED_LAYERS)
    also = "" if group.fails else "also "
    title = f"{also}{group.model}: {counted(len(layers), rule.noun)} {rule.did}: {names}"
    yield from wrap(title, first="", rest="  ")
    yield from labelled("in", first_few(tests, len(tests) if verbose else _NAMED_TESTS))
    yield from cause_lines(group.cause)
