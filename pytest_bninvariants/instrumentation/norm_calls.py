"""Tell observers what BN layers normalise with, while they run."""

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
class _ModuleCall:
    """A module's call that is going on.

    Args:
        module: the module.
        is_layer: whether it is a BN layer.
        x: the first tensor that it is called with.
        after: what is to be called after it.
        listens: whether torch's functions are wrapped on its account.
        marks: its statistics' marks before the call.
        normalised: whether one of torch's functions was called for it.
    """

    module: nn.Module
    is_layer: bool
    x: Tensor | None
    after: list[AfterForward]
    listens: bool
    marks: object = None
    normalised: bool = False


class NormCallHooks:
    """Hear what BN layers normalise with, from the calls that they make while they run.

    What a layer calls decides, not its mode: hooks may change that between the call and the
    forward, and a user's own forward may do as it likes. The mode decides for a forward of torch's
    own without hooks, and where a layer made no such call, because it raised before, or because it
    does without.
    """

    def __init__(self) -> None:
        self._calls = threading.local()
        self._lock = threading.Lock()
        self.modules_listened_to = 0
        """How many modules run on whose account torch's functions are wrapped."""
        self.off_for_compiled_code = False
        """Whether the wrappers are off because compiled code runs: it would be compiled anew if it
        found other functions than those it was compiled with."""
        self._compiled_code_runs_in: FrameType | None = None
        self._patches = Patches(
            Patch(torch, "batch_norm", observing_batch_norm),
            Patch(torch, "instance_norm", observing_instance_norm),
        )

    def enter(self, module: nn.Module, tensors: list[Tensor], *, is_layer: bool) -> bool:
        """Begin to listen to a BN layer, to a module inside of one, or to what calls them.

        The last is the outermost module that runs, where an observer hears of calls of torch's
        functions that no BN layer makes.

        Args:
            module: the module.
            tensors: those that it is called with.
            is_layer: whether it is a BN layer.

        Returns:
            Whether `leave` must follow.
        """
        stack = self._stack()
        inside = any(call.is_layer for call in stack)
        if not (is_layer or inside or (not stack and observer_api.calls_are_observed())):
            return False
        x = tensors[0] if tensors else None
        after = _tell_before_layer(module, x) if is_layer else []
        listens = not (is_layer and _mode_decides(module))
        marks = _marks(module) if is_layer and listens else None
        stack.append(_ModuleCall(module, is_layer, x, after, listens, marks))
        if listens:
            self._add_listened_to(1)
        return True

    def leave(self, *, failed: bool) -> None:
        """End what `enter` began."""
        call = self._stack().pop()
        if call.listens:
            self._add_listened_to(-1)
        if call.is_layer and not call.normalised:
            before = failed and (call.listens or isinstance(sys.exc_info()[1], ValueError))
            wrote = call.listens and _marks(call.module) != call.marks
            _tell_by_mode(call.module, call.x, failed=before, wrote=wrote)
        for after in call.after:
            after(failed)

    def before_norm(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], flag: str
    ) -> list[AfterCall]:
        """Tell of a call of one of torch's functions; return what is to be called after it.

        Args:
            name: the function's name.
            args: its positional arguments.
            kwargs: its keyword arguments.
            flag: the name of the argument that says whether it uses batch statistics.
        """
        mean = args[_RUNNING_MEAN] if len(args) > _RUNNING_MEAN else kwargs.get("running_mean")
        batch = args[_USES_BATCH] if len(args) > _USES_BATCH else kwargs.get(flag)
        values = args[0] if args else kwargs.get("input")
        known_values = values if isinstance(values, Tensor) else None
        call = self._layers_call(name, mean, values)
        if call is not None:
            call.normalised = True
            if batch:
                _tell_batch_statistics(call.module, "batches", known_values)
            return []
        weight = args[_WEIGHT] if len(args) > _WEIGHT else kwargs.get("weight")
        state = mean if isinstance(mean, Tensor) else weight
        if not isinstance(state, Tensor):
            return []
        after = [
            observer.saw_call(name, state, known_values, sys._getframe(1), batch=bool(batch))
            for observer in observer_api.active_observers
        ]
        return [each for each in after if each is not None]

    def _layers_call(self, name: str, mean: object, values: object) -> _ModuleCall | None:
        """Return the call of the layer for which one of torch's functions was called, if any.

        Layers call these functions for other ends, too, such as weight standardisation.
        """
        stack = self._stack()
        if mean is not None:
            layers = [call for call in stack if call.is_layer]
            owner = (c for c in layers if any(b is mean for b in c.module._buffers.values()))
            return next(owner, layers[-1] if layers else None)
        if not stack or not stack[-1].is_layer:
            return None
        layer = stack[-1].module
        if name == "instance_norm" and not isinstance(layer, private_api.InstanceNorm):
            return None
        return None if _shares_memory(values, layer) else stack[-1]

    def yield_to_compiled_code(self, frame: FrameType) -> None:
        """Take the wrappers off until compiled code, which a frame is about to run, is over."""
        if not self.off_for_compiled_code:
            self._compiled_code_runs_in = frame
        self.off_for_compiled_code = True
        self.suspend()

    def return_from_compiled_code(self) -> None:
        """Put the wrappers back if they are wanted."""
        self.off_for_compiled_code, self._compiled_code_runs_in = False, None
        self.resume()

    def return_from_frame(self, frame: FrameType) -> None:
        """Put them back if this is the frame that ran the compiled code."""
        if self.off_for_compiled_code and frame is self._compiled_code_runs_in:
            self.return_from_compiled_code()

    def suspend(self) -> None:
        """Take the wrappers off for a while."""
        with self._lock:
            self._patches.remove()

    def resume(self) -> None:
        """Put the wrappers back if a module runs on whose account they are wanted."""
        self._add_listened_to(0)

    def _add_listened_to(self, count: int) -> None:
        with self._lock:
            self.modules_listened_to += count
            if self.modules_listened_to and not self.off_for_compiled_code:
                self._patches.install()
            else:
                self._patches.remove()

    def _stack(self) -> list[_ModuleCall]:
        """Return this thread's calls that are listened to, the innermost last."""
        if not hasattr(self._calls, "stack"):
            self._calls.stack = []
        stack: list[_ModuleCall] = self._calls.stack
        return stack


