"""Why a BN layer was updated more often than it should have been, or in eval."""

from __future__ import annotations

from pytest_bninvariants.diagnosis.rule import Rule
from pytest_bninvariants.diagnosis.wording import one_or_many, span, spare_recomputation
from pytest_bninvariants.invariants.bn_updates.layer_result import (
    LayerResult,
    names_were,
)
from pytest_bninvariants.verdict import Place


def _explain_recomputation(results: list[LayerResult]) -> tuple[str, str]:
    again = span([each.provenance.recomputed for each in results], "time", "times")
    return (
        f"{names_were(results)} updated {again} in backward, where activation "
        f"checkpointing runs a forward again, with the same batch{_effective_weight(results[0])}",
        spare_recomputation([each.name for each in results]),
    )


def _momentum_and_updates(result: LayerResult) -> tuple[float, int] | None:
    """Return the momentum by which a step's updates were averaged, and how many these were."""
    momentum, k = getattr(result.record.layer, "momentum", None), result.updates_per_step or 0
    return (momentum, k) if isinstance(momentum, float) and 0 < momentum < 1 < k else None


def _effective_weight(result: LayerResult) -> str:
    """Return the weight that several updates give the new batches; empty if there is one."""
    averaged = _momentum_and_updates(result)
    if averaged is None:
        return ""
    momentum, k = averaged
    return (
        f"; {k} updates with momentum {momentum:g} weigh the new batches "
        f"1 - (1 - {momentum:g})^{k} = {1 - (1 - momentum) ** k:.3g}"
    )


def _equal_momentum(result: LayerResult) -> str:
    """Return the momentum with which several updates weigh as much as one."""
    averaged = _momentum_and_updates(result)
    if averaged is None:
        return ""
    momentum, k = averaged
    return (
        f"momentum 1 - (1 - {momentum:g})^(1/{k}) = {1 - (1 - momentum) ** (1 / k):.3g}, with "
        f"which {k} updates weigh as much as one"
    )


def _has_extra(result: LayerResult) -> bool:
    provenance = result.provenance
    more = 0 if result.expected is None else max(0, result.updates - result.expected)
    return more > provenance.recomputed or provenance.repeated > provenance.recomputed


def _explain_shared(results: list[LayerResult]) -> tuple[str, str]:
    times = span([each.shared_by for each in results], "time", "times")
    one = one_or_many([each.name for each in results], "a layer", "layers")
    return (
        f"{names_were(results)} updated {times} within one forward of the model, which calls "
        f"{one_or_many([each.name for each in results], 'it', 'them')} several times: in training "
        "each call normalises with its own batch's statistics, in eval all calls use a mixture "
        "of them",
        f"give each call {one} of its own, or use a norm without batch statistics, such as "
        "GroupNorm; a call that is not meant to train belongs in eval",
    )


def _explain_extra(results: list[LayerResult]) -> tuple[str, str]:
    first = results[0]
    ran = span([each.updates for each in results], "forward", "forwards")
    why = f"{names_were(results)} updated in {ran} of "
    steps = first.optimizer_steps
    why += "the step" if steps <= 1 else f"{steps} optimizer steps"
    if any(each.provenance.repeated for each in results):
        why += ", some of them with the same batch"
    why += _effective_weight(first)
    advice = _advised_times(results)
    if all(each.is_one_per_step for each in results) and advice:
        return why, advice
    return (
        why,
        "run what is not meant to train in eval, or put the statistics back after it; for a second "
        f"forward on the same batch switch track_running_stats off{advice and f'; {advice}'}",
    )


def _advised_times(results: list[LayerResult]) -> str:
    """Return which `times` fits accumulation, if the number of updates is all that is wrong."""
    first = results[0]
    is_repeated = any(each.provenance.repeated for each in results)
    if is_repeated or not any(each.counts_wrongly for each in results):
        return ""
    each_step = first.updates_per_step
    if each_step is None or not first.equally_often:
        return (
            'if the step means to run them so often, pass times="forwards", without per=: no '
            "number fits all layers and steps"
        )
    per = ', per="optimizer_step"' if first.optimizer_steps > first.steps else ""
    if first.is_one_per_step:
        return f'pass per="optimizer_step": each of the {first.optimizer_steps} steps has one'
    momentum = _equal_momentum(first)
    rest = f", and for micro-batches use {momentum}" if momentum else ""
    return (
        "if the step means to run it so often, as over micro-batches or on two views, pass "
        f"times={each_step}{per}{rest}"
    )


def _extra_place(result: LayerResult) -> Place | None:
    expected, places = result.expected or 1, result.provenance.places
    return places[expected] if expected < len(places) else None


def _explain_in_eval(results: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{names_were(results)} updated in eval: the forward ignores self.training",
        "pass training=self.training to batch_norm, or use nn.BatchNorm",
    )


EXTRA_UPDATES: tuple[Rule[LayerResult], ...] = (
    Rule(
        cause="recomputation",
        applies=lambda result: result.provenance.recomputed > 0 and not result.unseen,
        explain=_explain_recomputation,
    ),
    Rule(
        cause="extra-forward",
        applies=lambda result: _has_extra(result) and result.shared_by > 0,
        explain=_explain_shared,
        place=_extra_place,
        did="run by",
    ),
    Rule(
        cause="extra-forward",
        applies=lambda result: _has_extra(result) and not result.shared_by,
        explain=_explain_extra,
        place=_extra_place,
        did="run by",
    ),
    Rule(
        cause="update-in-eval",
        applies=lambda result: result.provenance.in_eval > 0 and not result.unseen,
        explain=_explain_in_eval,
    ),
)
