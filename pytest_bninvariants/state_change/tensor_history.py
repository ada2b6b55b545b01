"""Tell which of torch's operations moved a watched tensor: it is compared before and after each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants.frames import place_of
from pytest_bninvariants.instrumentation.observer_api import Finish
from pytest_bninvariants.instrumentation.optimizers import (
    Gradient,
    gradient_of,
    has_moments,
    place_of_step,
    skips_parameters_without_gradient,
)
from pytest_bninvariants.selection.model_names import named_modules
from pytest_bninvariants.snapshot.addresses import address, group_by_address
from pytest_bninvariants.snapshot.tensor_bytes import (
    Content,
    content_of,
    extent,
    is_plain,
    same_content,
    version,
)
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Place

_GLANCE = 16  # values


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerStep:
    """A step of an optimizer that moved a tensor.

    Args:
        optimizer: class name of the optimizer.
        group: which of its groups holds the tensor.
        gradient: what the tensor's gradient was.
        state: whether the optimizer had moments for it that are not zero.
        decay: the group's weight decay.
        shares: whether it holds another tensor, of the same memory.
        place: where it was called.
    """

    optimizer: str
    group: int
    gradient: Gradient
    state: bool
    decay: float
    shares: bool = False
    place: Place | None = None


@dataclass(slots=True)
class TensorHistory:
    """What operations did to one tensor.

    Args:
        held_by: class name of an optimizer that holds it and stepped.
        stepped: the first step that moved it with a gradient, or else the first that moved it.
        loaded: where a load moved it first.
        collective: where a collective operation between processes moved it first.
    """

    held_by: str = ""
    stepped: OptimizerStep | None = None
    loaded: Place | None = None
    collective: Place | None = None


_UNTOUCHED = TensorHistory()


class OperationLog:
    """Follow some tensors through optimizer steps, loads and collectives.

    Args:
        tensors: what is followed.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._handled: dict[int, TensorHistory] = {}

    @cached_property
    def _followed(self) -> dict[int, Tensor]:
        return {id(tensor): tensor for tensor in self._tensors}

    @property
    def touched(self) -> bool:
        """Tell whether anything was done to any."""
        return bool(self._handled)

    def of(self, tensor: Tensor) -> TensorHistory:
        """Return what was done to a tensor."""
        return self._handled.get(id(tensor), _UNTOUCHED)

    def _to(self, tensor: Tensor) -> TensorHistory:
        """Return what was done to a tensor, to be added to."""
        return self._handled.setdefault(id(tensor), TensorHistory())

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> Finish | None:
        """Look at what an optimizer holds; return what looks again after its step."""
        held = [
            _OptimizedTensor(followed, parameter, number)
            for number, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
            for followed in self._sharing(parameter)
        ]
        for each in held:
            self._to(each.tensor).held_by = type(optimizer).__name__
        if skips_parameters_without_gradient(optimizer) and not closure:
            held = [each for each in held if each.parameter.grad is not None]
        if not held:
            return None
        with undisturbed():
            steps = [_PendingStep.about_to(optimizer, each, closure=closure) for each in held]

        def finish() -> None:
            with undisturbed():
                moved = [step.told(optimizer) for step in steps if step.moved()]
            place = place_of_step(frame, optimizer) if moved else None
            for tensor, told in moved:
                handled = self._to(tensor)
                known = handled.stepped
                if known is None or (known.gradient != "nonzero" and told.gradient == "nonzero"):
                    handled.stepped = replace(told, place=place)

        return finish

    def _sharing(self, parameter: Tensor) -> list[Tensor]:
        """Return which of the tensors a parameter is, or shares its memory with."""
        if id(parameter) in self._followed:
            return [parameter]
        return self._by_address.get(address(parameter), [])

    @cached_property
    def _by_address(self) -> dict[int, list[Tensor]]:
        return group_by_address((tensor, tensor) for tensor in self._followed.values())

    def before_load(self, module: nn.Module, frame: FrameType | None) -> Finish | None:
        """Look at what a module holds; return what looks again after its load_state_dict()."""
        slots = [each for each in _slots(module) if id(each[2]) in self._followed]
        if not slots:
            return None
        with undisturbed():
            before = [content_of(tensor) for _, _, tensor in slots]

        def finish() -> None:
            place = place_of(frame, f"{type(module).__name__}.load_state_dict()")
            with undisturbed():
                for (registry, name, tensor), content in zip(slots, before, strict=True):
                    now = registry.get(name)
                    handled = self._to(tensor)
                    if now is not None and handled.loaded is None:
                        handled.loaded = None if same_content(content, now) else place

        return finish

    def before_collective(
        self, name: str, tensors: Iterable[Tensor], frame: FrameType | None
    ) -> Finish | None:
        """Look at what a collective is given; return what looks again after it."""
        addresses = {address(tensor) for tensor in tensors} - {0}  # DDP passes detached aliases
        given = [tensor for tensor in self._followed.values() if address(tensor) in addresses]
        if not given:
            return None
        with undisturbed():
            before = [content_of(tensor) for tensor in given]

        def finish() -> None:
            place = place_of(frame, f"torch.distributed.{name}()")
            with undisturbed():
                for tensor, content in zip(given, before, strict=True):
                    handled = self._to(tensor)
                    if handled.collective is None and not same_content(content, tensor):
                        handled.collective = place

        return finish


