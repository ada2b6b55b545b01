"""Find which operations moved a tensor, by comparing it before and after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants.frames import place_of
from pytest_bninvariants.instrumentation.call_sites import place_of_grad_call
from pytest_bninvariants.instrumentation.observer_api import AfterCall
from pytest_bninvariants.instrumentation.optimizers import (
    Gradient,
    gradients_of,
    have_moments,
    place_of_step,
    skips_parameters_without_gradient,
)
from pytest_bninvariants.selection.walk import named_modules, registered
from pytest_bninvariants.snapshot.addresses import (
    address,
    addresses,
    group_by_address,
    spans,
)
from pytest_bninvariants.snapshot.host_copies import read_flags
from pytest_bninvariants.snapshot.operation_snapshot import OperationSnapshot
from pytest_bninvariants.snapshot.tensor_bytes import (
    content_of,
    extent,
    is_plain,
    same_content,
    version,
)
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Place

_FIRST_VALUES = 16  # a step that moves a tensor moves these; comparing so few is nearly free


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerStep:
    """A step of an optimizer that moved a tensor.

    Args:
        optimizer: class name of the optimizer.
        group: which of its groups holds the tensor.
        gradient: what the tensor's gradient was.
        has_moments: whether the optimizer had moments for it that are not zero.
        weight_decay: the group's weight decay.
        shares_memory: whether the optimizer holds another tensor with the same memory.
        place: the line that called `step`.
    """

    optimizer: str
    group: int
    gradient: Gradient
    has_moments: bool
    weight_decay: float
    shares_memory: bool = False
    place: Place | None = None


@dataclass(slots=True)
class TensorHistory:
    """What operations did to one tensor.

    Args:
        holder: class name of an optimizer that holds it and stepped; empty if there is none.
        step: the first step that moved it with a gradient, or else the first that moved it.
        loaded_at: where a load moved it first.
        exchanged_at: where a collective moved it first.
        switched_on_at: where its requires_grad was switched on last.
    """

    holder: str = ""
    step: OptimizerStep | None = None
    loaded_at: Place | None = None
    exchanged_at: Place | None = None
    switched_on_at: Place | None = None


_UNTOUCHED = TensorHistory()


class OperationLog:
    """Follow some tensors through optimizer steps, loads and collectives.

    Args:
        tensors: the tensors to follow.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._histories: dict[int, TensorHistory] = {}

    @cached_property
    def _followed(self) -> dict[int, Tensor]:
        return {id(tensor): tensor for tensor in self._tensors}

    @property
    def saw_any(self) -> bool:
        """Tell whether any operation took a followed tensor."""
        return bool(self._histories)

    def history_of(self, tensor: Tensor) -> TensorHistory:
        """Return what was done to a tensor."""
        return self._histories.get(id(tensor), _UNTOUCHED)

    def _entry(self, tensor: Tensor) -> TensorHistory:
        """Return the history of a tensor, to add to it."""
        return self._histories.setdefault(id(tensor), TensorHistory())

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Look at what an optimizer holds; return a function that looks again after its step."""
        entries = [
            _OptimizerEntry(followed, parameter, number)
            for number, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
            for followed in self._sharing(parameter)
        ]
        for entry in entries:
            self._entry(entry.tensor).holder = type(optimizer).__name__
        if skips_parameters_without_gradient(optimizer) and not closure:
            entries = [entry for entry in entries if entry.parameter.grad is not None]
        if not entries:
            return None
        with undisturbed():
            pending = _PendingStep(optimizer, entries, closure=closure)

        def finish() -> None:
            with undisturbed():
                moved = pending.finish()
            place = place_of_step(frame, optimizer) if moved else None
            for tensor, step in moved:
                self._record_step(tensor, replace(step, place=place))

        return finish

    def _record_step(self, tensor: Tensor, step: OptimizerStep) -> None:
        """Keep the first step that moved a tensor, but prefer one with a gradient."""
        history = self._entry(tensor)
        first = history.step
        if first is None or (first.gradient != "nonzero" and step.gradient == "nonzero"):
            history.step = step

    def _sharing(self, parameter: Tensor) -> list[Tensor]:
        """Return the followed tensors that a parameter is, or shares memory with."""
        if id(parameter) in self._followed:
            return [parameter]
        return self._by_address.get(address(parameter), [])

    @cached_property
    def _by_address(self) -> dict[int, list[Tensor]]:
        return group_by_address((tensor, tensor) for tensor in self._followed.values())

    def saw_switched_on(self, tensor: Tensor, frame: FrameType) -> None:
        """Note that a frame switches on a tensor's requires_grad."""
        if id(tensor) in self._followed:
            self._entry(tensor).switched_on_at = place_of_grad_call(frame, tensor, True)

    def before_load(self, module: nn.Module, frame: FrameType | None) -> AfterCall | None:
        """Look at what a module holds; return a function that looks again after the load."""
        slots = [each for each in _slots(module) if id(each[2]) in self._followed]
        if not slots:
            return None
        with undisturbed():
            before = [content_of(tensor) for _, _, tensor in slots]

        def finish() -> None:
            place = place_of(frame, f"{type(module).__name__}.load_state_dict()")
            with undisturbed():
                for (registry, name, tensor), content in zip(slots, before, strict=True):
                    now = registered(registry, name)
                    history = self._entry(tensor)
                    if now is None or history.loaded_at is not None:
                        continue
                    if not same_content(content, now):
                        history.loaded_at = place

        return finish

    def before_tensor_load(
        self, name: str, tensors: Iterable[Tensor], frame: FrameType | None
    ) -> AfterCall | None:
        """Look at what a checkpoint is read into; return a function that looks again after it."""
        memory = _starts(tensors)
        loaded = [each for each in self._followed.values() if memory.intersection(_starts([each]))]

        def note(history: TensorHistory) -> None:
            history.loaded_at = history.loaded_at or place_of(frame, f"{name}()")

        return self._looking_again(loaded, note)

    def before_collective(
        self, name: str, tensors: Iterable[Tensor], frame: FrameType | None
    ) -> AfterCall | None:
        """Look at the tensors of a collective; return a function that looks again after it."""
        memory = addresses(tensors)  # DDP passes detached aliases
        exchanged = [tensor for tensor in self._followed.values() if address(tensor) in memory]

        def note(history: TensorHistory) -> None:
            place = place_of(frame, f"torch.distributed.{name}()")
            history.exchanged_at = history.exchanged_at or place

        return self._looking_again(exchanged, note)

    def _looking_again(
        self, tensors: list[Tensor], note: Callable[[TensorHistory], None]
    ) -> AfterCall | None:
        """Return a function that notes which of some tensors differ from what they hold now."""
        if not tensors:
            return None
        with undisturbed():
            before = [content_of(tensor) for tensor in tensors]

        def finish() -> None:
            with undisturbed():
                for tensor, content in zip(tensors, before, strict=True):
                    history = self._entry(tensor)
                    if not same_content(content, tensor):
                        note(history)

        return finish


