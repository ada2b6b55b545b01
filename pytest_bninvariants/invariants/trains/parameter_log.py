"""Follow parameters through the steps of the optimizers that train them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from pytest_bninvariants.frames import place_of
from pytest_bninvariants.instrumentation.call_sites import runs_in_checkpoint_without_gradients
from pytest_bninvariants.instrumentation.installation import Watcher
from pytest_bninvariants.instrumentation.observer_api import AfterCall
from pytest_bninvariants.invariants.trains.autocast_cache import AutocastCache
from pytest_bninvariants.invariants.trains.parameter_record import ParameterRecord
from pytest_bninvariants.invariants.trains.parameter_step import HeldParameter, ParameterStep
from pytest_bninvariants.invariants.trains.value_sample import samples_of
from pytest_bninvariants.selection.walk import all_tensors, named_modules, own_tensors
from pytest_bninvariants.snapshot.operation_snapshot import OperationSnapshot
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo
from pytest_bninvariants.torch_internals.isolation import in_transform, undisturbed


class ParameterLog(Watcher):
    """Follow some parameters during one step, and those that take their names.

    Args:
        parameters: the parameters.
        model: the model that holds them.
    """

    def __init__(self, parameters: Iterable[Tensor], model: nn.Module) -> None:
        self._model = model
        self._records = {id(parameter): (parameter, ParameterRecord()) for parameter in parameters}
        self._others = {id(each) for each in all_tensors(model)} - self._records.keys()
        self._owners = {
            id(module): [self._records[key][1] for key in keys]
            for _, module in named_modules(model)
            if (keys := [id(t) for _, _, t in own_tensors(module) if id(t) in self._records])
        }
        self._autocast_cache = AutocastCache()
        self._moved_in_autocast: set[int] = set()
        self.stepped: list[str] = []
        """Class names of the optimizers that stepped, whatever they hold."""
        self.may_have_missed = False
        """Whether steps or gradients may have been missed: in compiled code, in a function
        transform, or by an optimizer of copies, whose values are copied into the model."""

    def start(self) -> None:
        """Begin to observe; gradients that are there already count."""
        with undisturbed():
            parameters = [parameter for parameter, _ in self._records.values()]
            for (parameter, record), values, gradient in self._sampled(
                parameters, [parameter.grad for parameter in parameters]
            ):
                record.start, record.began_lazy = values, is_lazy(parameter)
                if gradient is not None:
                    record.by_hand.note(values, gradient)
        super().start()

    def record_of(self, parameter: Tensor) -> ParameterRecord:
        """Return the record of a parameter; that of one which no optimizer has is empty."""
        return self._records.get(id(parameter), (parameter, ParameterRecord()))[1]

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Ignore modules without such parameters."""
        return id(module) not in self._owners

    def saw_forward(self, module: nn.Module) -> None:
        """Note a module that runs in a reentrant checkpoint which cannot give it gradients."""
        if torch.is_grad_enabled() or id(module) not in self._owners:
            return
        if runs_in_checkpoint_without_gradients(sys._getframe(1)):
            for record in self._owners[id(module)]:
                record.checkpointed = True

    def saw_compiled_code(self) -> None:
        """Note that an optimizer's step may be compiled, and unseen."""
        self.may_have_missed = True

    def saw_backward(self, returned: Mapping[int, Tensor]) -> None:
        """Note the gradients of parameters that no optimizer has stepped, to know steps by hand."""
        if in_transform():
            self.may_have_missed = True
            return
        with undisturbed():
            unheld = [each for each, record in self._records.values() if not record.optimizer]
            gradients = [returned.get(id(each), each.grad) for each in unheld]
            for (_, record), values, gradient in self._sampled(unheld, gradients):
                record.by_hand.note(values, gradient)
                record.saw_backward = True

    def _sampled(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> Iterator[tuple[tuple[Tensor, ParameterRecord], Tensor | None, Tensor | None]]:
        """Yield parameters with their records, and samples of their values and gradients."""
        samples = samples_of([*parameters, *gradients])
        count = len(parameters)
        for parameter, values, gradient in zip(
            parameters, samples[:count], samples[count:], strict=True
        ):
            yield (parameter, self.record_of(parameter)), values, gradient

    def before_load(
        self, module: nn.Module, state: Mapping[str, Any], frame: FrameType | None
    ) -> AfterCall | None:
        """Return a function that notes after a load which parameters it set."""
        place = place_of(frame, f"{type(module).__name__}.load_state_dict()")
        with undisturbed():
            below = {id(tensor) for tensor in all_tensors(module)} & self._records.keys()
            loaded = [self._records[key] for key in below]
            tensors = [parameter for parameter, _ in loaded]
            for (_, record), values in zip(loaded, samples_of(tensors), strict=True):
                record.note_state(values)
            snapshot = OperationSnapshot(tensors)

        def finish() -> None:
            with undisturbed():
                for (_, record), values, moved in zip(
                    loaded, samples_of(tensors), snapshot.moved(), strict=True
                ):
                    if moved:
                        record.note_load(values, place)

        return finish if loaded else None

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Note what an optimizer steps with; return a function that notes what its step moved."""
        name = type(optimizer).__name__
        if name not in self.stepped:
            self.stepped.append(name)
        with undisturbed():
            self._follow_new_ones(optimizer)
            self._note_autocast(optimizer)
            held = [
                HeldParameter(parameter, self.record_of(parameter), name, number, _rate(group))
                for number, group in enumerate(optimizer.param_groups)
                for parameter in group["params"]
                if id(parameter) in self._records
            ]
            step = ParameterStep(held, closure=closure)

        def finish() -> None:
            with undisturbed():
                step.finish()

        return finish

    def _follow_new_ones(self, optimizer: Optimizer) -> None:
        """Follow parameters of an optimizer that came into the model since the start."""
        held = [each for group in optimizer.param_groups for each in group["params"]]
        unknown = [each for each in held if id(each) not in self._records]
        new = [each for each in unknown if id(each) not in self._others]
        if new:
            now = {id(tensor) for tensor in all_tensors(self._model)}
            ours = {id(each): (each, ParameterRecord()) for each in new if id(each) in now}
            self._records |= ours
            self.may_have_missed |= not ours and len(new) == len(held)

    def _note_autocast(self, optimizer: Optimizer) -> None:
        """Note parameters that step again while autocast still has their casts from before."""
        held = [each for group in optimizer.param_groups for each in group["params"]]
        device = held[0].device.type if held else "cpu"
        if self._autocast_cache.outlived_last_step(device):
            for parameter in held:
                if id(parameter) in self._moved_in_autocast and parameter.grad is not None:
                    self.record_of(parameter).stale = True
        else:
            self._moved_in_autocast.clear()
        self._autocast_cache.note_step(device)
        if self._autocast_cache.is_noted:
            casts = (p for p in held if p.dtype == torch.float32 and p.dim() > 1 and p.is_leaf)
            self._moved_in_autocast |= {id(p) for p in casts if p.grad is not None}


def _rate(group: Mapping[str, Any]) -> float:
    """Return a group's learning rate; optimizers that choose their own have None there."""
    rate = group.get("lr")
    return 1.0 if rate is None else float(rate)
