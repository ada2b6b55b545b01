"""Why a BN layer was not updated as it should have been."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import name_list, one_or_many, span
from pytest_bninvariants.invariants.bn_updates.layer_result import LayerResult
from pytest_bninvariants.verdict import Cause, Place


def diagnose(found: Iterable[LayerResult]) -> tuple[Cause, ...]:
    """Explain each layer by every rule that applies, and group the layers of one event."""
    return explain(RULES, found, layers=lambda group: (each.name for each in group), every=True)


def _names(found: list[LayerResult]) -> str:
    return name_list([each.name for each in found])


def _was(found: list[LayerResult]) -> str:
    return one_or_many([each.name for each in found], "was", "were")


def _explain_recomputation(found: list[LayerResult]) -> tuple[str, str]:
    again = span([each.provenance.recomputed for each in found], "time", "times")
    return (
        f"{_names(found)} {_was(found)} updated {again} in backward, where activation "
        f"checkpointing runs a forward again, with the same batch{_effective(found[0])}",
        f"leave BN layers out of what is checkpointed, or run the recomputation with "
        f"{one_or_many([each.name for each in found], 'its', 'their')} momentum at 0",
    )


def _averaged(found: LayerResult) -> tuple[float, int] | None:
    """Return the momentum by which a step's updates were averaged, and how many these were."""
    momentum, k = getattr(found.record.layer, "momentum", None), found.fitting or 0
    return (momentum, k) if isinstance(momentum, float) and 0 < momentum < 1 < k else None


def _effective(found: LayerResult) -> str:
    """Say what several updates make of the momentum."""
    averaged = _averaged(found)
    if averaged is None:
        return ""
    momentum, k = averaged
    return (
        f"; {k} updates with momentum {momentum:g} weigh the new batches "
        f"1 - (1 - {momentum:g})^{k} = {1 - (1 - momentum) ** k:.3g}"
    )


def _root(found: LayerResult) -> str:
    """Say which momentum makes several updates weigh as much as one."""
    averaged = _averaged(found)
    if averaged is None:
        return ""
    momentum, k = averaged
    return (
        f"momentum 1 - (1 - {momentum:g})^(1/{k}) = {1 - (1 - momentum) ** (1 / k):.3g}, with "
        f"which {k} updates weigh as much as one"
    )


def _has_extra(found: LayerResult) -> bool:
    provenance = found.provenance
    more = 0 if found.expected is None else max(0, found.updates - found.expected)
    return more > provenance.recomputed or provenance.repeated > provenance.recomputed


def _explain_extra(found: list[LayerResult]) -> tuple[str, str]:
    first = found[0]
    ran = span([each.updates for each in found], "forward", "forwards")
    why = f"{_names(found)} {_was(found)} updated in {ran} of "
    why += "the step" if first.steps == 1 else f"{first.steps} optimizer steps"
    if any(each.provenance.repeated for each in found):
        why += ", some of them with one and the same batch"
    why += _effective(first)
    return (
        why,
        "run what is not meant to train in eval, or put the statistics back after it; for a second "
        f"forward on the same batch switch track_running_stats off{_advised(found)}",
    )


def _advised(found: list[LayerResult]) -> str:
    """Say which `times` is that of accumulation, where another one would do."""
    first = found[0]
    if not any(each.counts_wrongly for each in found) or any(f.provenance.repeated for f in found):
        return ""
    told = "; if the step accumulates over micro-batches, say "
    if first.fitting is not None and first.alike:
        root = _root(first)
        return f"{told}times={first.fitting}{root and f', and use {root}'}"
    return f"""{told}times="forwards", without per=: no number fits all layers and steps"""


def _extra_place(found: LayerResult) -> Place | None:
    expected, places = found.expected or 1, found.provenance.places
    return places[expected] if expected < len(places) else None


def _explain_in_eval(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{_names(found)} {_was(found)} updated in eval: the forward does not ask the mode",
        "pass training=self.training to batch_norm, or use nn.BatchNorm",
    )


def _lacks(found: LayerResult) -> bool:
    few = found.expected is None or found.updates < found.expected
    return found.counts_wrongly and few and not found.unseen


def _is_stuck(found: LayerResult) -> bool:
    record = found.record
    return _lacks(found) and not record.updates and record.in_eval > 0 and not record.idle


def _explain_stuck(found: list[LayerResult]) -> tuple[str, str]:
    trains = any(p.requires_grad for p in found[0].record.layer.parameters(recurse=False))
    told = ", though requires_grad is True" if trains else ""
    names = _names(found)
    return (
        f"{names} {_was(found)} in eval in each forward{told}: running statistics stood still",
        f"call .train() on {names} before the step, or name only the layers that are to train",
    )


def _put_in_eval(found: LayerResult) -> Place | None:
    return found.record.put_in_eval


def _did_not_run(found: LayerResult) -> bool:
    return _lacks(found) and not found.record.forwards


def _explain_not_run(found: list[LayerResult]) -> tuple[str, str]:
    names = _names(found)
    return (
        f"no forward of {names} was seen in the step",
        f"run the train step inside the guard, or leave {names} out with exclude=",
    )


def _has_no_momentum(found: LayerResult) -> bool:
    return _lacks(found) and found.record.by_momentum_zero > 0


def _explain_no_momentum(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{_names(found)} ran in training mode with momentum 0, which keeps the old statistics",
        "use momentum=None for a cumulative average, or a momentum above 0",
    )


def _has_no_tracking(found: LayerResult) -> bool:
    return _lacks(found) and found.record.without_tracking > 0


