"""One step of an optimizer: with which gradients it moved which parameters.

What it moved is told by samples of the values. Only where a sample of the gradient is all zeros, as
where few rows of an embedding are used, does it say nothing: these parameters are compared whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.instrumentation.optimizers import Gradient, gradients_of
from pytest_bninvariants.invariants.trains.parameter_record import ParameterRecord
from pytest_bninvariants.invariants.trains.value_sample import same_sample, samples_of
from pytest_bninvariants.snapshot.operation_snapshot import OperationSnapshot
from pytest_bninvariants.snapshot.reads.together import read_together
from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS, values_of

_RANK: dict[Gradient, int] = {"none": 0, "zero": 1, "nonzero": 2}


class HeldParameter(NamedTuple):
    """A parameter that an optimizer holds.

    Args:
        tensor: the parameter.
        record: its record.
        optimizer: class name of the optimizer.
        group: the number of the group that holds it.
        rate: the group's learning rate.
    """

    tensor: Tensor
    record: ParameterRecord
    optimizer: str
    group: int
    rate: float


class ParameterStep:
    """A step that begins; the caller must hold `undisturbed()`.

    Args:
        held: the parameters that the optimizer holds, as far as they are followed.
        closure: whether the gradients are yet to be computed, by a closure.
    """

    def __init__(self, held: Sequence[HeldParameter], *, closure: bool) -> None:
        self._held, self._closure = held, closure
        count = len(held)
        samples = samples_of([*self._tensors, *(each.grad for each in self._tensors)])
        self._before, gradients = samples[:count], samples[count:]
        for each, values in zip(held, self._before, strict=True):
            each.record.note_state(values)
            each.record.optimizer, each.record.group = each.optimizer, each.group
            each.record.rate = max(each.record.rate, each.rate)
        told = [sample is not None and bool(sample.any()) for sample in gradients]
        for each, sample, is_nonzero in zip(held, gradients, told, strict=True):
            if is_nonzero and sample is not None and not closure:
                _note_gradient(each.record, "nonzero", float(sample.abs().max()))
        untold = [each for each, is_nonzero in zip(held, told, strict=True) if not is_nonzero]
        if not closure:
            _note_gradients(untold)
            for each in untold:
                each.record.cleared |= each.record.saw_backward and each.record.by_hand.has_gradient
        ids = {id(each.tensor) for each in (held if closure else untold)}
        ids |= {id(each.tensor) for each in held if each.record.loaded}
        self._whole = [each for each in held if id(each.tensor) in ids]
        self._snapshot = OperationSnapshot([each.tensor for each in self._whole])

    @property
    def _tensors(self) -> list[Tensor]:
        return [each.tensor for each in self._held]

    def finish(self) -> None:
        """Note what the step moved, and with which gradients."""
        whole = {id(each.tensor) for each in self._whole}
        pairs = zip(self._whole, self._snapshot.moved(), strict=True)
        moved = {id(each.tensor) for each, has_moved in pairs if has_moved}
        for each, before, now in zip(
            self._held, self._before, samples_of(self._tensors), strict=True
        ):
            each.record.after = now
            if id(each.tensor) not in whole and not same_sample(before, now):
                moved.add(id(each.tensor))
        if self._closure:
            _note_gradients(self._held)
        still = [each for each in self._held if id(each.tensor) not in moved]
        _note_sizes(still)
        for each in self._held:
            if id(each.tensor) in moved:
                each.record.note_move()
            elif id(each.tensor) not in whole and each.rate > 0:
                each.record.may_have_moved = True


def _note_gradient(record: ParameterRecord, gradient: Gradient, size: float = 0.0) -> None:
    record.gradient = max(record.gradient, gradient, key=_RANK.__getitem__)
    record.note_size(size)


def _note_gradients(held: Sequence[HeldParameter]) -> None:
    """Note whether parameters have a gradient, by all of its values."""
    for each, gradient in zip(held, gradients_of([each.tensor for each in held]), strict=True):
        _note_gradient(each.record, gradient)


def _note_sizes(held: Sequence[HeldParameter]) -> None:
    """Note the largest magnitudes in gradients, as a verdict on what did not move tells them."""
    found = [
        (each.record, extreme)
        for each in held
        if each.tensor.grad is not None
        for extreme in _extremes(each.tensor.grad)
    ]
    extremes = read_together([extreme for _, extreme in found])
    for (record, _), extreme in zip(found, extremes, strict=True):
        record.note_size(abs(float(extreme)))


def _extremes(gradient: Tensor) -> list[Tensor]:
    """Return the least and the largest values of a gradient's parts, where they are."""
    try:
        parts = [
            torch.view_as_real(values) if values.is_complex() else values
            for values in values_of(gradient)
            if values.numel()
        ]
        return [extreme for part in parts for extreme in torch.aminmax(part)]
    except READ_ERRORS:
        return []
