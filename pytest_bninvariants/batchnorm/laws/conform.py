"""Check laws on a layer, on as many cases as the effort says."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeGuard

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis.errors import FlakyFailure

from pytest_bninvariants.batchnorm.cases import Case
from pytest_bninvariants.batchnorm.laws import Law, choose_laws
from pytest_bninvariants.batchnorm.laws.registry import require_what_laws_need
from pytest_bninvariants.batchnorm.laws.steps import one_thread
from pytest_bninvariants.batchnorm.trials.comparison import ComparisonTally
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial
from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest
from pytest_bninvariants.batchnorm.trials.rank_trial import (
    LawNotTried,
    RankTrial,
    SparedTeam,
    require_importable,
)
from pytest_bninvariants.errors import GateError, LawBroken, describe
from pytest_bninvariants.option_values import DTYPES, EFFORTS, count_cases
from pytest_bninvariants.ranks.team import RankTeams

_TrialMaker = Callable[[Case, ComparisonTally], LawTrial | RankTrial]
MOST_UNJUDGED = 0.5  # of the cases; the drawn data give a few in a hundred
_ANOTHER_RESULT = (
    "This case gave another result when it ran again: the layer reads uninitialised memory, or "
    "something outside itself. So the snippet may pass at times."
)


def check_law(
    law: Law,
    subject: LayerUnderTest,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    examples: int = 100,
    teams: RankTeams | None = None,
    seed: int | None = None,
) -> ComparisonTally:
    """Run one law on a layer, and return what was compared.

    Args:
        law: the law.
        subject: the layer.
        dtype: name of the inputs' dtype.
        device: where to run.
        examples: the number of cases; laws that sweep sizes run a share of it.
        teams: the ranks of a law that needs several; None: they are started for this law alone.
        seed: the seed of what is drawn, for a law in one process; None: each run draws anew.

    Raises:
        LawBroken: if the layer breaks it; the message is a report of the smallest case found.
        LawNotTried: if a law needs several ranks, and the layer has no path on this device.
        GateError: if too many of the drawn cases could not be judged.
    """
    if not law.across_ranks:
        make_trial: _TrialMaker = partial(LawTrial, law.name, law.statement, subject)
        return _run_cases(law, subject, dtype, device, examples, make_trial, seed)
    with RankTeams() as own:
        return _check_on_ranks(law, subject, dtype, device, examples, teams or own)


def _check_on_ranks(
    law: Law, subject: LayerUnderTest, dtype: str, device: str, examples: int, teams: RankTeams
) -> ComparisonTally:
    require_importable(subject)
    key = (subject.import_line(), device)
    if key in teams.notes:
        raise LawNotTried(teams.notes[key])
    team = SparedTeam(teams.team(subject.ranks, device))

    def make_trial(case: Case, tally: ComparisonTally) -> RankTrial:
        return RankTrial(law.name, law.statement, subject, case, tally, team)

    try:
        return _run_cases(law, subject, dtype, device, examples, make_trial)
    except LawNotTried as reason:
        teams.notes[key] = str(reason)
        raise LawNotTried(str(reason)) from None


def _run_cases(
    law: Law,
    subject: LayerUnderTest,
    dtype: str,
    device: str,
    examples: int,
    make_trial: _TrialMaker,
    seed: int | None = None,
) -> ComparisonTally:
    tally = ComparisonTally()
    count = max(1, round(law.share * examples))
    plain = iter([count == 1 < examples])  # hypothesis draws it first: alone, it shows little

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(law.cases_for(subject, dtype, device))
    def run_cases(drawn: Case) -> None:
        if next(plain, False):
            reject()
        case, case_tally = replace(drawn, **subject.fixed), ComparisonTally()
        # a layer that switches gradients off does so for this case only
        with torch.enable_grad(), _default_device(device):
            law.check(make_trial(case, case_tally), case)
        tally.add_case(case_tally)

    try:
        with nullcontext() if law.threads else one_thread(), _no_logs():
            (run_cases if seed is None else hypothesis.seed(seed)(run_cases))()
    except LawBroken as broken:
        broken.__notes__ = []  # hypothesis adds the falsifying example, which the report has
        raise
    except FlakyFailure as flaky:
        raise _broken_at_times(flaky) from None
    _require_judged(law, tally)
    return tally


def _broken_at_times(flaky: FlakyFailure) -> Exception:
    """Return that a law is broken in some runs of one case; what else hypothesis found as it is."""
    for each in flaky.exceptions:
        if isinstance(each, LawBroken):
            return LawBroken(f"{each}\n\n{_ANOTHER_RESULT}", each.law, each.snippet)
    return flaky


def _require_judged(law: Law, tally: ComparisonTally) -> None:
    chance = math.sqrt(tally.examples)  # two standard deviations at a share of one half
    most = MOST_UNJUDGED * tally.examples + chance
    if tally.unjudged > most or tally.unjudged >= tally.examples:
        raise GateError(
            f"{law.name}: {tally.unjudged:.1f} of {tally.examples} cases were ill-posed, over "
            f"{MOST_UNJUDGED:.0%}, so the law was not judged"
        )


@contextmanager
def _no_logs() -> Iterator[None]:
    """Log nothing: of a hundred cases, torch.compile alone would log thousands of lines."""
    before = logging.root.manager.disable
    known = [each for each in logging.root.manager.loggerDict.values() if _is_enabled(each)]
    logging.disable(logging.CRITICAL)
    for each in known:  # torch has a logger that ignores logging.disable()
        each.disabled = True
    try:
        yield
    finally:
        logging.disable(before)
        for each in known:
            each.disabled = False


def _is_enabled(each: object) -> TypeGuard[logging.Logger]:
    return isinstance(each, logging.Logger) and not each.disabled


def _default_device(device: str) -> AbstractContextManager[object]:
    """Make new tensors where the law runs, whatever torch.set_default_device says."""
    users = torch.get_default_device().type
    wanted = torch.device(device)
    return nullcontext() if users in ("cpu", wanted.type) else wanted


def assert_bn_conforms(
    factory: Callable[..., Any],
    *,
    device: str = "cpu",
    laws: str | Iterable[str] = (),
    dtypes: str | Iterable[str] | None = None,
    examples: int | str = EFFORTS["default"],
    rank: str | None = None,
    declared: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> None:
    """Check that a layer satisfies the laws of BatchNorm.

    Args:
        factory: the layer's class, or a function that makes the layer; it takes nn.BatchNorm's
            arguments.
        device: where to run, such as `cuda`.
        laws: names or patterns of laws, or `frozen` for those of a layer with frozen statistics;
            empty: all laws of a whole BatchNorm.
        dtypes: names of the inputs' dtypes; None: each law's own.
        examples: how many cases to run for each law: a number >= 1, `quick` (6), `default` (100)
            or `thorough` (2000).
        rank: the rank of inputs, `0d` for (N, C), `1d`, `2d`, `3d`, or `nd` for all; None: the
            class's name tells it, or all ranks are tried out.
        declared: where the layer is another than nn.BatchNorm on purpose, by name and value; the
            names are in docs/conformance.md.
        keywords: further arguments for the factory.

    Raises:
        LawBroken: if the layer breaks a law; the message reports each broken law.
        GateError: if nothing could be judged, or a law of several ranks not on this device.
        TypeError: if the factory is a layer instead of a class, or cannot be called.
        ValueError: if an argument is unknown, the class makes no layer from its arguments, or the
            layer lacks what the laws need.

    Examples:
        >>> from pytest_bninvariants import LawBroken, assert_bn_conforms
        >>> from torch import nn
        >>> class CountsTwice(nn.BatchNorm2d):
        ...     def forward(self, x):
        ...         self.num_batches_tracked += self.training
        ...         return super().forward(x)
        >>> assert_bn_conforms(CountsTwice, laws="eval_output", examples="quick")
        >>> try:
        ...     assert_bn_conforms(CountsTwice, laws=["running_mean", "counter"], examples="quick")
        ... except LawBroken as broken:
        ...     print(broken.law)
        counter
    """
    subject = LayerUnderTest.from_factory(
        factory, rank=rank, keywords=keywords, declared=declared, device=device
    )
    wanted = [
        law
        for law in choose_laws(_names("laws", laws))
        if law.applies_to(subject) and not law.reason_to_leave_out(subject)
    ]
    require_what_laws_need(subject, wanted)
    wanted_dtypes = None if dtypes is None else _names("dtypes", dtypes)
    for name in wanted_dtypes or ():
        if name not in DTYPES:
            raise ValueError(f"dtype {name!r} is unknown; accepted: {', '.join(DTYPES)}")
    effort = count_cases("examples=", examples)
    broken: list[LawBroken] = []
    untried: dict[str, str] = {}
    count = 0
    with RankTeams() as teams:
        check = partial(check_law, device=str(device), examples=effort, teams=teams)
        for law in wanted:
            for dtype in law.dtypes_on(str(device), wanted_dtypes):
                count += 1
                try:
                    check(law, subject, dtype=dtype)
                except LawBroken as error:
                    broken.append(error)
                    break
                except LawNotTried as reason:
                    untried[law.name] = str(reason)
    if not count:
        raise GateError(
            f"no law is left to run in these dtypes, on a layer of these ranks, on {device}"
        )
    if broken:
        failure = _joined_failure(subject, broken, len(wanted))
        failure.__cause__ = failure.__context__ = None
        raise failure.with_traceback(None)
    if untried:
        raise GateError(
            f"{subject.label}: {', '.join(untried)}: {next(iter(untried.values()))}; from a test "
            "device='cuda', or declared={'without': {'synced_*': 'the reason'}}"
        )


def _names(option: str, value: object) -> tuple[Any, ...]:
    """Return the names in an option that takes a name, or several names.

    Raises:
        ValueError: if the value is neither.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Iterable):
        return tuple(value)
    raise ValueError(f"{option}= takes a name or several names; got {describe(value)}")


def _joined_failure(subject: LayerUnderTest, broken: list[LawBroken], count: int) -> LawBroken:
    if len(broken) == 1:
        return broken[0]
    names = ", ".join(error.law for error in broken)
    head = f"{subject.label} breaks {len(broken)} of {count} laws: {names}"
    text = "\n\n".join([head, *map(str, broken)])
    return LawBroken(text, broken[0].law, broken[0].snippet)
