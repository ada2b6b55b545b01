"""The gradients of a loss over one or several batches, computed on a copy of a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bninvariants.checks import is_real
from pytest_bninvariants.diagnosis.wording import counted
from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.evaluation.batches import cast_batch, samples_in
from pytest_bninvariants.evaluation.precision import computing_in
from pytest_bninvariants.instrumentation import installation
from pytest_bninvariants.instrumentation.observer_api import ForwardKind, Observer
from pytest_bninvariants.selection.bn_layers import (
    has_known_forward,
    is_bn_layer,
    uses_batch_statistics,
)
from pytest_bninvariants.selection.walk import named_modules
from pytest_bninvariants.torch_internals.private_api import InstanceNorm

LossFunction = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassGradients:
    """The result of one pass over one or several batches.

    Args:
        sums: the sum of the batches' weighted gradients in float64, by the parameter's name.
        sizes: the largest value in the sum of their magnitudes, by the parameter's name.
        loss: the sum of the weighted losses.
        normalised: by name, the layers that normalised with batch statistics, and whether they
            were in training mode.
    """

    sums: dict[str, Tensor]
    sizes: dict[str, float]
    loss: float
    normalised: dict[str, bool]

    def distance(self, other: PassGradients, name: str) -> float:
        """Return the largest difference between two passes' gradients of a parameter."""
        return float((self.sums[name] - other.sums[name]).abs().max())


@dataclass(frozen=True, slots=True)
class GradientPass:
    """Compute the gradients of a batch, or of its parts, on copies of a model.

    Args:
        model: the model, which is copied for each run.
        loss: `loss(model, batch)`.
        weight: returns the weight of a batch; it is divided by the weight of the whole batch.
        batch: the whole batch.
    """

    model: nn.Module
    loss: LossFunction
    weight: Callable[[Any], float]
    batch: Any

    def run(self, batches: list[Any], dtype: torch.dtype) -> PassGradients:
        """Return the gradients over some batches, in a dtype.

        Raises:
            GateError: if the pass does not run, nothing is trainable, or a gradient is not finite.
        """
        model = self._copy_in(dtype)
        trainable = _trainable(model)
        whole = self._weight_of_whole()
        sums = {name: _zeros(parameter) for name, parameter in trainable.items()}
        magnitudes = {name: value.abs() for name, value in sums.items()}
        total, observer = 0.0, _BatchStatisticsUse()
        for number, batch in enumerate(batches, 1):
            model.zero_grad(set_to_none=True)
            doing = _describe_loss(number, batch, batches, dtype)
            with _errors_explained(doing), observer, computing_in(dtype):
                value = _check_scalar(self.loss(model, cast_batch(batch, dtype)))
                value = value * (self._weight_of(batch) / whole)
                torch.autograd.backward(value)
            total += float(value.detach())
            for name, gradient in _gradients(trainable).items():
                sums[name] += gradient
                magnitudes[name] += gradient.abs()
        _check_sums(sums, dtype)
        return PassGradients(
            sums=sums,
            sizes={name: float(value.max()) for name, value in magnitudes.items()},
            loss=total,
            normalised=observer.layers_in(model),
        )

    def _copy_in(self, dtype: torch.dtype) -> nn.Module:
        with _errors_explained(f"copying the model to {dtype}"):
            model = copy.deepcopy(self.model)
            model.double() if dtype == torch.float64 else model.float()
        return model

    def _weight_of_whole(self) -> float:
        whole = self._weight_of(self.batch)
        if not whole > 0:
            raise GateError(
                "accumulates(weight=...): the weight of the batch must be above 0; got "
                f"{describe(whole)}"
            )
        return whole

    def _weight_of(self, batch: Any) -> float:
        """Return the weight of a batch."""
        with _errors_explained("weight(batch)"):
            weight = self.weight(batch)
        value = weight.item() if isinstance(weight, Tensor) and weight.numel() == 1 else weight
        if not is_real(value) or not math.isfinite(value):
            raise GateError(
                "accumulates(weight=...): the weight of a batch must be a number; got "
                f"{describe(weight)}"
            )
        return float(value)


class _BatchStatisticsUse(Observer):
    """Record which layers normalise with batch statistics, and in which mode."""

    def __init__(self) -> None:
        self._training: dict[int, bool] = {}
        self._compiled = False

    def __enter__(self) -> None:
        installation.add(self)

    def __exit__(self, *error: object) -> None:
        installation.discard(self)

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        if not isinstance(layer, InstanceNorm):  # it uses each sample's own statistics
            self._training[id(layer)] = layer.training

    def saw_compiled_code(self) -> None:
        self._compiled = True

    def layers_in(self, model: nn.Module) -> dict[str, bool]:
        """Return the layers' names and whether they were in training mode.

        Compiled code hides its layers, so there a layer's mode decides.
        """
        training = {}
        for name, module in named_modules(model):
            by_mode = self._compiled and is_bn_layer(module) and has_known_forward(module)
            if id(module) in self._training:
                training[name] = self._training[id(module)]
            elif by_mode and uses_batch_statistics(module):
                training[name] = module.training
        return training


@contextmanager
def _errors_explained(doing: str) -> Iterator[None]:
    try:
        yield
    except GateError:
        raise
    except Exception as error:
        raise GateError(f"accumulates: {doing} raised {type(error).__name__}: {error}") from error


def _describe_loss(number: int, batch: Any, batches: list[Any], dtype: torch.dtype) -> str:
    samples = samples_in(batch)
    part = f"micro-batch {number} of {len(batches)}" if len(batches) > 1 else "the whole batch"
    return f"the loss of {part} ({counted(samples, 'sample')}), in {dtype}"


def _check_scalar(value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise GateError(
            "accumulates(loss=...): loss(model, batch) returns a tensor of one value; "
            f"got {describe(value)}"
        )
    return value


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad and p.numel()}
    if not trainable:
        raise GateError("nothing in the model is trainable: no parameter has requires_grad=True")
    return trainable


def _gradients(trainable: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    gradients = {n: p.grad.to_dense() for n, p in trainable.items() if p.grad is not None}
    if not gradients:
        raise GateError(
            "accumulates: loss(model, batch) reaches no trainable parameter "
            "of the model that it is given, which is a copy"
        )
    return gradients


def _zeros(parameter: Tensor) -> Tensor:
    wide = torch.complex128 if parameter.is_complex() else torch.float64
    return torch.zeros_like(parameter, dtype=wide, requires_grad=False)


def _check_sums(sums: dict[str, Tensor], dtype: torch.dtype) -> None:
    if not any(bool(value.any()) for value in sums.values()):
        raise GateError(f"accumulates: in {dtype} all gradients are 0")
    for name, value in sums.items():
        if not bool(value.isfinite().all()):
            raise GateError(f"accumulates: in {dtype} the gradient of {name} is not finite")
