"""The function `describe`, and the table that it returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from pytest_bninvariants import errors
from pytest_bninvariants.description.holdings import Holdings
from pytest_bninvariants.description.next_step import next_step
from pytest_bninvariants.diagnosis.wording import counted
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.reporting.lines import escape_html, one_line, wrap
from pytest_bninvariants.reporting.tables import html_table, text_table
from pytest_bninvariants.selection.bn_layers import is_bn_layer
from pytest_bninvariants.selection.layers_to_train import layers_to_train
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.selection.walk import own_tensors
from pytest_bninvariants.snapshot.reads.statistics_state import statistics_states

_HEADINGS = ("layer", "type", "mode", "grad", "optimizer", "momentum", "statistics")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDescription:
    """One layer as it is now.

    Args:
        name: its name in the model; empty for the model itself.
        type: its class.
        mode: `training` or `eval`.
        requires_grad: `yes`, `no`, `partly`, or `-` if it has no parameters.
        optimizer: the optimizers that hold its parameters, with the number of the group if there
            are several; `none`, or `-` if none was given or it has no parameters.
        momentum: its momentum; `average` for a cumulative average, `-` if it has none.
        statistics: `new`, `warm`, `none`, `not finite`, `negative variance`, `not yet made` or
            `unreadable`; `-` if it is no BN layer.
        next_step: what it would do in the next step, e.g. `updates its statistics, though frozen`.
    """

    name: str
    type: str
    mode: str
    requires_grad: str
    optimizer: str
    momentum: str
    statistics: str
    next_step: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Return what a table shows of it beside the next step."""
        shown = self.name or "the model", self.type, self.mode, self.requires_grad
        return (*shown, self.optimizer, self.momentum, self.statistics)


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The layers of a model as they are now: `str()` and notebooks show a table.

    Args:
        model: the model's class name.
        layers: its BN layers, or all that have parameters or buffers, in the model's order.
        bn_only: whether these are the BN layers alone.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import describe
        >>> description = describe(torch.nn.BatchNorm1d(2).requires_grad_(False))
        >>> for step, layers in description.by_next_step.items():
        ...     print(step, len(layers), layers[0].mode, layers[0].statistics)
        updates its statistics, though frozen 1 training new
    """

    model: str
    layers: tuple[LayerDescription, ...]
    bn_only: bool = True

    @property
    def by_next_step(self) -> dict[str, list[LayerDescription]]:
        """Return the layers by what they would do in the next step."""
        groups: dict[str, list[LayerDescription]] = {}
        for layer in self.layers:
            groups.setdefault(layer.next_step, []).append(layer)
        return groups

    @property
    def _headline(self) -> str:
        noun = "BN layer" if self.bn_only else "layer"
        return one_line(f"{self.model}: {counted(len(self.layers), noun)}")

    def __str__(self) -> str:
        lines = [self._headline]
        for step, layers in self.by_next_step.items():
            title = f"{counted(len(layers), 'layer')}: {step}"
            lines += ["", *wrap(title, first="", rest="  ")]
            lines += text_table(_HEADINGS, [layer.cells for layer in layers])
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        headings = (*_HEADINGS, "next step")
        rows = [(*layer.cells, layer.next_step) for layer in self.layers]
        return f"<p>{escape_html(self._headline)}</p>{html_table(headings, rows)}"


def describe(
    model: nn.Module, optimizer: object = None, *, all_layers: bool = False
) -> ModelDescription:
    """Describe what each BN layer is set to, and what it would do in the next step.

    Nothing runs: the answer is read off the model's modes, flags and values, so it holds for one
    forward in these modes, followed by the optimizer's step.

    Args:
        model: the model.
        optimizer: what trains it: a `torch.optim.Optimizer`, or several in a list or a dict; None:
            not said.
        all_layers: describe each module that has parameters or buffers of its own.

    Returns:
        A table: `print` shows it, and so does a notebook; its rows are `layers`.

    Raises:
        GateError: if `model` is no module, or `optimizer` no optimizer.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import describe
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> model = torch.nn.Sequential(backbone.requires_grad_(False), torch.nn.BatchNorm2d(8))
        >>> print(describe(model, torch.optim.SGD(model[1].parameters(), lr=0.1)))
        Sequential: 2 BN layers
        <BLANKLINE>
        1 layer: updates its statistics, though frozen
          layer  type         mode      grad  optimizer  momentum  statistics
          0.1    BatchNorm2d  training  no    none       0.1       new
        <BLANKLINE>
        1 layer: trains, and updates its statistics
          layer  type         mode      grad  optimizer  momentum  statistics
          1      BatchNorm2d  training  yes   SGD        0.1       new
    """
    if not isinstance(model, nn.Module):
        raise GateError(f"describe() takes a torch.nn.Module; got {errors.describe(model)}")
    named = dict(_described(model, all_layers=all_layers))
    holdings = Holdings(optimizer)
    to_train = layers_to_train(model)
    states = statistics_states([layer._buffers for layer in named.values()])
    layers = tuple(
        LayerDescription(
            name=name,
            type=type(layer).__name__,
            mode="training" if layer.training else "eval",
            requires_grad=_requires_grad(layer),
            optimizer=_optimizer(layer, holdings),
            momentum=_momentum(layer),
            statistics=state if is_bn_layer(layer) else "-",
            next_step=next_step(layer, holdings, is_to_train=_is_to_train(layer, to_train)),
        )
        for (name, layer), state in zip(named.items(), states, strict=True)
    )
    return ModelDescription(type(model).__name__, layers, bn_only=not all_layers)


def _described(model: nn.Module, *, all_layers: bool) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers to describe by name, a layer that is there twice by its first name."""
    seen = set()
    for name, module in ModelNames.from_model(model).by_bare_name.items():
        wanted = is_bn_layer(module) or (all_layers and any(True for _ in own_tensors(module)))
        if wanted and id(module) not in seen:
            seen.add(id(module))
            yield name, module


def _is_to_train(layer: nn.Module, bn_layers_to_train: set[int]) -> bool:
    if is_bn_layer(layer):
        return id(layer) in bn_layers_to_train
    return _requires_grad(layer) in ("yes", "partly")


def _requires_grad(layer: nn.Module) -> str:
    answers = {each.requires_grad for _, each in layer._parameters.items() if each is not None}
    if len(answers) == 2:
        return "partly"
    return {True: "yes", False: "no"}[answers.pop()] if answers else "-"


def _optimizer(layer: nn.Module, holdings: Holdings) -> str:
    parameters = [each for _, each in layer._parameters.items() if each is not None]
    if not (parameters and holdings.are_known):
        return "-"
    return ", ".join(group.name for group in holdings.of(parameters)) or "none"


def _momentum(layer: nn.Module) -> str:
    if not hasattr(layer, "momentum"):
        return "-"
    return "average" if layer.momentum is None else f"{layer.momentum:g}"
