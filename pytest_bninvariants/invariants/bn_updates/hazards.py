"""Hazards and notes about the updates of BN layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_bninvariants.diagnosis.wording import is_now, name_list, one_or_many
from pytest_bninvariants.invariants.bn_updates.layer_result import LayerResult
from pytest_bninvariants.invariants.bn_updates.state_history import WrongStatistic
from pytest_bninvariants.verdict import Hazard


def hazards_of(judged: list[LayerResult], found: list[LayerResult]) -> Iterator[Hazard]:
    """Yield the hazards of layers whose updates are right.

    Args:
        judged: the layers that are to update.
        found: all layers; if none is to update, each is a hazard.
    """
    for result in judged:
        for text in _hazard_texts(result) if result.holds else ():
            yield Hazard(name=result.name, text=text)
    for result in found if not judged else ():
        yield Hazard(
            name=result.name,
            text="has requires_grad=False and ran in eval only, and so did every other BN layer: "
            "there was nothing to update; name the layers that must update",
        )


def _hazard_texts(result: LayerResult) -> Iterator[str]:
    provenance = result.provenance
    if result.undone and result.replaced:
        it_is = f"it {is_now(result.type_now)}"
        yield f"the step leaves none of its updates in the model, where {it_is}"
    elif result.undone:
        yield "its running statistics were put back: the step leaves no update in them"
    if provenance.constant:
        yield (
            f"in {provenance.constant} of {provenance.updates} updates each channel of its batch "
            "had one value, as in a dummy forward: run such a forward in eval"
        )
    if result.record.in_dummy_steps:
        yield (
            "it was updated in a step whose gradients are all zero, as by a dummy forward: "
            "nothing trained, but its statistics took in the batch; run such a forward in eval"
        )
    if provenance.rounded_away:
        yield (
            f"in {provenance.rounded_away} of {provenance.updates} updates a narrow dtype rounded "
            "the whole update away: keep running statistics in float32"
        )
    if provenance.maybe_wrong:
        yield _maybe_wrong_text(provenance.maybe_wrong)
    if provenance.by_custom_forward:
        yield "it has a custom forward: its updates could not be checked against the reference"
    if result.uncounted:
        yield "its num_batches_tracked does not count its updates"


def _maybe_wrong_text(statistics: Iterable[WrongStatistic]) -> str:
    texts = (
        f"{each.name} is {each.fits}" if each.fits else f"{each.name}: {each.text}"
        for each in statistics
    )
    listed = "; ".join(dict.fromkeys(texts))
    return f"its updates differ from BatchNorm's, perhaps on purpose: {listed}"


def notes_about(results: list[LayerResult]) -> Iterator[str]:
    """Yield a note for each way of judging layers other than by watching their forwards."""
    by_counter = [each for each in results if each.by_counter]
    unknowable = [each for each in results if each.unknowable]
    for group, ran, judged in (
        (
            by_counter,
            "ran in compiled code, or where forwards cannot be seen",
            "judged by the counter",
        ),
        (
            unknowable,
            "ran where forwards cannot be seen, and without a counter",
            "how many updates that made is unknown",
        ),
    ):
        replaced = [each.name for each in group if each.replaced]
        others = [each.name for each in group if not each.replaced]
        is_another = one_or_many(replaced, "is another module now", "are other modules now")
        for names, what in ((replaced, is_another), (others, ran)):
            if names:
                yield f"{name_list(names)} {what}: {judged}"
    unjudged = [each.name for each in results if each.provenance.unjudged and not each.unseen]
    if unjudged:
        yield f"the values of {name_list(unjudged)} were not checked against the reference"
