"""Tell observers what BN layers normalise with."""

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
_WEIGHT, _RUNNING_MEAN, _RUNNING_VAR, _USES_BATCH = 1, 3, 4, 5


@dataclass(slots=True)
class _ModuleCall:
    """A running call of a module.

    Args:
        module: the module.
        is_layer: whether it is a BN layer.
        x: the first tensor that it is called with.
        after: functions to call after it.
        listens: whether it needs torch's functions wrapped.
        marks: the marks of its statistics before the call.
        normalised: whether it called one of torch's functions to normalise.
        is_around_layer: whether it called another BN layer, which tells what it does by itself.
    """

    module: nn.Module
    is_layer: bool
    x: Tensor | None
    after: list[AfterForward]
    listens: bool
    marks: object = None
    normalised: bool = False
    is_around_layer: bool = False


@dataclass(eq=False, slots=True)
class OutermostCall:
    """A call of a module that no other module makes, told from others by its identity.

    Args:
        module: the id of the module, which this does not keep alive.
    """

    module: int


class NormCallHooks:
    """Find out what BN layers normalise with, from the functions of torch that they call.

    These calls decide, not the layer's mode: hooks may change the mode between the call and the
    forward, and a user's own forward may ignore it. The mode only decides for torch's own forward
    without hooks, and for a layer that called none of these functions.
    """

    def __init__(self) -> None:
        self._calls = threading.local()
        self._lock = threading.Lock()
        self.listening_calls = 0
        """How many running calls of modules need torch's functions wrapped."""
        self.off_for_compiled_code = False
        """Whether the wrappers are off because compiled code runs, which would be recompiled if it
        found other functions than those that it was compiled with."""
        self._compiled_code_runs_in: FrameType | None = None
        self._patches = Patches(
            Patch(torch, "batch_norm", observing_batch_norm),
            Patch(torch, "instance_norm", observing_instance_norm),
        )

    def enter(self, module: nn.Module, tensors: list[Tensor], *, is_layer: bool) -> bool:
        """Note that a module's call begins, if what the module calls matters.

        That is so for a BN layer, for a module inside one, and, if an observer observes calls that
        no BN layer makes, for the outermost module.

        Args:
            module: the module.
            tensors: the tensors that it is called with.
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
        if not stack:
            self._calls.outermost = OutermostCall(id(module))
        stack.append(_ModuleCall(module, is_layer, x, after, listens, marks))
        if listens:
            self._change_listening_calls(1)
        return True

    def leave(self, result: object, *, failed: bool) -> None:
        """Note that the innermost call that `enter` noted has ended, and what it returned."""
        stack = self._stack()
        call = stack.pop()
        if stack and (call.is_layer or call.is_around_layer):
            stack[-1].is_around_layer = True
        if call.listens:
            self._change_listening_calls(-1)
        if call.is_layer and not call.normalised:
            failed_early = failed and (call.listens or isinstance(sys.exc_info()[1], ValueError))
            wrote = call.listens and _marks(call.module) != call.marks
            _tell_by_mode(call.module, call.x, failed=failed_early, wrote=wrote)
            tells = failed or wrote or call.is_around_layer or has_known_forward(call.module)
            if not tells:
                _tell_own_forward(call.module, call.x, result)
        for after in call.after:
            after(failed)

    def before_norm(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], flag: str
    ) -> list[AfterCall]:
        """Tell observers of a call of one of torch's functions; return functions to call after it.

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
        var = args[_RUNNING_VAR] if len(args) > _RUNNING_VAR else kwargs.get("running_var")
        weight = args[_WEIGHT] if len(args) > _WEIGHT else kwargs.get("weight")
        owned = (mean, var) if isinstance(mean, Tensor) else (weight,)
        state = tuple(each for each in owned if isinstance(each, Tensor))
        if not state:
            return []
        after = [
            observer.saw_call(name, state, known_values, sys._getframe(1), batch=bool(batch))
            for observer in observer_api.observers_here()
        ]
        return [each for each in after if each is not None]

    def _layers_call(self, name: str, mean: object, values: object) -> _ModuleCall | None:
        """Return the call of the layer that uses one of torch's functions to normalise its input.

        Layers use these functions for other purposes, too, such as weight standardisation.
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
        """Take the wrappers off until compiled code that a frame is about to run has ended."""
        if not self.off_for_compiled_code:
            self._compiled_code_runs_in = frame
        self.off_for_compiled_code = True
        self.suspend()

    def return_from_compiled_code(self) -> None:
        """Put the wrappers back, if any running call needs them."""
        self.off_for_compiled_code, self._compiled_code_runs_in = False, None
        self.resume()

    def return_from_frame(self, frame: FrameType) -> None:
        """Put the wrappers back if this is the frame that ran the compiled code."""
        if self.off_for_compiled_code and frame is self._compiled_code_runs_in:
            self.return_from_compiled_code()

    def suspend(self) -> None:
        """Take the wrappers off for a while."""
        with self._lock:
            self._patches.remove()

    def resume(self) -> None:
        """Put the wrappers back, if any running call needs them and no compiled code runs."""
        self._change_listening_calls(0)

    def _change_listening_calls(self, count: int) -> None:
        with self._lock:
            self.listening_calls += count
            if self.listening_calls and not self.off_for_compiled_code:
                self._patches.install()
            else:
                self._patches.remove()

    def outermost_call(self) -> OutermostCall | None:
        """Return the outermost call of a module that runs in this thread, or did last."""
        call: OutermostCall | None = getattr(self._calls, "outermost", None)
        return call

    def _stack(self) -> list[_ModuleCall]:
        """Return the calls that `enter` noted in this thread, the innermost last."""
        if not hasattr(self._calls, "stack"):
            self._calls.stack = []
        stack: list[_ModuleCall] = self._calls.stack
        return stack


def _mode_decides(layer: nn.Module) -> bool:
    """Tell whether a layer's flags already determine what it does, so that no wrapper is needed."""
    hooked = (
        layer._forward_pre_hooks
        or layer._forward_hooks
        or private_api.global_forward_pre_hooks
        or private_api.global_forward_hooks
    )
    return not hooked and has_known_forward(layer)


