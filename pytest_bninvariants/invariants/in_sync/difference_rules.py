"""Why two models differ, or hold the same tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import name_list, one_or_many
from pytest_bninvariants.verdict import Cause, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """A tensor that differs between two models, or that a step made both of them hold.

    Args:
        name: its name.
        layer: the name of its layer.
        behind: the model that did not follow.
        ahead: the other model.
        is_initial: whether it is a running statistic, and that of a new layer in the model behind.
        beside_parameters: whether parameters differ between the two models, too, as far as they
            are compared.
        is_shared: whether both models hold it.
        loaded_itself_at: where the model behind loaded it from itself.
    """

    name: str
    layer: str
    behind: str
    ahead: str
    is_initial: bool = False
    beside_parameters: bool = False
    is_shared: bool = False
    loaded_itself_at: Place | None = None


def causes_of_difference(differences: Iterable[TensorDifference]) -> tuple[Cause, ...]:
    """Return why tensors differ between two models, as far as that is known."""
    return explain(
        SYNC_RULES,
        differences,
        layers=lambda group: dict.fromkeys(each.layer for each in group),
        tensors=lambda group: [each.name for each in group],
        event=lambda each: each.behind,
    )


def explain_shared(tensors: Sequence[str], behind: str, ahead: str) -> tuple[str, str]:
    """Explain tensors that a step made both models hold."""
    return (
        f"the step made {behind} and {ahead} share {name_list(tensors)}, as `mine.data = "
        "theirs.data` and load_state_dict(..., assign=True) do: what moves one of the two moves "
        "the other",
        f"copy the values into {behind}: mine.copy_(theirs), or load_state_dict() without "
        "assign=True",
    )


def explain_own_load(tensors: Sequence[str], behind: str, ahead: str) -> tuple[str, str]:
    """Explain tensors that were loaded from themselves, rather than from the other model."""
    return (
        f"{behind} was loaded from itself: the state_dict that load_state_dict() got holds "
        f"{one_or_many(tensors, 'its own tensor', 'its own tensors')} {name_list(tensors)}, so "
        "nothing changed",
        f"load the other model's state: {_load(behind, ahead)}",
    )


def explain_statistics(
    layers: Sequence[str], behind: str, ahead: str, state: str, decay: float | None = None
) -> tuple[str, str]:
    """Explain running statistics in a model behind that did not follow those of a model ahead."""
    verb, update = "copy", "mine.copy_(theirs)"
    if decay is not None:
        verb = "average"
        update = f"mine.lerp_(theirs, {1 - decay:g}) if mine.is_floating_point() else {update}"
    return (
        f"the running statistics of {name_list(layers)} in {behind} {state}, unlike those in "
        f"{ahead}: they are buffers, which a loop over parameters() leaves behind",
        f"{verb} the buffers, too: for mine, theirs in zip({expression(behind, 'copy')}"
        f".buffers(), {expression(ahead, 'model')}.buffers()): {update}",
    )


def expression(name: str, default: str) -> str:
    """Return the name of a fixture as code, or a default if it is not the name of a fixture."""
    return name.strip("'") if name.startswith("'") else default


def _load(behind: str, ahead: str) -> str:
    """Return the code that loads the state of the model ahead into the one behind."""
    return (
        f"{expression(behind, 'copy')}.load_state_dict({expression(ahead, 'model')}.state_dict())"
    )


def _explain_shared(group: list[TensorDifference]) -> tuple[str, str]:
    return explain_shared([each.name for each in group], group[0].behind, group[0].ahead)


def _explain_own_load(group: list[TensorDifference]) -> tuple[str, str]:
    return explain_own_load([each.name for each in group], group[0].behind, group[0].ahead)


def _explain_initial(group: list[TensorDifference]) -> tuple[str, str]:
    layers = list(dict.fromkeys(each.layer for each in group))
    behind, ahead = group[0].behind, group[0].ahead
    if not group[0].beside_parameters:
        return explain_statistics(layers, behind, ahead, "are the initial ones")
    return (
        f"the running statistics of {name_list(layers)} in {behind} are the initial ones, and its "
        f"parameters differ from those of {ahead}, too: its state was not copied or loaded as a "
        "whole",
        f"copy all of it: {_load(behind, ahead)}, or load the checkpoint that holds it",
    )


SYNC_RULES: tuple[Rule[TensorDifference], ...] = (
    Rule(cause="shared-memory", applies=lambda each: each.is_shared, explain=_explain_shared),
    Rule(
        cause="left-behind",
        applies=lambda each: each.loaded_itself_at is not None,
        explain=_explain_own_load,
        place=lambda each: each.loaded_itself_at,
        did="loaded by",
    ),
    Rule(cause="left-behind", applies=lambda each: each.is_initial, explain=_explain_initial),
)
"""The first rule that applies explains a tensor."""