def _slots(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Yield where a module and all below it keep their tensors, and the tensors."""
    for _, below in named_modules(module):
        for registry in (below._parameters, below._buffers):
            for name, tensor in registry.items():
                if tensor is not None:
                    yield registry, name, tensor


class _OptimizedTensor(NamedTuple):
    """A tensor that an optimizer is about to move, if it does.

    Args:
        tensor: the tensor.
        parameter: what the optimizer holds: the same, or one that shares its memory.
        group: which of its groups holds it.
    """

    tensor: Tensor
    parameter: Tensor
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _PendingStep:
    """One tensor, about to go through an optimizer's step.

    Without a gradient it should not move, so it is only glanced at: watching what is frozen rightly
    must cost next to nothing.
    """

    held: _OptimizedTensor
    gradient: Gradient | None
    state: bool
    content: Content | None
    glance: Tensor | None
    version: int | None

    @classmethod
    def about_to(
        cls, optimizer: Optimizer, held: _OptimizedTensor, *, closure: bool
    ) -> _PendingStep:
        tensor = held.tensor
        gradient = None if closure else gradient_of(held.parameter)
        return cls(
            held=held,
            gradient=gradient,
            state=gradient != "nonzero" and has_moments(optimizer, held.parameter),
            content=None if gradient == "none" else content_of(tensor),
            glance=_glance(tensor) if gradient == "none" else None,
            version=version(tensor),
        )

    def moved(self) -> bool:
        tensor = self.held.tensor
        if self.gradient != "none":
            return not same_content(self.content, tensor)
        if self.version is not None and self.version != version(tensor):
            return True
        now = _glance(tensor)
        return self.glance is not None and now is not None and not torch.equal(self.glance, now)

    def told(self, optimizer: Optimizer) -> tuple[Tensor, OptimizerStep]:
        """Return the tensor and its step, after it; a closure has computed the gradient by now."""
        group = optimizer.param_groups[self.held.group]
        now = gradient_of(self.held.parameter) if self.gradient is None else self.gradient
        return self.held.tensor, OptimizerStep(
            optimizer=type(optimizer).__name__,
            group=self.held.group,
            gradient=now,
            state=self.state,
            decay=float(group.get("weight_decay", 0.0) or 0.0),
            shares=self.held.tensor is not self.held.parameter,
        )


def _glance(tensor: Tensor) -> Tensor | None:
    """Return the bytes of a tensor's first values in memory."""
    if not is_plain(tensor):
        return None
    count = min(_GLANCE, extent(tensor) // tensor.itemsize)  # an expanded one has fewer there
    return tensor.detach().as_strided((count,), (1,)).clone().view(torch.uint8)
