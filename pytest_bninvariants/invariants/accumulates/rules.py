"""Why gradients of micro-batches do not add up to those of the whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import keep_in_eval, name_list, one_or_many
from pytest_bninvariants.verdict import Cause


@dataclass(frozen=True, slots=True)
class MicroBatchNorm:
    """A layer that normalised each micro-batch with that micro-batch's statistics.

    Args:
        name: its name; None if there is no such layer.
        training: whether it was in training mode.
    """

    name: str | None
    training: bool


def causes_of(normalised: Mapping[str, bool]) -> tuple[Cause, ...]:
    """Return the causes of gradients that do not add up.

    Args:
        normalised: by name, the layers that used batch statistics, and whether they were in
            training mode.
    """
    layers = [MicroBatchNorm(name, training) for name, training in normalised.items()]
    return explain(RULES, layers or [MicroBatchNorm(None, training=False)], layers=_names)


def _names(layers: list[MicroBatchNorm]) -> list[str]:
    return [layer.name for layer in layers if layer.name is not None]


def _explain_training_mode(layers: list[MicroBatchNorm]) -> tuple[str, str]:
    names = _names(layers)
    return (
        f"{name_list(names)} normalised each micro-batch with that micro-batch's statistics, and "
        "not with those of the whole batch",
        f"for frozen layers, {keep_in_eval(names)}; otherwise use a norm without batch "
        "statistics, such as GroupNorm, or accept that k micro-batches are not one large batch "
        "(SyncBatchNorm joins processes, not micro-batches)",
    )


def _explain_no_stored_statistics(layers: list[MicroBatchNorm]) -> tuple[str, str]:
    names = _names(layers)
    listed = name_list(names)
    return (
        f"{listed} {one_or_many(names, 'was', 'were')} in eval, and normalised each micro-batch "
        "with that micro-batch's statistics",
        f"have {listed} keep and use running statistics (track_running_stats=True), or use "
        "GroupNorm instead",
    )


def _explain_not_a_mean(_: list[MicroBatchNorm]) -> tuple[str, str]:
    return (
        "no BN layer was seen to use batch statistics: the loss is not a mean over samples (but a "
        "sum, or a mean over tokens, or over the targets that are not ignored), or something else "
        "in the model mixes samples",
        "give each micro-batch's loss its weight, accumulates(..., weight=lambda batch: ...), and "
        "weight it the same way in the training loop",
    )


RULES: tuple[Rule[MicroBatchNorm], ...] = (
    Rule(
        cause="not-a-mean",
        applies=lambda layer: layer.name is None,
        explain=_explain_not_a_mean,
    ),
    Rule(
        cause="training-mode",
        applies=lambda layer: layer.training,
        explain=_explain_training_mode,
    ),
    Rule(
        cause="no-stored-statistics",
        applies=lambda _: True,
        explain=_explain_no_stored_statistics,
    ),
)
"""The first rule that applies explains a layer."""
