"""Sum up in the terminal what an audit found in all tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_bninvariants.diagnosis.wording import counted, first_few
from pytest_bninvariants.reporting.lines import labelled, wrap
from pytest_bninvariants.reporting.verdict_text import cause_lines
from pytest_bninvariants.verdict import Cause, Place

_NAMED_TESTS = 3
_NAMED_LAYERS = 2


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """Layers of one model of which one thing is to be told.

    Args:
        model: the model's class name.
        cause: what, as found in the first of the tests.
        tests: ids of the tests in which it was found.
    """

    model: str
    cause: Cause
    tests: dict[str, None] = field(default_factory=dict)

    @property
    def leaked(self) -> bool:
        """Tell whether statistics moved: then the cause explains tensors."""
        return bool(self.cause.tensors)


class AuditTally:
    """Add up the findings of all tests, in whichever process each ran."""

    def __init__(self) -> None:
        self._tests: dict[str, tuple[int, int]] = {}
        self._groups: dict[tuple[object, ...], FindingGroup] = {}

    def add(self, test: str, findings: Mapping[str, Any]) -> None:
        """Add a test's findings.

        Args:
            test: its id.
            findings: plain data: how many BN `layers` ran in training mode, how many of these were
                `frozen`, and the `causes` of what was found, each with the class name of its model.
        """
        self._tests[test] = findings["layers"], findings["frozen"]
        for model, plain in findings["causes"]:
            cause = _rebuild_cause(plain)
            key = (model, cause.name, cause.layers, cause.place)
            self._groups.setdefault(key, FindingGroup(model, cause)).tests[test] = None

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
        layers = counted(sum(ran), "BN layer")
        in_training = f"{layers} ran in training mode in {len(ran)} of them"
        parts = [in_training if ran else "no BN layer ran in training mode"]
        leaking, stuck = self._tests_with(leaked=True), self._tests_with(leaked=False)
        if leaking:
            parts.append(f"frozen layers moved in {leaking}")
        if stuck:
            parts.append(f"a model was trained in eval in {stuck}")
        frozen = sum(layers for _, layers in self._tests.values())
        if ran and not leaking:
            seen = f"{frozen} of them frozen, and no leak was seen"
            parts.insert(1, seen if frozen else "none of them frozen")
        nothing = "" if ran or leaking or stuck else ": there was nothing to audit"
        return f"{total}{', '.join(parts)}{nothing}"

    def _tests_with(self, *, leaked: bool) -> int:
        """Count the tests with a leak, or with another finding."""
        groups = (group for group in self._groups.values() if group.leaked == leaked)
        return len({test for group in groups for test in group.tests})


def _rebuild_cause(plain: Mapping[str, Any]) -> Cause:
    """Rebuild a cause from the plain data that crossed processes, where tuples became lists."""
    place = plain["place"] and Place(**plain["place"])
    return Cause(**{**plain, "layers": tuple(plain["layers"]), "place": place})


def _group_lines(group: FindingGroup, *, verbose: bool) -> Iterator[str]:
    layers, tests = list(group.cause.layers), list(group.tests)
    named = [layer or "the model" for layer in layers]
    names = first_few(named, len(named) if verbose else _NAMED_LAYERS)
    what, did = ("frozen BN layer", "moved") if group.leaked else ("BN layer", "trained in eval")
    found = f"{counted(len(layers), what)} {did}: {names}"
    yield from wrap(f"{group.model}: {found}", first="", rest="  ")
    yield from labelled("in", first_few(tests, len(tests) if verbose else _NAMED_TESTS))
    yield from cause_lines(group.cause)