def _explain_no_tracking(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{_names(found)} ran with track_running_stats=False, and so updated nothing",
        "set track_running_stats back to True before the forward that is to update",
    )


def _wrote_elsewhere(found: LayerResult) -> bool:
    return _lacks(found) and found.elsewhere > 0


def _explain_elsewhere(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{_names(found)} held other tensors for the forward, as functional_call has it, and those "
        "were updated",
        "copy the updated buffers back into the model after the step",
    )


def _wrote_nothing(found: LayerResult) -> bool:
    record = found.record
    explained = record.by_momentum_zero + record.without_tracking
    return _lacks(found) and record.idle > explained


def _explain_wrote_nothing(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{_names(found)} normalised with batch statistics and wrote none of them into "
        "running_mean and running_var",
        "have the forward update the layer's own buffers, in place and not copies of them",
    )


def _ran_too_seldom(found: LayerResult) -> bool:
    return _lacks(found) and 0 < found.made < (found.expected or 0) and not found.record.idle


def _explain_too_seldom(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{_names(found)} ran fewer forwards in training mode than updates are expected",
        "run as many forwards as times= says, or say how many there are",
    )


def _is_undone(found: LayerResult) -> bool:
    partly = _lacks(found) and found.made > found.updates and not found.written
    return found.undone or partly


def _explain_undone(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{_names(found)} {_was(found)} updated, and running statistics from before that were put "
        "back",
        "keep the updates: load, copy back or reset statistics before the step",
    )


def _is_wrong(found: LayerResult) -> bool:
    return bool(found.provenance.wrong) and not found.unseen


def _explain_wrong(found: list[LayerResult]) -> tuple[str, str]:
    told = {
        f"{wrong.name} is {wrong.fits}" if wrong.fits else f"{wrong.name} is not the reference's"
        for each in found
        for wrong in each.provenance.wrong
    }
    return (
        f"{_names(found)}: {'; '.join(sorted(told))}",
        "store (1 - momentum) old + momentum new, of the mean and of the unbiased variance; "
        "assert_bn_conforms holds the layer against all laws of BatchNorm",
    )


def _is_unsound(found: LayerResult) -> bool:
    return bool(found.unsound)


def _explain_unsound(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{_names(found)} took in a batch with values that are not finite, or a variance that is "
        "negative, and no later batch mends that: every eval will give NaN",
        "look for the first batch with such values; where a step is skipped, as GradScaler does, "
        "put the statistics back, too",
    )


def _is_miscounted(found: LayerResult) -> bool:
    return found.provenance.miscounted > 0 and not found.unseen


def _explain_miscounted(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"num_batches_tracked of {_names(found)} moved by another number than 1 in an update",
        "add 1 to it in each forward in training mode: momentum=None averages by it",
    )


def _explain_loaded(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{_names(found)} got other running statistics from a state_dict during the step",
        "load checkpoints before the step",
    )


def _explain_reset(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"running statistics of {_names(found)} were set during the step to those of a new layer, "
        "0 and 1, which an update with a momentum averages in",
        "call reset_running_stats() before the step; to take statistics anew over many batches, "
        "set momentum to None first, as torch.optim.swa_utils.update_bn does",
    )


def _explain_in_place(found: list[LayerResult]) -> tuple[str, str]:
    return (
        f"running statistics of {_names(found)} were written to by code that is no forward of the "
        "layer, no load and no exchange between processes",
        "let the layer alone write them, or put such code outside of the step",
    )


RULES: tuple[Rule[LayerResult], ...] = (
    Rule(
        cause="recomputation",
        applies=lambda found: found.provenance.recomputed > 0 and not found.unseen,
        explain=_explain_recomputation,
    ),
    Rule(
        cause="extra-forward",
        applies=_has_extra,
        explain=_explain_extra,
        place=_extra_place,
        did="run by",
    ),
    Rule(
        cause="update-in-eval",
        applies=lambda found: found.provenance.in_eval > 0 and not found.unseen,
        explain=_explain_in_eval,
    ),
    Rule(
        cause="stuck-in-eval",
        applies=_is_stuck,
        explain=_explain_stuck,
        place=_put_in_eval,
        did="put in eval by",
    ),
    Rule(cause="not-run", applies=_did_not_run, explain=_explain_not_run),
    Rule(cause="momentum-zero", applies=_has_no_momentum, explain=_explain_no_momentum),
    Rule(cause="tracking-off", applies=_has_no_tracking, explain=_explain_no_tracking),
    Rule(cause="updated-elsewhere", applies=_wrote_elsewhere, explain=_explain_elsewhere),
    Rule(cause="not-written", applies=_wrote_nothing, explain=_explain_wrote_nothing),
    Rule(cause="fewer-forwards", applies=_ran_too_seldom, explain=_explain_too_seldom),
    Rule(cause="undone", applies=_is_undone, explain=_explain_undone),
    Rule(cause="wrong-update", applies=_is_wrong, explain=_explain_wrong),
    Rule(cause="not-finite", applies=_is_unsound, explain=_explain_unsound),
    Rule(cause="miscounted", applies=_is_miscounted, explain=_explain_miscounted),
    Rule(
        cause="loaded",
        applies=lambda found: found.written and found.provenance.written == "loaded",
        explain=_explain_loaded,
        place=lambda found: found.provenance.written_at,
        did="run by",
    ),
    Rule(
        cause="reset",
        applies=lambda found: found.provenance.written == "reset" and not found.unknowable,
        explain=_explain_reset,
    ),
    Rule(
        cause="in-place",
        applies=lambda found: found.written and found.provenance.written == "in-place",
        explain=_explain_in_place,
    ),
)
"""In the order in which a verdict tells them; several may apply to one layer."""
