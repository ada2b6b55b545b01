"""The plan of a run of the conformance kit: which laws to check on which layers."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_bninvariants.plugin.expectation_file import read_lines
from pytest_bninvariants.plugin.options import SETTINGS, Settings, raise_usage_error

if TYPE_CHECKING:
    from pytest_bninvariants.batchnorm.laws import Law
    from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest

_DEFAULT = ("torch.nn:BatchNorm1d", "torch.nn:BatchNorm2d", "torch.nn:BatchNorm3d")
_PLAN = pytest.StashKey["ConformancePlan"]()
_USED = pytest.StashKey[bool]()


@dataclass(frozen=True, slots=True)
class Check:
    """One law on one layer, in one dtype on one device.

    Args:
        law: the law.
        subject: the layer.
        dtype: name of the inputs' dtype.
        device: where to run.
        examples: the number of cases.
        left_out: why the law is left out for this layer; None: it is not.
    """

    law: Law
    subject: LayerUnderTest
    dtype: str
    device: str
    examples: int
    left_out: str | None = None

    @property
    def id(self) -> str:
        """Return the id of its test, which pytest shows in brackets."""
        return f"{self.law.name}-{self.subject.label}-{self.dtype}-{self.device}"


@dataclass(frozen=True, slots=True)
class ConformancePlan:
    """The checks that the options choose.

    Args:
        checks: one for each law, layer, dtype and device.
        xfails: patterns of ids of checks that are expected to fail, each with its reason.
    """

    checks: tuple[Check, ...]
    xfails: tuple[tuple[str, str], ...]


def checks_as_params(config: pytest.Config) -> list[Any]:
    """Return the checks as parameters, with the marks of expected failures."""
    plan = config.stash.get(_PLAN, None) or make_plan(config)
    config.stash[_USED] = True
    return [
        pytest.param(
            check,
            id=check.id,
            marks=list(_marks(check, plan))[:1],
        )
        for check in plan.checks
    ]


def _marks(check: Check, plan: ConformancePlan) -> Iterator[pytest.MarkDecorator]:
    if check.left_out:
        yield pytest.mark.skip(reason=f"left out: {check.left_out}")
    for pattern, reason in plan.xfails:
        if fnmatchcase(check.id, pattern):
            yield pytest.mark.xfail(reason=reason, strict=True)


def make_plan(config: pytest.Config) -> ConformancePlan:
    """Read the options into a plan, and keep it for the session.

    Raises:
        pytest.UsageError: if an option cannot be read, or matches nothing.
    """
    from pytest_bninvariants.batchnorm.laws import LAWS, choose_laws

    settings = config.stash[SETTINGS]
    try:
        laws = choose_laws(settings.bn_laws)
    except ValueError as error:
        raise pytest.UsageError(f"--bn-laws={error}") from None
    subjects = list(_subjects(settings, laws))
    checks = tuple(_checks(laws, subjects, settings))
    if not checks:
        message = "--bn-laws, --bn-dtype and the ranks of --bn-impl leave no test"
        if all(law.across_ranks for law in laws):
            message += "; synced_* are laws of layers that synchronise: declare [ranks=2]"
        raise pytest.UsageError(message)
    every = [check.id for check in _checks(list(LAWS.values()), subjects, settings)]
    plan = ConformancePlan(checks, tuple(_read_xfails(settings.bn_xfails, every)))
    config.stash[_PLAN] = plan
    return plan


def require_kit_tests(config: pytest.Config) -> None:
    """Fail a run whose options choose tests of the kit, if it collected none of them.

    Raises:
        pytest.UsageError: if it collected none; an xdist worker reports the error instead.
    """
    options = config.stash[SETTINGS].kit_options
    skips_files = config.getoption("lf", False)  # those in which nothing failed last time
    if not options or _USED in config.stash or skips_files:
        return
    message = (
        f"{', '.join(options)}: no test of the conformance kit was collected; "
        "give `--pyargs pytest_bninvariants.conformance`, too"
    )
    raise_usage_error(config, options[0], message)


def _subjects(settings: Settings, laws: list[Law]) -> Iterator[LayerUnderTest]:
    from pytest_bninvariants.batchnorm.laws.registry import require_what_laws_need
    from pytest_bninvariants.batchnorm.trials.impl_spec import parse_impl

    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    specs = tuple(dict.fromkeys(settings.bn_impls)) or _DEFAULT
    subjects = {}
    for spec in specs:
        try:
            subjects[spec] = parse_impl(spec, settings.run.devices[0])
            require_what_laws_need(subjects[spec], laws)
        except ValueError as error:
            raise pytest.UsageError(f"--bn-impl={spec}: {error}") from None
    labels = Counter(subject.label for subject in subjects.values())
    for spec, subject in subjects.items():
        yield subject if labels[subject.label] == 1 else subject.labelled(spec)


def _checks(laws: list[Law], subjects: list[LayerUnderTest], settings: Settings) -> Iterator[Check]:
    for device, law, subject in product(settings.run.devices, laws, subjects):
        if not law.applies_to(subject):
            continue
        for dtype in law.dtypes_on(device, settings.bn_dtypes or None):
            left_out = law.reason_to_leave_out(subject)
            yield Check(law, subject, dtype, device, settings.bn_examples, left_out)


def _read_xfails(file: str | None, ids: list[str]) -> Iterator[tuple[str, str]]:
    """Yield a file's lines `ID-PATTERN: REASON`."""
    if file is None:
        return
    for place, line in read_lines("--bn-xfails", file):
        pattern, _, reason = (part.strip() for part in line.partition(": "))
        if not reason:
            raise pytest.UsageError(
                f"{place}: {line!r} has no reason; a line is 'ID-PATTERN: REASON'"
            )
        if not any(fnmatchcase(each, pattern) for each in ids):
            raise pytest.UsageError(
                f"{place}: {pattern!r} matches no test; an id looks like {ids[0]!r}"
            )
        yield pattern, reason
