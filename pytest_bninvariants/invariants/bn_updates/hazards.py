"""What is worth saying of BN layers' updates besides what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_bninvariants.diagnosis.wording import name_list
from pytest_bninvariants.invariants.bn_updates.layer_result import LayerResult
from pytest_bninvariants.invariants.bn_updates.state_history import WrongStatistic
from pytest_bninvariants.verdict import Hazard


def hazards_of(result: LayerResult) -> Iterator[Hazard]:
    """Yield the hazards of a layer whose updates are right."""
    if result.holds:
        for text in _hazard_texts(result):
            yield Hazard(name=result.name, text=text)


def _hazard_texts(result: LayerResult) -> Iterator[str]:
    provenance = result.provenance
    if result.undone:
        yield "its running statistics were put back: the step leaves no update in them"
    if provenance.lost:
        yield (
            f"in {provenance.lost} of {provenance.updates} updates a narrow dtype rounded the "
            "whole update away: keep running statistics in float32"
        )
    if provenance.unlike:
        yield _unlike_text(provenance.unlike)
    if provenance.unknown:
        yield "it has a custom forward: its updates could not be checked against the reference"
    if result.uncounted:
        yield "its num_batches_tracked does not count its updates"


def _unlike_text(unlike: Iterable[WrongStatistic]) -> str:
    texts = (
        f"{each.name} is {each.fits}" if each.fits else f"{each.name}: {each.text}"
        for each in unlike
    )
    listed = "; ".join(dict.fromkeys(texts))
    return f"its updates differ from BatchNorm's, perhaps on purpose: {listed}"


def notes_about(results: list[LayerResult]) -> Iterator[str]:
    """Yield how layers were judged, where that is not by what was seen of their forwards."""
    by_counter = [each.name for each in results if each.by_counter]
    if by_counter:
        yield (
            f"{name_list(by_counter)} ran in compiled code, or where forwards cannot be seen: "
            "judged by the counter"
        )
    unknowable = [each.name for each in results if each.unknowable]
    if unknowable:
        yield (
            f"{name_list(unknowable)} ran where forwards cannot be seen, and counts no batches: "
            "how often it was updated cannot be told"
        )
    unjudged = [each.name for each in results if each.provenance.unjudged and not each.unseen]
    if unjudged:
        yield f"the values of {name_list(unjudged)} were not checked against the reference"