def _mode_decides(layer: nn.Module) -> bool:
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


def _tell_before_layer(layer: nn.Module, x: Tensor | None) -> list[AfterForward]:
    after = [observer.before_layer(layer, x) for observer in observer_api.active_observers]
    return [each for each in after if each is not None]


def _marks(layer: nn.Module) -> list[object]:
    """Return what differs when statistics were written in place, or others took their name.

    Some kernels write without a trace, which is why calls of torch's functions are listened to.
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
def _before_norm(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], flag: str
) -> list[AfterCall]:
    return norm_hooks.before_norm(name, args, kwargs, flag)


@hidden_from_dynamo
def _after_norm(after: list[AfterCall]) -> None:
    for each in after:
        each()


def _observing(name: str, flag: str) -> Callable[[_Function, Switch], _Function]:
    """Return what wraps one of torch's functions; the flag says whether it uses the batch."""

    def observing(original: _Function, switch: Switch) -> _Function:
        @skipped_by_dynamo
        def normalise(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not switch.on or is_dynamo_compiling():
                return original(*args, **kwargs)
            after = _before_norm(name, args, kwargs, flag)
            result = original(*args, **kwargs)
            if after:
                _after_norm(after)
            return result

        normalise.__name__ = name
        return normalise

    return observing


observing_batch_norm = _observing("batch_norm", "training")
observing_instance_norm = _observing("instance_norm", "use_input_stats")
norm_hooks = NormCallHooks()
