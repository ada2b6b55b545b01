"""Why two models differ, or why one is not the average that its decay says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import name_list, one_or_many
from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor
from pytest_bninvariants.invariants.in_sync.decay_estimate import estimate_decay
from pytest_bninvariants.invariants.in_sync.pair import ModelPair
from pytest_bninvariants.selection.bn_layers import BN_STATE, STATISTICS
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.verdict import Cause

_UPDATES = range(2, 11)
"""The numbers of updates in one step that a decay is compared with."""


@dataclass(frozen=True, slots=True)
class InitialStatistics:
    """A BN layer whose running statistics are the initial ones in only one of two models.

    Args:
        layer: its name.
        behind: the model with the initial ones.
        ahead: the other model.
    """

    layer: str
    behind: str
    ahead: str


def causes_of_difference(initial: Iterable[InitialStatistics]) -> tuple[Cause, ...]:
    """Return why running statistics differ between two models."""
    return explain(
        SYNC_RULES,
        initial,
        layers=lambda group: dict.fromkeys(each.layer for each in group),
        event=lambda each: each.behind,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongAverage:
    """A tensor that is not what the decay says, and how the average was updated.

    Args:
        tensor: the tensor.
        model: the name of the model.
        average: the name of the average.
        decay: the decay that the user expects.
        used: the decay that the update used, if known; else the expected one.
        nothing_updated: whether nothing in the average was updated.
        in_training: whether its layer in the average is in training mode.
    """

    tensor: AverageTensor
    model: str
    average: str
    decay: float
    used: float
    nothing_updated: bool
    in_training: bool

    @property
    def fits_decay_used(self) -> bool:
        """Tell whether it was averaged with the decay that was used."""
        return self.tensor.with_decay(self.used).holds


def causes_of_wrong_average(
    averages: list[AverageTensor], pair: ModelPair, decay: float
) -> tuple[Cause, ...]:
    """Return why an average is not what its decay says, as far as the step shows it.

    Args:
        averages: all its tensors, at least one of which does not hold.
        pair: the model and its average.
        decay: the weight of the old value.
    """
    behind = [each for each in averages if each.is_left_behind]
    nothing_updated = len(behind) == sum(each.shows_update for each in averages) > 0
    wrong = behind if nothing_updated else [each for each in averages if not each.holds]
    used = None if nothing_updated else estimate_decay(averages)
    modules = ModelNames.from_model(pair.other).modules
    model, average = pair.names
    tensors = (
        WrongAverage(
            tensor=each,
            model=model,
            average=average,
            decay=decay,
            used=decay if used is None else used,
            nothing_updated=nothing_updated,
            in_training=modules[each.watched.layer].training,
        )
        for each in wrong
    )
    return explain(AVERAGE_RULES, tensors, layers=_layers)


def _layers(group: list[WrongAverage]) -> list[str]:
    return list(dict.fromkeys(each.tensor.watched.layer for each in group))


def _is_statistics_left_behind(each: WrongAverage) -> bool:
    return each.tensor.is_left_behind and each.tensor.watched.name.endswith(STATISTICS)


def _has_other_decay(each: WrongAverage) -> bool:
    return _is_updated(each) and each.tensor.decay is not None and each.fits_decay_used


def _is_averaged_buffer(each: WrongAverage) -> bool:
    return _is_updated_buffer(each) and each.tensor.decay is None and each.fits_decay_used


def _is_copied_buffer(each: WrongAverage) -> bool:
    return _is_updated_buffer(each) and each.tensor.decay is not None and each.tensor.is_copy


def _is_moved_by_forward(each: WrongAverage) -> bool:
    is_bn_state = each.tensor.watched.name.rpartition(".")[2] in BN_STATE
    return _is_updated_buffer(each) and is_bn_state and each.in_training


def _is_updated(each: WrongAverage) -> bool:
    return not each.tensor.is_left_behind


def _is_updated_buffer(each: WrongAverage) -> bool:
    return each.tensor.is_buffer and _is_updated(each)


def _explain_nothing_updated(group: list[WrongAverage]) -> tuple[str, str]:
    average = group[0].average
    return (
        f"nothing in {average} was updated: no update of it ran in the step",
        f"update {average} after each step of the optimizer",
    )


def _explain_initial(group: list[InitialStatistics]) -> tuple[str, str]:
    layers = list(dict.fromkeys(each.layer for each in group))
    return _explain_left_behind(layers, group[0].behind, group[0].ahead, "are the initial ones")


def _explain_unmoved(group: list[WrongAverage]) -> tuple[str, str]:
    return _explain_left_behind(_layers(group), group[0].average, group[0].model, "did not move")


def _explain_left_behind(layers: list[str], behind: str, ahead: str, state: str) -> tuple[str, str]:
    """Explain running statistics in a model behind that did not follow those of a model ahead."""
    return (
        f"the running statistics of {name_list(layers)} in {behind} {state}, unlike those in "
        f"{ahead}: they are buffers, which a loop over parameters() leaves behind",
        f"copy the buffers, too: for mine, theirs in zip({_expression(behind, 'copy')}"
        f".buffers(), {_expression(ahead, 'model')}.buffers()): mine.copy_(theirs)",
    )


def _explain_other_decay(group: list[WrongAverage]) -> tuple[str, str]:
    average, decay, used = group[0].average, group[0].decay, group[0].used
    updates = next((n for n in _UPDATES if math.isclose(used, decay**n, rel_tol=1e-6)), None)
    why = f"{average} was averaged with decay {used:g}"
    fix = f"keep {decay:g} of the old value: mine.lerp_(theirs, 1 - {decay:g})"
    if updates is not None:
        return (
            f"{why}, as by {updates} updates in one step",
            f"update {average} once per step, or put a guard around each update",
        )
    if math.isclose(used, 1 - decay, rel_tol=1e-6):
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
    average = group[0].average
    return (
        f"the buffers of {name_list(_layers(group))} in {average} are {actual}, not {expected}",
        f'pass buffers="{actual}" if that is meant, or change the update of {average} so that they '
        f"are {expected}",
    )


def _explain_training_mode(group: list[WrongAverage]) -> tuple[str, str]:
    average, layers = group[0].average, _layers(group)
    return (
        f"{name_list(layers)} in {average} {one_or_many(layers, 'is', 'are')} in training mode, "
        "so each forward of it moves running statistics, in addition to the update",
        f"put the average in eval: {_expression(average, 'average')}.eval()",
    )


def _expression(name: str, default: str) -> str:
    """Return the name of a fixture as code, or a default if it is not the name of a fixture."""
    return name.strip("'") if name.startswith("'") else default


SYNC_RULES: tuple[Rule[InitialStatistics], ...] = (
    Rule(cause="left-behind", applies=lambda _: True, explain=_explain_initial),
)
AVERAGE_RULES: tuple[Rule[WrongAverage], ...] = (
    Rule(
        cause="left-behind",
        applies=lambda each: each.nothing_updated,
        explain=_explain_nothing_updated,
    ),
    Rule(cause="left-behind", applies=_is_statistics_left_behind, explain=_explain_unmoved),
    Rule(cause="other-decay", applies=_has_other_decay, explain=_explain_other_decay),
    Rule(cause="other-buffers", applies=_is_averaged_buffer, explain=_explain_averaged_buffers),
    Rule(cause="other-buffers", applies=_is_copied_buffer, explain=_explain_copied_buffers),
    Rule(cause="training-mode", applies=_is_moved_by_forward, explain=_explain_training_mode),
)
"""The first rule that applies explains a tensor."""

RULES: tuple[Rule[Any], ...] = (*SYNC_RULES, *AVERAGE_RULES)
