"""Hear what BN layers normalise with, while they run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.instrumentation.observer_api import AfterCall, AfterForward, ForwardKind
from pytest_bninvariants.selection.bn_layers import (
    STATISTICS,
    has_known_forward,
    uses_batch_statistics,
)
from pytest_bninvariants.selection.walk import own_tensors
from pytest_bninvariants.snapshot.tensor_bytes import version
from pytest_bninvariants.torch_internals import private_api
from pytest_bninvariants.torch_internals.dynamo import hidden_from_dynamo, skipped_by_dynamo
from pytest_bninvariants.torch_internals.patches import Patch, Patches, Switch

_Function = Callable[..., Any]
# Positions in torch.batch_norm and in torch.instance_norm.
_WEIGHT, _RUNNING_MEAN, _USES_BATCH = 1, 3, 5


@dataclass(slots=True)
class _Running:
    """A module whose forward runs.

    Args:
        module: the module.
        is_layer: whether it is a BN layer.
        x: the first tensor that it is called with.
        ends: what is to be called after it.
        counted: whether torch's functions are listened to on its account.
        before: what tells, as far as anything does, whether its forward wrote its statistics.
        heard: whether one of torch's normalising functions was called for it.
    """

    module: nn.Module
    is_layer: bool
    x: Tensor | None
    ends: list[AfterForward]
    counted: bool
    before: object = None
    heard: bool = False


class Listeners:
    """Hear what BN layers normalise with, from the calls that they make while they run.

    What a layer calls decides, not its mode: hooks may change that between the call and the
    forward, and a forward of a user's own may do as it likes. The mode decides for a forward of
    torch's own without hooks, and where such a one made no such call, because it raised before, or
    because it does without.
    """

    def __init__(self) -> None:
        self._running = threading.local()
        self._lock = threading.Lock()
        self.listening = 0
        """How many modules run that are listened to."""
        self.aside = False
        """Whether compiled code ran: it minds if functions that it was compiled with are others."""
        self._runs_it: FrameType | None = None
        self._patches = Patches(
            Patch(torch, "batch_norm", observing_batch_norm),
            Patch(torch, "instance_norm", observing_instance_norm),
        )

    def enter(self, module: nn.Module, tensors: list[Tensor], *, is_layer: bool) -> bool:
        """Begin to listen to a BN layer, to a module inside of one, or to what calls them.

        The last is the outermost module that runs, where somebody wants to hear of calls of
        torch's functions by no BN layer.

        Args:
            module: the module.
            tensors: those that it is called with.
            is_layer: whether it is a BN layer.

        Returns:
            Whether `leave` must follow.
        """
        stack = self._stack()
        inside = any(running.is_layer for running in stack)
        if not (is_layer or inside or (not stack and observer_api.calls_are_observed())):
            return False
        x = tensors[0] if tensors else None
        ends = _begin(module, x) if is_layer else []
        counted = not (is_layer and _flags_tell(module))
        before = _marks(module) if is_layer and counted else None
        stack.append(_Running(module, is_layer, x, ends, counted, before))
        if counted:
            self._count_by(1)
        return True

    def leave(self, *, failed: bool) -> None:
        """End what `enter` began."""
        ended = self._stack().pop()
        if ended.counted:
            self._count_by(-1)
        if ended.is_layer and not ended.heard:
            before = failed and (ended.counted or isinstance(sys.exc_info()[1], ValueError))
            wrote = ended.counted and _marks(ended.module) != ended.before
            _tell_by_mode(ended.module, ended.x, failed=before, wrote=wrote)
        for end in ended.ends:
            end(failed)

    def heard(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], flag: str
    ) -> list[AfterCall]:
        """Take note of a normalising call and its arguments; return what is to be called after."""
        mean = args[_RUNNING_MEAN] if len(args) > _RUNNING_MEAN else kwargs.get("running_mean")
        batch = args[_USES_BATCH] if len(args) > _USES_BATCH else kwargs.get(flag)
        values = args[0] if args else kwargs.get("input")
        given = values if isinstance(values, Tensor) else None
        running = self._meant(name, mean, values)
        if running is not None:
            running.heard = True
            if batch:
                _tell_batch_statistics(running.module, "batches", given)
            return []
        weight = args[_WEIGHT] if len(args) > _WEIGHT else kwargs.get("weight")
        state = mean if isinstance(mean, Tensor) else weight
        if not isinstance(state, Tensor):
            return []
        finishes = [
            observer.saw_call(name, state, given, sys._getframe(1), batch=bool(batch))
            for observer in observer_api.active_observers
        ]
        return [finish for finish in finishes if finish is not None]

    def _meant(self, name: str, mean: object, values: object) -> _Running | None:
        """Return the layer that a call normalises for; layers make other such calls too."""
        stack = self._stack()
        if mean is not None:
            layers = [running for running in stack if running.is_layer]
            owner = (r for r in layers if any(b is mean for b in r.module._buffers.values()))
            return next(owner, layers[-1] if layers else None)
        if not stack or not stack[-1].is_layer:
            return None
        layer = stack[-1].module
        if name == "instance_norm" and not isinstance(layer, private_api.InstanceNorm):
            return None
        return None if _shares_memory(values, layer) else stack[-1]

    def step_aside(self, frame: FrameType) -> None:
        """Take the wrappers off until `come_back`; the frame runs the compiled code."""
        if not self.aside:
            self._runs_it = frame
        self.aside = True
        self.suspend()

    def come_back(self) -> None:
        """Put them back if they are wanted."""
        self.aside, self._runs_it = False, None
        self.resume()

    def come_back_from(self, frame: FrameType) -> None:
        """Put them back where the frame that ran the compiled code switches dynamo off again."""
        if self.aside and frame is self._runs_it:
            self.come_back()

    def suspend(self) -> None:
        """Take the wrappers off for a while."""
        with self._lock:
            self._patches.remove()

    def resume(self) -> None:
        """Put them back if any module runs that is listened to."""
        self._count_by(0)

    def _count_by(self, step: int) -> None:
        with self._lock:
            self.listening += step
            if self.listening and not self.aside:
                self._patches.install()
            else:
                self._patches.remove()

    def _stack(self) -> list[_Running]:
        if not hasattr(self._running, "stack"):
            self._running.stack = []
        stack: list[_Running] = self._running.stack
        return stack


def _flags_tell(layer: nn.Module) -> bool:
    """Tell whether a layer's flags say now what it will do: then nothing needs to be wrapped."""
    hooked = (
        layer._forward_pre_hooks
        or layer._forward_hooks
        or private_api.global_forward_pre_hooks
        or private_api.global_forward_hooks
    )
    return not hooked and has_known_forward(layer)


