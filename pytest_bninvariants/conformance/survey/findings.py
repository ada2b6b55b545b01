"""What of a survey's results the judgements do not say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from pytest_bninvariants.conformance.survey.run import SurveyedLayer


def unexpected_findings(results: Iterable[SurveyedLayer], laws: Collection[str]) -> Iterator[str]:
    """Yield a line for each result that the list of public layers does not tell.

    Args:
        results: of the layers that were surveyed.
        laws: names of the laws that ran; a deviation is gone if all of its laws ran, and held.
    """
    for result in results:
        name = result.layer.name
        if result.error:
            yield f"{name}: not judged: {result.error}"
        if result.version is None or result.error:
            continue
        judgements = result.layer.judgements
        broken = [each.law for each in result.broken]
        for each in result.broken:
            if not any(judgement.covers(each.law) for judgement in judgements):
                yield f"{name} breaks {each.law}, which no judgement covers: {each.headline}"
        for judgement in judgements:
            names = judgement.laws.split()
            if set(names) <= set(laws) and not set(names) & set(broken):
                yield f"{name} no longer breaks {judgement.laws}, judged: {judgement.why}"
