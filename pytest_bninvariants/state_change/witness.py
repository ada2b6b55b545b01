"""Watch one model during one step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.optim import Optimizer

from pytest_bninvariants.instrumentation.installation import Watcher
from pytest_bninvariants.instrumentation.observer_api import AfterCall, ForwardKind
from pytest_bninvariants.instrumentation.optimizers import held_by
from pytest_bninvariants.instrumentation.own_loads import OwnLoads
from pytest_bninvariants.instrumentation.unregistered_layers import UnregisteredLayers
from pytest_bninvariants.selection.bn_layers import is_compiled
from pytest_bninvariants.selection.own_forward import OwnForward, own_forward_of
from pytest_bninvariants.selection.selection_plan import Selection
from pytest_bninvariants.selection.walk import join
from pytest_bninvariants.state_change.layer_activity import ActivityRecorder, LayerActivity
from pytest_bninvariants.state_change.outside_modules import OutsideModules
from pytest_bninvariants.state_change.run_detector import RunDetector
from pytest_bninvariants.state_change.tensor_history import OperationLog
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo
from pytest_bninvariants.torch_internals.private_api import has_engine


class Witness(Watcher):
    """Pass what torch does on to recorders, which are read after the step.

    Args:
        model: the model.
        selection: what is watched in it.
    """

    def __init__(self, model: nn.Module, selection: Selection) -> None:
        self.model = model
        modules = {id(module): module for module in selection.names.modules.values()}
        kinds = set(map(type, modules.values()))
        scripts = {kind for kind in kinds if issubclass(kind, ScriptModule)}
        scripted = {key for key, m in modules.items() if type(m) in scripts} if scripts else set()
        watched = selection.tensors.tensors
        self._scripted = scripted
        self.layers = ActivityRecorder(selection, scripted)
        self.operations = OperationLog(watched)
        self.own_loads = OwnLoads(watched)
        self.outside = OutsideModules(set(modules), watched)
        self.unregistered = UnregisteredLayers(model)
        self.runs = RunDetector(model, selection, scripted, self.outside)
        self.stepped_parameters: set[int] = set()
        """Ids of the parameters of all optimizers that stepped."""
        self.backward_ran = not has_engine
        """Whether a backward pass ran that may have left gradients."""
        self._called_in_training: set[int] = set()
        self._called_in_eval: set[int] = set()

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Ignore no call."""
        return False

    def saw_forward(self, module: nn.Module) -> None:
        """Note that a module is about to run."""
        (self._called_in_training if module.training else self._called_in_eval).add(id(module))
        self.outside.saw_forward(module)
        if not self.runs.forward_ran:
            self.runs.saw_forward(module)
        if is_compiled(module):
            self.layers.saw_compiled_module(module)
        if id(module) in self._scripted:
            self.layers.saw_scripted_module(module)

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Note that a BN layer normalises a batch with batch statistics."""
        self.layers.saw_batch_statistics(layer, kind)
        self.unregistered.saw_batch_statistics(layer)

    def saw_own_forward(self, layer: nn.Module, x: Tensor | None, output: object) -> None:
        """Note that a BN layer ran, which told nothing but its output."""
        self.layers.saw_own_forward(layer, x, output)

    def saw_call(
        self,
        name: str,
        state: tuple[Tensor, ...],
        values: Tensor | None,
        frame: FrameType,
        *,
        batch: bool,
    ) -> None:
        """Note that other code normalised with a layer's tensors, as if it were the layer."""
        for layer in self.layers.layers_with(state):
            self.runs.forward_ran = True
            if batch:
                self.layers.saw_call(layer, name, frame)

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Note that a module is about to be put in training mode."""
        if training:
            self.layers.saw_training_set(module, frame)

    def saw_requires_grad_set(self, tensor: Tensor, requires: bool, frame: FrameType) -> None:
        """Note that a parameter's requires_grad is about to be switched on."""
        if requires and not tensor.requires_grad:
            self.operations.saw_switched_on(tensor, frame)

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Note that an optimizer is about to step."""
        held = held_by(optimizer)
        self.stepped_parameters |= held
        self.runs.saw_step(held)
        return self.operations.before_step(optimizer, frame, closure=closure)

    def saw_backward(self, returned: Mapping[int, Tensor]) -> None:
        """Note that a backward pass ran."""
        self.backward_ran = True

    def before_load(
        self, module: nn.Module, state: Mapping[str, Any], frame: FrameType | None
    ) -> AfterCall | None:
        """Note that a module is about to load a state_dict."""
        self.own_loads.saw_load(module, state, frame)
        return self.operations.before_load(module, frame)

    def before_tensor_load(
        self, name: str, tensors: list[Tensor], frame: FrameType | None
    ) -> AfterCall | None:
        """Note that a checkpoint is about to be read into tensors."""
        return self.operations.before_tensor_load(name, tensors, frame)

    def before_collective(
        self, name: str, tensors: list[Tensor], frame: FrameType | None
    ) -> AfterCall | None:
        """Note that a collective is about to write to tensors."""
        return self.operations.before_collective(name, tensors, frame)

    def saw_compiled_code(self) -> None:
        """Note that compiled code runs, whose forwards are not seen."""
        self.runs.compiled_code_ran = True
        self.layers.saw_compiled_code(sys._getframe(1))

    def saw_graph_replay(self, frame: FrameType) -> None:
        """Note that a device graph is replayed, whose forwards are not seen."""
        self.runs.compiled_code_ran = self.runs.graph_replayed = True
        self.layers.saw_graph_replay(frame)

    def saw_captured_module(self, module: nn.Module) -> None:
        """Note that a module is captured, to run in replays."""
        self.layers.saw_captured_module(module)

    def was_called(self, module: nn.Module | None) -> bool:
        """Tell whether a module was called in eager code."""
        return id(module) in self._called_in_training or id(module) in self._called_in_eval

    def own_forward_of(self, module: nn.Module | None) -> OwnForward | None:
        """Return what a module's own forward may have written, if it was called in eager code."""
        if module is None or not self.was_called(module):
            return None
        return own_forward_of(module, in_training=id(module) in self._called_in_training)

    def used_batch_statistics(self, activity: LayerActivity) -> bool:
        """Tell whether a layer used batch statistics; in compiled code, its mode decides."""
        seen = activity.batches > 0 or "batch" in activity.outputs.values()
        return seen or activity.in_compiled_code

    def may_have_used_batch_statistics_unseen(
        self, layer: nn.Module, activity: LayerActivity
    ) -> bool:
        """Tell whether a layer, as its mode says, used batch statistics if it ran unseen.

        If it was called in eager code, it was seen, whatever compiled code ran beside it.
        """
        return activity.beside_compiled_code and not self.was_called(layer)

    def counted_a_batch(self, key: str) -> bool:
        """Tell whether a layer's counter is known to have been written, even if it was put back."""
        return self.runs.was_written(join(key, "num_batches_tracked"))
