"""Why samples of a batch depend on each other in eval: the BN layers that use batch statistics."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import clauses, name_list, one_or_many
from pytest_bninvariants.instrumentation.observer_api import ForwardKind, Observer
from pytest_bninvariants.instrumentation.unregistered_layers import (
    UnregisteredLayer,
    name_unregistered,
)
from pytest_bninvariants.selection.bn_layers import has_stored_statistics
from pytest_bninvariants.selection.walk import named_modules
from pytest_bninvariants.verdict import Cause


class BatchStatisticsLog(Observer):
    """Record the layers that normalise with batch statistics."""

    def __init__(self) -> None:
        self._layers: dict[int, nn.Module] = {}

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Record the layer."""
        self._layers[id(layer)] = layer

    def causes(self, module: nn.Module, name: str) -> tuple[Cause, ...]:
        """Return why samples depend on each other.

        Args:
            module: the module that ran, still in eval.
            name: its name.
        """
        mixing = [
            MixingLayer(part_name, part)
            for part_name, part in named_modules(module, name)
            if id(part) in self._layers
        ]
        unregistered = name_unregistered(module, list(self._layers.values()), name)
        mixing += [MixingLayer(each.name, each.module, each) for each in unregistered]
        return explain(RULES, mixing, layers=_names)


@dataclass(frozen=True, slots=True)
class MixingLayer:
    """A layer that normalised with batch statistics in eval.

    Args:
        name: its name.
        module: the layer.
        unregistered: how the model keeps it, if it is no submodule.
    """

    name: str
    module: nn.Module
    unregistered: UnregisteredLayer | None = None


def _names(layers: list[MixingLayer]) -> list[str]:
    return [layer.name for layer in layers]


def _explain_no_stored_statistics(layers: list[MixingLayer]) -> tuple[str, str]:
    names = _names(layers)
    listed = name_list(names)
    has, it = one_or_many(names, "has", "have"), one_or_many(names, "it", "they")
    return (
        f"{listed} {has} no running statistics, so {it} normalised with batch statistics in eval, "
        "too",
        f"build {listed} with track_running_stats=True, and train or load statistics",
    )


def _explain_unregistered(layers: list[MixingLayer]) -> tuple[str, str]:
    names, kept = _names(layers), [each.unregistered for each in layers if each.unregistered]
    listed, was = name_list(names), one_or_many(names, "was", "were")
    ways = clauses(list(dict.fromkeys(each.why for each in kept)))
    return (
        f"{listed} {was} in training mode: the model's eval() does not reach what is not a "
        f"submodule, since {ways}",
        clauses(list(dict.fromkeys(each.fix for each in kept))),
    )


def _explain_training_mode(layers: list[MixingLayer]) -> tuple[str, str]:
    names = _names(layers)
    listed, was = name_list(names), one_or_many(names, "was", "were")
    return (
        f"{listed} {was} in training mode although the model was put in eval",
        f"make the model's eval() reach {listed}: an overridden train() must pass the mode on",
    )


def _explain_update_in_eval(layers: list[MixingLayer]) -> tuple[str, str]:
    names = _names(layers)
    it, was = one_or_many(names, "it", "they"), one_or_many(names, "was", "were")
    return (
        f"{name_list(names)} normalised with batch statistics although {it} {was} in eval",
        "pass training=self.training to torch.nn.functional.batch_norm",
    )


RULES: tuple[Rule[MixingLayer], ...] = (
    Rule(
        cause="no-stored-statistics",
        applies=lambda layer: not has_stored_statistics(layer.module),
        explain=_explain_no_stored_statistics,
    ),
    Rule(
        cause="training-mode",
        applies=lambda layer: layer.module.training and layer.unregistered is not None,
        explain=_explain_unregistered,
    ),
    Rule(
        cause="training-mode",
        applies=lambda layer: layer.module.training,
        explain=_explain_training_mode,
    ),
    Rule(
        cause="update-in-eval",
        applies=lambda _: True,
        explain=_explain_update_in_eval,
    ),
)
"""The first rule that applies explains a layer."""
