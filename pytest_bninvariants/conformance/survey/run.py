"""Run the laws on public layers, each in a process of its own."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context

from pytest_bninvariants.batchnorm.laws import Law, choose_laws
from pytest_bninvariants.batchnorm.laws.conform import check_law
from pytest_bninvariants.batchnorm.laws.registry import require_what_laws_need
from pytest_bninvariants.batchnorm.trials.impl_spec import parse_impl
from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest
from pytest_bninvariants.conformance.survey.entries import PublicLayer
from pytest_bninvariants.errors import GateError, LawBroken

_SEED = 0  # a second run of the same versions finds the same


@dataclass(frozen=True, slots=True)
class BrokenLaw:
    """How a layer breaks a law.

    Args:
        law: the law's name.
        dtypes: in which dtypes of the input.
        headline: what is wrong, in one line.
        snippet: code that reproduces it.
    """

    law: str
    dtypes: tuple[str, ...]
    headline: str
    snippet: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyedLayer:
    """What the laws said of a layer.

    Args:
        layer: the layer.
        version: of its package; None: it is not installed.
        held: names of the laws that held.
        cases: on how many cases they held.
        broken: the laws that did not, the simplest first.
        left_out: the laws that say nothing of it, each with the reason.
        error: why nothing, or not all, was judged; empty: all was.
    """

    layer: PublicLayer
    version: str | None
    held: tuple[str, ...] = ()
    cases: int = 0
    broken: tuple[BrokenLaw, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    error: str = ""


def survey_layers(
    layers: Iterable[PublicLayer], laws: Collection[str], *, examples: int, processes: int
) -> Iterator[SurveyedLayer]:
    """Yield what the laws say of each layer, as soon as it is known.

    Args:
        layers: the layers.
        laws: names of the laws to run.
        examples: the number of cases for each law.
        processes: how many to run at a time; each layer has a process of its own, since packages
            change torch where they are imported.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        running: dict[Future[SurveyedLayer], PublicLayer] = {}
        for layer in layers:
            if _version(layer) is None:
                yield SurveyedLayer(layer=layer, version=None)
            else:
                running[pool.submit(survey_layer, layer, laws, examples)] = layer
        for done in as_completed(running):
            try:
                yield done.result()
            except Exception as error:  # its process died, or a package raises anything
                layer = running[done]
                told = f"{type(error).__name__}: {error}"
                yield SurveyedLayer(layer=layer, version=_version(layer), error=told)


def _version(layer: PublicLayer) -> str | None:
    try:
        return version(layer.package)
    except PackageNotFoundError:
        return None


def survey_layer(layer: PublicLayer, laws: Collection[str], examples: int) -> SurveyedLayer:
    """Return what the laws say of a layer.

    Args:
        layer: the layer, whose package is installed.
        laws: names of the laws to run, of one process.
        examples: the number of cases for each law.
    """
    warnings.simplefilter("ignore")  # what packages deprecate is not the survey's subject
    chosen = choose_laws(() if layer.laws == "*" else (layer.laws,))
    chosen = [law for law in chosen if law.name in laws]
    try:
        subject = parse_impl(layer.spec)
        require_what_laws_need(subject, chosen)
    except ValueError as error:
        return SurveyedLayer(layer=layer, version=_version(layer), error=str(error))
    reasons = {law.name: law.reason_to_leave_out(subject) for law in chosen}
    wanted = [law for law in chosen if law.applies_to(subject) and not reasons[law.name]]
    trials = [_LawResult.of(law, subject, examples) for law in wanted]
    return SurveyedLayer(
        layer=layer,
        version=_version(layer),
        held=tuple(each.law for each in trials if each.holds),
        cases=sum(each.cases for each in trials),
        broken=tuple(each.broken for each in trials if each.broken),
        left_out=tuple((name, why) for name, why in reasons.items() if why),
        error="; ".join(each.unjudged for each in trials if each.unjudged),
    )


@dataclass(frozen=True, slots=True)
class _LawResult:
    """What became of a law, in all of its dtypes."""

    law: str
    cases: int
    broken: BrokenLaw | None
    unjudged: str

    @property
    def holds(self) -> bool:
        return not self.broken and not self.unjudged

    @classmethod
    def of(cls, law: Law, subject: LayerUnderTest, examples: int) -> _LawResult:
        cases, unjudged, failures = 0, "", dict[str, LawBroken]()
        for dtype in law.dtypes_on("cpu"):
            try:
                tally = check_law(law, subject, dtype=dtype, examples=examples, seed=_SEED)
            except LawBroken as failure:
                failures[dtype] = failure
            except GateError as error:
                unjudged = str(error)
            else:
                cases += tally.examples
        return cls(law.name, cases, _broken_law(law.name, failures), unjudged)


def _broken_law(law: str, failures: dict[str, LawBroken]) -> BrokenLaw | None:
    if not failures:
        return None
    failure = failures.get("float32") or next(iter(failures.values()))
    headline = str(failure).splitlines()[0].partition(f" {law}: ")[2]
    return BrokenLaw(law, tuple(failures), headline, failure.snippet or "")
