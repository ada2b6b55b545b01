"""Why the running statistics of a BN layer are not what its updates alone make of them."""

from __future__ import annotations

from pytest_bninvariants.diagnosis.rule import Rule
from pytest_bninvariants.diagnosis.wording import (
    FIND_FIRST_BAD_BATCH,
    clauses,
    describe_swap,
    name_list,
    one_or_many,
)
from pytest_bninvariants.invariants.bn_updates.layer_result import (
    LayerResult,
    names_of,
    names_were,
)


def _lost_updates(result: LayerResult) -> bool:
    partly = result.lacks_updates and result.own_updates > result.updates and not result.written
    return result.undone or partly


def _is_replaced(result: LayerResult) -> bool:
    too_often = result.expected is not None and result.updates > result.expected
    hidden = result.unseen and not (too_often or result.unusable)
    return result.replaced and (hidden or _lost_updates(result))


def _explain_replaced(results: list[LayerResult]) -> tuple[str, str]:
    before = [(each, type(each.record.layer).__name__) for each in results]
    names = [each.name for each in results]
    return (
        clauses([describe_swap(each.name, kind, each.type_now) for each, kind in before]),
        f"replace or convert {name_list(names)} before the guarded step, and build the optimizer "
        f"after that; or leave {one_or_many(names, 'it', 'them')} out with exclude=",
    )


def _is_undone(result: LayerResult) -> bool:
    return _lost_updates(result) and not result.replaced


def _explain_undone(results: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{names_were(results)} updated, and running statistics from before that were put back",
        "keep the updates: load, copy back or reset statistics before the step",
    )


def _is_wrong(result: LayerResult) -> bool:
    return bool(result.provenance.wrong) and not result.unseen


def _explain_wrong(results: list[LayerResult]) -> tuple[str, str]:
    faults = {
        f"{wrong.name} is {wrong.fits}" if wrong.fits else f"{wrong.name} is not the reference's"
        for each in results
        for wrong in each.provenance.wrong
    }
    return (
        f"{names_of(results)}: {'; '.join(sorted(faults))}",
        "store (1 - momentum) old + momentum new, of the mean and of the unbiased variance; "
        "assert_bn_conforms checks the layer against all laws of BatchNorm",
    )


def _is_unusable(result: LayerResult) -> bool:
    return bool(result.unusable)


def _explain_unusable(results: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{names_of(results)} took in a batch with values that are not finite, or a variance that "
        "is negative, and no later batch can undo that: every eval will give NaN",
        FIND_FIRST_BAD_BATCH,
    )


def _is_miscounted(result: LayerResult) -> bool:
    return result.provenance.miscounted > 0 and not result.unseen


def _explain_miscounted(results: list[LayerResult]) -> tuple[str, str]:
    return (
        f"num_batches_tracked of {names_of(results)} did not move by exactly 1 in each update",
        "add 1 to it in each forward in training mode: momentum=None averages by it",
    )


def _explain_loaded(results: list[LayerResult]) -> tuple[str, str]:
    return (
        f"{names_of(results)} got other running statistics from a state_dict during the step",
        "load checkpoints before the step",
    )


def _is_reset(result: LayerResult) -> bool:
    hidden = result.unknowable or result.replaced
    return result.provenance.written == "reset" and not hidden


def _explain_reset(results: list[LayerResult]) -> tuple[str, str]:
    return (
        f"running statistics of {names_of(results)} were set during the step to those of a new "
        "layer, 0 and 1, which an update with a momentum averages in",
        "call reset_running_stats() before the step; to re-estimate statistics over many "
        "batches, set momentum to None first, as torch.optim.swa_utils.update_bn does",
    )


def _explain_in_place(results: list[LayerResult]) -> tuple[str, str]:
    return (
        f"running statistics of {names_of(results)} were written to by something other than a "
        "forward of the layer, a checkpoint load or a collective",
        "let only the layer write to them, or run such code outside the step",
    )


WRONG_STATISTICS: tuple[Rule[LayerResult], ...] = (
    Rule(cause="replaced", applies=_is_replaced, explain=_explain_replaced),
    Rule(cause="undone", applies=_is_undone, explain=_explain_undone),
    Rule(cause="wrong-update", applies=_is_wrong, explain=_explain_wrong),
    Rule(cause="not-finite", applies=_is_unusable, explain=_explain_unusable),
    Rule(cause="miscounted", applies=_is_miscounted, explain=_explain_miscounted),
    Rule(
        cause="loaded",
        applies=lambda result: result.written and result.provenance.written == "loaded",
        explain=_explain_loaded,
        place=lambda result: result.provenance.written_at,
        did="run by",
    ),
    Rule(
        cause="reset",
        applies=_is_reset,
        explain=_explain_reset,
    ),
    Rule(
        cause="in-place",
        applies=lambda result: result.written and result.provenance.written == "in-place",
        explain=_explain_in_place,
    ),
)
