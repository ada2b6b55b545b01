"""Hear what happens in the bare run, by torch's own global hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from tests.oracle.deeds import Call, Deed, GradientKind, Held, Statistics, bare
from tests.oracle.layers import NormByHand, batch_of, normalises
from tests.oracle.world import names_of

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Listener:
    """Write what happens to a model into a deed.

    Args:
        model: the model.
        deed: the deed.
    """

    def __init__(self, model: nn.Module, deed: Deed) -> None:
        self._model = model
        self._deed = deed
        self._unfinished: dict[int, Callable[[], None]] = {}
        self._held: dict[int, dict[str, tuple[Tensor, bool]]] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for a while."""
        hooks = [
            register_module_forward_pre_hook(self._called),
            register_optimizer_step_pre_hook(self._about_to_step),
            register_optimizer_step_post_hook(self._stepped),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for finish in self._unfinished.values():
                finish()

    def _called(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        in_backward = torch._C._current_graph_task_id() != -1
        if names := self._names_of(module):
            self._deed.calls.append(Call(module, names, module.training, in_backward))
        for layer, used_batch in normalises(module, *inputs):
            if not (names := self._names_of(layer)):
                continue
            if finish := self._unfinished.pop(id(layer), None):
                finish()
            call = Call(
                layer,
                names,
                layer.training,
                in_backward,
                used_batch,
                by_hand=isinstance(layer, NormByHand),
                by_instance=isinstance(layer, _InstanceNorm),
                momentum=getattr(layer, "momentum", 0.1),
                tracks=getattr(layer, "track_running_stats", True),
                batch=batch_of(module, *inputs),
                before=statistics_of(layer),
            )
            self._deed.calls.append(call)
            self._unfinished[id(layer)] = lambda call=call, layer=layer: setattr(
                call, "after", statistics_of(layer)
            )

    def _about_to_step(self, optimizer: optim.Optimizer, *_: object) -> None:
        self._held[id(optimizer)] = {
            name: (parameter.detach().clone(), bool(optimizer.state.get(parameter)))
            for name, parameter, _ in self._parameters(optimizer)
        }

    def _stepped(self, optimizer: optim.Optimizer, *_: object) -> None:
        step = {}
        for name, parameter, group in self._parameters(optimizer):
            # the gradient as it is now: a closure has made it after the step began
            before, had_moments = self._held[id(optimizer)][name]
            after = parameter.detach().clone()
            decay, rate = group.get("weight_decay", 0.0), group["lr"]
            step[name] = Held(kind_of(parameter.grad), before, after, decay, had_moments, rate)
        self._deed.steps.append(step)

    def _parameters(
        self, optimizer: optim.Optimizer
    ) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """Yield name, tensor and group of what an optimizer holds of the model."""
        held = {id(p): (p, group) for group in optimizer.param_groups for p in group["params"]}
        for name, tensor in names_of(self._model).items():
            if id(tensor) in held:
                parameter, group = held[id(tensor)]
                yield bare(name), parameter, group

    def _names_of(self, module: nn.Module) -> tuple[str, ...]:
        named = self._model.named_modules(remove_duplicate=False)
        return tuple(bare(name) for name, each in named if each is module)


def kind_of(gradient: Tensor | None) -> GradientKind:
    """Return what kind of gradient it is."""
    if gradient is None:
        return "none"
    if not bool(gradient.isfinite().all()):
        return "not finite"
    return "finite" if bool(gradient.any()) else "zero"


def statistics_of(layer: nn.Module) -> Statistics:
    """Return copies of a layer's statistics."""
    found = {name: getattr(layer, name, None) for name in STATISTICS}
    return {name: None if each is None else each.detach().clone() for name, each in found.items()}