def _shares_memory(values: object, layer: nn.Module) -> bool:
    """Tell whether values are a layer's own tensor, as weight standardisation normalises it."""
    if not isinstance(values, Tensor):
        return False
    with private_api.DisableTorchFunction():
        start = values.untyped_storage().data_ptr()
        return any(t.untyped_storage().data_ptr() == start for _, _, t in own_tensors(layer))


def _tell_before_layer(layer: nn.Module, x: Tensor | None) -> list[AfterForward]:
    after = [observer.before_layer(layer, x) for observer in observer_api.observers_here()]
    return [each for each in after if each is not None]


def _marks(layer: nn.Module) -> list[object]:
    """Return identity and version of each statistic, which change if it is written or replaced.

    Some kernels write without moving the version, which is why torch's functions are wrapped.
    """
    values = [getattr(layer, name, None) for name in STATISTICS]
    with private_api.DisableTorchFunction():
        return [(id(each), version(each) if isinstance(each, Tensor) else None) for each in values]


def _tell_by_mode(layer: nn.Module, x: Tensor | None, *, failed: bool, wrote: bool) -> None:
    """Tell observers what a layer did that called none of torch's functions to normalise.

    Args:
        layer: the layer.
        x: the first tensor that it was called with.
        failed: whether it raised before it normalised, as torch's checks of an input do.
        wrote: whether it is known to have written its statistics.
    """
    if has_known_forward(layer):
        if uses_batch_statistics(layer):
            _tell_batch_statistics(layer, "failed" if failed else "batches", x)
    elif layer.training or wrote:
        _tell_batch_statistics(layer, "own_forwards")


def _tell_own_forward(layer: nn.Module, x: Tensor | None, output: object) -> None:
    for observer in observer_api.observers_here():
        observer.saw_own_forward(layer, x, output)


def _tell_batch_statistics(
    layer: nn.Module, kind: ForwardKind, values: Tensor | None = None
) -> None:
    for observer in observer_api.observers_here():
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
    """Return a maker of wrappers around one of torch's functions.

    Args:
        name: the function's name.
        flag: the name of its argument that says whether it uses batch statistics.
    """

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
