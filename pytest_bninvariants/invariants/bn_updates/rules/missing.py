"""Why a BN layer was updated less often than it should have been."""

from __future__ import annotations

from pytest_bninvariants.diagnosis.rule import Rule
from pytest_bninvariants.diagnosis.wording import counted, span
from pytest_bninvariants.invariants.bn_updates.layer_result import (
    LayerResult,
    names_of,
    names_were,
)
from pytest_bninvariants.selection.bn_layers import holds_weight_as_buffer
from pytest_bninvariants.torch_internals.private_api import InstanceNorm


def _is_stuck(result: LayerResult) -> bool:
    record = result.record
    return result.lacks_updates and not record.updates and record.in_eval > 0 and not record.idle


def _explain_stuck(results: list[LayerResult]) -> tuple[str, str]:
    trains = any(p.requires_grad for p in results[0].record.layer.parameters(recurse=False))
    contrast = ", though requires_grad is True" if trains else ""
    names, place = names_of(results), results[0].record.put_in_eval
    by_override = place is not None and place.call.endswith(".train(True)")
    mend = (
        f"have train() leave {names} in training mode"
        if by_override
        else f"call .train() on {names} before the step"
    )
    return (
        f"{names_were(results)} in eval in each forward{contrast}: running statistics stood still",
        f"{mend}, or name only the layers that are to train",
    )


def _got_stuck(result: LayerResult) -> bool:
    record = result.record
    later = record.updates > 0 and result.steps_in_eval > 0
    return result.lacks_updates and later and not record.idle


def _explain_got_stuck(results: list[LayerResult]) -> tuple[str, str]:
    names, numbers = names_of(results), [each.steps_in_eval for each in results]
    return (
        f"{names_were(results)} in eval in each forward before {span(numbers, 'step', 'steps')} of "
        "an optimizer: running statistics stood still there",
        f"call .train() on {names} again after what runs in eval, such as a validation",
    )


def _did_not_run(result: LayerResult) -> bool:
    return result.lacks_updates and not result.record.forwards


def _explain_not_run(results: list[LayerResult]) -> tuple[str, str]:
    names = names_of(results)
    return (
        f"no forward of {names} was seen in the step",
        f"run the train step inside the guard, or leave {names} out with exclude=",
    )


def _has_no_momentum(result: LayerResult) -> bool:
    return result.lacks_updates and result.record.by_momentum_zero > 0


def _explain_no_momentum(results: list[LayerResult]) -> tuple[str, str]:
    why = (
        f"{names_of(results)} ran in training mode with momentum 0, which keeps the old statistics"
    )
    if any(isinstance(each.record.layer, InstanceNorm) for each in results):
        return why, "use a momentum above 0: InstanceNorm takes momentum=None for 0"
    return why, "use momentum=None for a cumulative average, or a momentum above 0"


def _has_no_tracking(result: LayerResult) -> bool:
    return result.lacks_updates and result.record.without_tracking > 0


def _explain_no_tracking(results: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{names_of(results)} ran with track_running_stats=False, and so updated nothing",
        "set track_running_stats back to True before the forward that is to update",
    )


def _wrote_elsewhere(result: LayerResult) -> bool:
    return result.lacks_updates and result.updates_elsewhere > 0


def _explain_elsewhere(results: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{names_of(results)} had other tensors during the forward, as in functional_call, and "
        "those were updated",
        "copy the updated buffers back into the model after the step",
    )


def _wrote_nothing(result: LayerResult) -> bool:
    record = result.record
    explained = record.by_momentum_zero + record.without_tracking
    return result.lacks_updates and record.idle > explained


def _has_fixed_statistics(result: LayerResult) -> bool:
    return _wrote_nothing(result) and holds_weight_as_buffer(result.record.layer)


def _explain_fixed(results: list[LayerResult]) -> tuple[str, str]:
    names = names_of(results)
    return (
        f"{names} ran and updated nothing: its weight is a buffer, as in a layer that normalises "
        "with fixed statistics, such as FrozenBatchNorm2d",
        f"leave {names} out with exclude=, or use nn.BatchNorm where statistics are to be updated",
    )


def _explain_wrote_nothing(results: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{names_of(results)} normalised with batch statistics and did not write them into "
        "running_mean and running_var",
        "have the forward update the layer's own buffers in place, not copies of them",
    )


def _ran_too_seldom(result: LayerResult) -> bool:
    ran = 0 < result.own_updates < (result.expected or 0)
    return result.lacks_updates and ran and not result.record.idle and not _got_stuck(result)


def _explain_too_seldom(results: list[LayerResult]) -> tuple[str, str]:
    why = f"{names_of(results)} ran fewer forwards in training mode than updates are expected"
    times, steps = results[0].times, results[0].steps
    if steps == 1:
        return why, "run as many forwards as times= says, or pass their number as times="
    fix = f"run {counted(int(times), 'forward')} in training mode before each step"
    if results[0].optimizers > 1:
        fix += (
            "; where several optimizers step after one forward, each of their steps counts: leave "
            "out per=, and pass the number of forwards as times="
        )
    return f"{why}: {times} for each of {counted(steps, 'step')} of optimizers", fix


MISSING_UPDATES: tuple[Rule[LayerResult], ...] = (
    Rule(
        cause="stuck-in-eval",
        applies=_is_stuck,
        explain=_explain_stuck,
        place=lambda result: result.record.put_in_eval,
        did="put in eval by",
    ),
    Rule(
        cause="stuck-in-eval",
        applies=_got_stuck,
        explain=_explain_got_stuck,
        place=lambda result: result.record.put_in_eval,
        did="put in eval by",
    ),
    Rule(cause="not-run", applies=_did_not_run, explain=_explain_not_run),
    Rule(cause="momentum-zero", applies=_has_no_momentum, explain=_explain_no_momentum),
    Rule(cause="tracking-off", applies=_has_no_tracking, explain=_explain_no_tracking),
    Rule(cause="updated-elsewhere", applies=_wrote_elsewhere, explain=_explain_elsewhere),
    Rule(cause="not-written", applies=_has_fixed_statistics, explain=_explain_fixed),
    Rule(
        cause="not-written",
        applies=lambda result: _wrote_nothing(result) and not _has_fixed_statistics(result),
        explain=_explain_wrote_nothing,
    ),
    Rule(cause="fewer-forwards", applies=_ran_too_seldom, explain=_explain_too_seldom),
)
