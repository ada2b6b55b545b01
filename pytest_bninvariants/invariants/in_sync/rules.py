"""Why an average is not what its decay says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import name_list, one_or_many
from pytest_bninvariants.invariants.in_sync.across_ranks.rules import RANK_RULES
from pytest_bninvariants.invariants.in_sync.average_evidence import WrongAverage
from pytest_bninvariants.invariants.in_sync.difference_rules import (
    SYNC_RULES,
    explain_own_load,
    explain_shared,
    explain_statistics,
    expression,
)
from pytest_bninvariants.selection.bn_layers import BN_STATE, STATISTICS
from pytest_bninvariants.verdict import Cause


def causes_of_wrong_average(tensors: Iterable[WrongAverage]) -> tuple[Cause, ...]:
    """Return why an average is not what its decay says, as far as the step shows it."""
    return explain(AVERAGE_RULES, tensors, layers=_layers, tensors=_names)


def _layers(group: list[WrongAverage]) -> list[str]:
    return list(dict.fromkeys(each.tensor.watched.layer for each in group))


def _names(group: list[WrongAverage]) -> list[str]:
    return [each.tensor.watched.name for each in group]


def _is_loaded_from_itself(each: WrongAverage) -> bool:
    return each.tensor.is_left_behind and each.loaded_itself_at is not None


def _is_statistics_left_behind(each: WrongAverage) -> bool:
    is_statistics = each.tensor.watched.name.endswith(STATISTICS)
    return each.tensor.is_left_behind and is_statistics and not each.layer_is_behind


def _is_part_left_behind(each: WrongAverage) -> bool:
    is_bn_state = each.tensor.watched.name.rpartition(".")[2] in BN_STATE
    return each.tensor.is_left_behind and (each.layer_is_behind or not is_bn_state)


def _has_other_decay(each: WrongAverage) -> bool:
    return _is_updated(each) and each.tensor.decay is not None and each.fits_decay_used


def _is_averaged_buffer(each: WrongAverage) -> bool:
    must_be_copied = each.tensor.decay is None and not each.tensor.may_be_copied
    return _is_updated_buffer(each) and must_be_copied and each.fits_decay_used


def _is_copied_buffer(each: WrongAverage) -> bool:
    return _is_updated_buffer(each) and each.tensor.decay is not None and each.tensor.is_copy


def _is_of_several_steps(each: WrongAverage) -> bool:
    return _is_updated(each) and each.whole.steps > 1 and not each.whole.any_right


def _is_moved_by_forward(each: WrongAverage) -> bool:
    is_bn_state = each.tensor.watched.name.rpartition(".")[2] in BN_STATE
    return _is_updated_buffer(each) and is_bn_state and each.in_training


def _is_updated(each: WrongAverage) -> bool:
    return not each.tensor.is_left_behind


def _is_updated_buffer(each: WrongAverage) -> bool:
    return each.tensor.is_buffer and _is_updated(each)


def _explain_swapped(group: list[WrongAverage]) -> tuple[str, str]:
    one, other = group[0].whole.model, group[0].whole.average
    model, average = expression(other, "model"), expression(one, "average")
    return (
        f"{one} is the average of {other}, and not the other way round",
        f"pass the model first, and then its average: in_sync({model}, {average}, "
        f"decay={group[0].whole.decay:g})",
    )


def _explain_shared(group: list[WrongAverage]) -> tuple[str, str]:
    return explain_shared(_names(group), group[0].whole.average, group[0].whole.model)


def _explain_own_load(group: list[WrongAverage]) -> tuple[str, str]:
    return explain_own_load(_names(group), group[0].whole.average, group[0].whole.model)


def _explain_early(group: list[WrongAverage]) -> tuple[str, str]:
    whole = group[0].whole
    model, average, early = whole.model, whole.average, whole.early
    took = f"{average} took the values that {model} had before the optimizer's step"
    if whole.ran_first is False:
        return (
            f"{took}, though its update ran after that: the update reads a copy of {model}",
            f"update {average} from {model} itself, not from an earlier deepcopy or state_dict",
        )
    if early is not None and early.after:
        return (
            f"{average} was updated {early.before + early.after} times: {early.before} before the "
            f"optimizer's step, with the values that {model} had then, and {early.after} after it",
            f"update {average} once for each step of the optimizer, after it, and not after each "
            "backward()",
        )
    return took, f"update {average} after the optimizer's step, not before it"


def _explain_nothing_updated(group: list[WrongAverage]) -> tuple[str, str]:
    whole, wrapper = group[0].whole, _wrapper(group)
    nothing = f"nothing in {whole.average} was updated"
    if wrapper:
        return (
            f"{nothing}: no update ran, or it looked for names and found none, since "
            f"{_differing_names(group)}",
            f"update {whole.average} after each step of the optimizer; if that runs, "
            f"{_match_names(group)}",
        )
    if whole.written:
        return (
            f"{nothing}: it was written to, but kept its values, as by an update that reads "
            f"{whole.average} itself, or {whole.model} before the optimizer's step",
            f"update {whole.average} from {whole.model}, after each step of the optimizer",
        )
    return (
        f"{nothing}: no update of it ran in the step",
        f"update {whole.average} after each step of the optimizer",
    )


def _explain_statistics(group: list[WrongAverage]) -> tuple[str, str]:
    whole = group[0].whole
    decay = next((each.tensor.decay for each in group if each.tensor.decay is not None), None)
    return explain_statistics(_layers(group), whole.average, whole.model, "did not move", decay)


def _explain_part(group: list[WrongAverage]) -> tuple[str, str]:
    """Explain a part of an average that did not move, unlike the rest."""
    whole, wrapper = group[0].whole, _wrapper(group)
    are_whole_layers = all(each.layer_is_behind for each in group)
    names = _layers(group) if are_whole_layers else _names(group)
    why = f"{name_list(names)} in {whole.average} did not move, unlike the rest: "
    if wrapper:
        return (
            f"{why}the update does not reach {_them(names)}, as where it looks for names: "
            f"{_differing_names(group)}",
            _match_names(group),
        )
    why += f"the update does not reach {_them(names)}"
    if not whole.written and all(each.tensor.was_copy for each in group):
        why += ", or it ran before the optimizer's step, when both models were equal"
    mine, theirs = expression(whole.average, "average"), expression(whole.model, "model")
    kinds = dict.fromkeys("buffers" if each.tensor.is_buffer else "parameters" for each in group)
    pairs = " and ".join(f"zip({mine}.{kind}(), {theirs}.{kind}())" for kind in kinds)
    return why, f"have the update go over the whole model: {pairs}"


def _wrapper(group: list[WrongAverage]) -> str:
    """Return the part that a wrapper puts into the names of all these tensors in one model."""
    return group[0].wrapper if all(each.wrapper for each in group) else ""


def _differing_names(group: list[WrongAverage]) -> str:
    whole = group[0].whole
    return (
        f"the names of {whole.model} and {whole.average} differ by the wrapper's "
        f"'{_wrapper(group)}.'"
    )


def _match_names(group: list[WrongAverage]) -> str:
    wrapper = _wrapper(group)
    return (
        f"give the update the module inside the wrapper, its .{wrapper}, or have it leave out "
        f"'{wrapper}.' in names"
    )


def _them(names: list[str]) -> str:
    return one_or_many(names, "it", "them")


def _explain_other_decay(group: list[WrongAverage]) -> tuple[str, str]:
    whole = group[0].whole
    average, decay, used, updates = whole.average, whole.decay, whole.used, whole.updates
    why = f"{average} was averaged with decay {used:g}"
    fix = f"keep {decay:g} of the old value: mine.lerp_(theirs, 1 - {decay:g})"
    if updates is not None:
        return (
            f"{why}, as by {updates} updates in one step",
            f"update {average} once per step, or put a guard around each update",
        )
    if whole.is_reversed:
        return f"{why}: the weights are the wrong way round", fix
    if used == 0:
        return f"{why}: it is a copy of the model", fix
    return why, f"{fix}; or pass decay={used:g} if that is meant"


def _explain_averaged_buffers(group: list[WrongAverage]) -> tuple[str, str]:
    return _explain_other_buffers(group, "averaged", "copied")


def _explain_copied_buffers(group: list[WrongAverage]) -> tuple[str, str]:
    return _explain_other_buffers(group, "copied", "averaged")


def _explain_other_buffers(
    group: list[WrongAverage], actual: str, expected: str
) -> tuple[str, str]:
    average = group[0].whole.average
    return (
        f"the buffers of {name_list(_layers(group))} in {average} are {actual}, not {expected}",
        f'pass buffers="{actual}" if that is meant, or change the update of {average} so that they '
        f"are {expected}",
    )


def _explain_training_mode(group: list[WrongAverage]) -> tuple[str, str]:
    average, layers = group[0].whole.average, _layers(group)
    return (
        f"{name_list(layers)} in {average} {one_or_many(layers, 'is', 'are')} in training mode, "
        "so each forward of it moves running statistics, in addition to the update",
        f"put the average in eval: {expression(average, 'average')}.eval()",
    )


def _explain_several_steps(group: list[WrongAverage]) -> tuple[str, str]:
    whole = group[0].whole
    return (
        f"{whole.steps} optimizer steps ran inside the guard: {whole.average} took the values of "
        f"{whole.model} after more than one of them, which no single update with decay "
        f"{whole.decay:g} gives",
        f"put a guard around each step and the update of {whole.average} that follows it",
    )


AVERAGE_RULES: tuple[Rule[WrongAverage], ...] = (
    Rule(cause="swapped", applies=lambda each: each.whole.swapped, explain=_explain_swapped),
    Rule(cause="shared-memory", applies=lambda each: each.is_shared, explain=_explain_shared),
    Rule(
        cause="left-behind",
        applies=_is_loaded_from_itself,
        explain=_explain_own_load,
        place=lambda each: each.loaded_itself_at,
        did="loaded by",
    ),
    Rule(cause="updated-early", applies=lambda each: each.is_early, explain=_explain_early),
    Rule(
        cause="left-behind",
        applies=lambda each: each.whole.nothing_updated and each.tensor.is_left_behind,
        explain=_explain_nothing_updated,
    ),
    Rule(cause="left-behind", applies=_is_statistics_left_behind, explain=_explain_statistics),
    Rule(
        cause="left-behind",
        applies=_is_part_left_behind,
        explain=_explain_part,
    ),
    Rule(cause="other-decay", applies=_has_other_decay, explain=_explain_other_decay),
    Rule(cause="other-buffers", applies=_is_averaged_buffer, explain=_explain_averaged_buffers),
    Rule(cause="other-buffers", applies=_is_copied_buffer, explain=_explain_copied_buffers),
    Rule(cause="training-mode", applies=_is_moved_by_forward, explain=_explain_training_mode),
    Rule(cause="several-steps", applies=_is_of_several_steps, explain=_explain_several_steps),
)
"""The first rule that applies explains a tensor."""

RULES: tuple[Rule[Any], ...] = (*SYNC_RULES, *RANK_RULES, *AVERAGE_RULES)