def _starts(tensors: Iterable[Tensor]) -> set[int]:
    """Return where the parts of tensors begin in memory."""
    return {start for tensor in tensors for start, _ in spans(tensor)} - {0}


def _slots(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Yield the registry, name and tensor of each parameter and buffer of a module."""
    for _, submodule in named_modules(module):
        for registry in (submodule._parameters, submodule._buffers):
            for name, tensor in registry.items():
                if tensor is not None:
                    yield registry, name, tensor


class _OptimizerEntry(NamedTuple):
    """A followed tensor that an optimizer may move.

    Args:
        tensor: the tensor.
        parameter: the parameter that the optimizer holds: the tensor, or one with its memory.
        group: the number of the group that holds it.
    """

    tensor: Tensor
    parameter: Tensor
    group: int


class _FirstValues:
    """The first values of tensors that should not move.

    Watching tensors that are frozen correctly must cost next to nothing.

    Args:
        tensors: the tensors.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._kept = [(tensor, version(tensor), _first_bytes(tensor)) for tensor in tensors]

    def moved(self) -> list[bool]:
        """Tell of each tensor whether it was written to, or its first values differ now."""
        pairs = [(before, _first_bytes(tensor)) for tensor, _, before in self._kept]
        flags = {
            number: (before != now).any()
            for number, (before, now) in enumerate(pairs)
            if before is not None and now is not None
        }
        differ = dict(zip(flags, read_flags(list(flags.values())), strict=True))
        return [
            differ.get(number, False) or (before is not None and before != version(tensor))
            for number, (tensor, before, _) in enumerate(self._kept)
        ]


class _PendingStep:
    """What an optimizer may move, before its step.

    Args:
        optimizer: the optimizer.
        entries: the followed tensors that it may move.
        closure: whether a closure computes the gradients during the step.
    """

    def __init__(
        self, optimizer: Optimizer, entries: list[_OptimizerEntry], *, closure: bool
    ) -> None:
        parameters = [entry.parameter for entry in entries]
        gradients = [None] * len(entries) if closure else gradients_of(parameters)
        doubtful = [number for number, each in enumerate(gradients) if each != "nonzero"]
        moments = have_moments(optimizer, [parameters[number] for number in doubtful])
        idle = [number for number, each in enumerate(gradients) if each == "none"]
        active = [number for number, each in enumerate(gradients) if each != "none"]
        self._optimizer, self._entries, self._gradients = optimizer, entries, gradients
        self._with_moments = set(compress(doubtful, moments))
        self._kept: list[tuple[list[int], _FirstValues | OperationSnapshot]] = [
            (idle, _FirstValues([entries[number].tensor for number in idle])),
            (active, OperationSnapshot([entries[number].tensor for number in active])),
        ]

    def finish(self) -> list[tuple[Tensor, OptimizerStep]]:
        """Return what the step moved; a closure has computed the gradients by then."""
        moved = [n for numbers, kept in self._kept for n in compress(numbers, kept.moved())]
        unknown = [number for number in moved if self._gradients[number] is None]
        computed = gradients_of([self._entries[number].parameter for number in unknown])
        gradients = dict(enumerate(self._gradients)) | dict(zip(unknown, computed, strict=True))
        return [
            (self._entries[number].tensor, self._describe(number, gradients[number] or "none"))
            for number in sorted(moved)
        ]

    def _describe(self, number: int, gradient: Gradient) -> OptimizerStep:
        entry = self._entries[number]
        group = self._optimizer.param_groups[entry.group]
        return OptimizerStep(
            optimizer=type(self._optimizer).__name__,
            group=entry.group,
            gradient=gradient,
            has_moments=number in self._with_moments,
            weight_decay=float(group.get("weight_decay", 0.0) or 0.0),
            shares_memory=entry.tensor is not entry.parameter,
        )


def _first_bytes(tensor: Tensor) -> Tensor | None:
    """Return the bytes of a tensor's first values in memory."""
    if not is_plain(tensor):
        return None
    count = min(_FIRST_VALUES, extent(tensor) // tensor.itemsize)  # an expanded tensor has fewer
    return tensor.detach().as_strided((count,), (1,)).clone().view(torch.uint8)