def _shares_memory(values: object, layer: nn.Module) -> bool:
    """Tell whether values are a layer's own parameter, which weight standardisation normalises."""
    if not isinstance(values, Tensor):
        return False
    with private_api.DisableTorchFunction():
        start = values.untyped_storage().data_ptr()
        return any(t.untyped_storage().data_ptr() == start for _, _, t in own_tensors(layer))


def _begin(layer: nn.Module, x: Tensor | None) -> list[AfterForward]:
    heard = [observer.before_layer(layer, x) for observer in observer_api.active_observers]
    return [end for end in heard if end is not None]


def _marks(layer: nn.Module) -> list[object]:
    """Return what moves when a layer's statistics are written in place, or others take their name.

    Not with all that writes: that is why what layers call is listened to.
    """
    held = [getattr(layer, name, None) for name in STATISTICS]
    with private_api.DisableTorchFunction():
        return [(id(each), version(each) if isinstance(each, Tensor) else None) for each in held]


def _tell_by_mode(layer: nn.Module, x: Tensor | None, *, failed: bool, wrote: bool) -> None:
    """Tell what a layer did that was not heard to call one of torch's functions.

    Args:
        layer: the layer.
        x: what it was called with.
        failed: whether it raised before it normalised, as torch's checks of an input do.
        wrote: whether it is known to have written its statistics.
    """
    if has_known_forward(layer):
        if uses_batch_statistics(layer):
            _tell_batch_statistics(layer, "failed" if failed else "batches", x)
    elif layer.training or wrote:
        _tell_batch_statistics(layer, "own_forwards")


def _tell_batch_statistics(
    layer: nn.Module, kind: ForwardKind, values: Tensor | None = None
) -> None:
    for observer in observer_api.active_observers:
        observer.saw_batch_statistics(layer, kind, values)


@hidden_from_dynamo
def _tell_normalising(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], flag: str
) -> list[AfterCall]:
    return listeners.heard(name, args, kwargs, flag)


@hidden_from_dynamo
def _tell_normalised(finishes: list[AfterCall]) -> None:
    for finish in finishes:
        finish()


def _observing(name: str, flag: str) -> Callable[[_Function, Switch], _Function]:
    """Return what wraps one of torch's functions; the flag says whether it uses the batch."""

    def observing(original: _Function, switch: Switch) -> _Function:
        @skipped_by_dynamo
        def normalise(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not switch.on or is_dynamo_compiling():
                return original(*args, **kwargs)
            finishes = _tell_normalising(name, args, kwargs, flag)
            result = original(*args, **kwargs)
            if finishes:
                _tell_normalised(finishes)
            return result

        normalise.__name__ = name
        return normalise

    return observing


observing_batch_norm = _observing("batch_norm", "training")
observing_instance_norm = _observing("instance_norm", "use_input_stats")
listeners = Listeners()
