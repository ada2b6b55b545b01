"""Keep what was seen of one model during one step."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from types import FrameType

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from pytest_bninvariants.frames import place_of
from pytest_bninvariants.instrumentation import installation
from pytest_bninvariants.instrumentation.call_sites import ModeHistory, place_of_outermost_call
from pytest_bninvariants.instrumentation.installation import Watcher
from pytest_bninvariants.instrumentation.observer_api import Finish, How
from pytest_bninvariants.instrumentation.optimizers import held_by
from pytest_bninvariants.selection.bn_layers import (
    has_known_forward,
    is_bn_layer,
    is_compiled,
    uses_batch_statistics,
)
from pytest_bninvariants.selection.model_names import (
    ModelNames,
    ModelTree,
    all_tensors,
    join,
    named_modules,
    own_tensors,
)
from pytest_bninvariants.selection.selection_plan import Selection
from pytest_bninvariants.snapshot.addresses import address, addresses, group_by_address
from pytest_bninvariants.snapshot.tensor_bytes import version
from pytest_bninvariants.state_change.tensor_history import OperationLog, TensorHistory
from pytest_bninvariants.torch_internals.dynamo import passed_over
from pytest_bninvariants.verdict import Place


@dataclass(slots=True)
class LayerActivity(ModeHistory):
    """What a witness saw of one BN layer.

    Args:
        batches: forwards that normalised with batch statistics.
        failed: forwards in training mode that raised.
        own_forwards: forwards in training mode, or that wrote statistics, by code of a user's own
            that called no such function of torch.
        in_compiled_code: whether a compiled module above it ran while its mode said to use them;
            the forward itself cannot be seen then.
        beside_compiled_code: whether any compiled code ran while its mode said so.
        in_eval: how many of `batches` and `own_forwards` there were while its mode was eval.
        by_others: how many of `batches` others normalised with its statistics, and updated them.
        function: which function they called.
        lacking: how many of `batches` it normalised in eval for want of running statistics.
        shared_with: the layer that normalised batches and whose statistics are the same memory.
        recomputed: how many of `batches` it normalised inside of a backward.
        ran_at: where the outermost call was made that led to its first such forward.
    """

    batches: int = 0
    failed: int = 0
    own_forwards: int = 0
    in_compiled_code: bool = False
    beside_compiled_code: bool = False
    in_eval: int = 0
    by_others: int = 0
    function: str = ""
    lacking: int = 0
    shared_with: str = ""
    recomputed: int = 0
    ran_at: Place | None = None

    def count(self, how: How, *, in_eval: bool) -> None:
        """Count a forward, or a call in place of one."""
        setattr(self, how, getattr(self, how) + 1)
        self.in_eval += in_eval and how != "failed"
        self.recomputed += how == "batches" and torch._C._current_graph_task_id() != -1

    @property
    def normalised(self) -> bool:
        """Tell whether it may have normalised with batch statistics: enough for an explanation."""
        return bool(
            self.batches or self.failed or self.in_compiled_code or self.beside_compiled_code
        )


_UNSEEN = LayerActivity()
_TELLING = ("running_mean", "weight")


class ActivityByModule:
    """What was seen of modules, as long as they live; modules may define equality as they like."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[nn.Module], LayerActivity]] = {}

    def get(self, module: nn.Module | None) -> LayerActivity | None:
        """Return what was seen of a module."""
        return self._seen[id(module)][1] if id(module) in self._seen else None

    def of(self, module: nn.Module) -> LayerActivity:
        """Return what was seen of a module, to be added to."""
        key, seen = id(module), self._seen
        if key not in seen:
            seen[key] = weakref.ref(module, lambda _: seen.pop(key, None) and None), LayerActivity()
        return seen[key][1]


class Witness(Watcher):
    """Watch one model during one step; `seen` and `ran` are read afterwards.

    Args:
        model: the model.
        selection: what is watched in it.
    """

    def __init__(self, model: nn.Module, selection: Selection) -> None:
        self._model = model
        self._selection = selection
        names = selection.names
        self._watched = {id(module) for module in selection.modules.values()}
        others = self._watched.difference(map(id, selection.bn_layers.values()))
        plain = {
            id(m) for m in selection.modules.values() if id(m) in others and not is_bn_layer(m)
        }
        modules = {id(module): module for module in names.modules.values()}
        self._runs = self._watched | _parents(modules.values(), plain)
        scripts = {k for k in set(map(type, modules.values())) if issubclass(k, ScriptModule)}
        scripted = {key for key, m in modules.items() if type(m) in scripts} if scripts else set()
        self._idle = modules.keys() - self._runs - scripted
        self._scripted_layers = (
            [m for m in self._bn_layers if id(m) in scripted] if scripted else []
        )
        watched = selection.tensors.tensors
        self._versions = _versions(names)
        self._operations = OperationLog(watched)
        self._ran: set[int] = set()
        self._strangers = OutsideModules(set(modules), watched)
        self._forward_seen = False
        self._optimizer_seen = False
        self.stepped_for: set[int] = set()
        self._compiled_seen = not installation.sees_compiled_code()
        self._began_in_training = {id(m) for m in selection.modules.values() if m.training}
        self._seen = ActivityByModule()

    @cached_property
    def _bn_layers(self) -> list[nn.Module]:
        """Return the watched BN layers."""
        return [module for module in self._selection.modules.values() if is_bn_layer(module)]

    def began_in_training(self, module: nn.Module | None) -> bool:
        """Tell a watched module's mode when the step began."""
        return id(module) in self._began_in_training

    def ran(self) -> bool:
        """Tell whether anything ran that could have changed what is watched, as far as seen."""
        return (
            self._forward_seen
            or self._optimizer_seen
            or self._compiled_seen
            or not ModelTree(self._model).is_like(self._selection.tree)
            or _versions(self._selection.names) != self._versions
        )

    @passed_over
    def ignores(self, module: nn.Module) -> bool:
        """Hear of every call."""
        return False

    def saw_forward(self, module: nn.Module) -> None:
        """Note that a module is about to run."""
        self._ran.add(id(module))
        self._strangers.saw(module)
        if not self._forward_seen and id(module) not in self._idle:
            self._forward_seen = (
                id(module) in self._runs
                or any(id(below) in self._watched for _, below in named_modules(module))
                or any(address(tensor) in self._strangers.memory for tensor in all_tensors(module))
            )
        if is_compiled(module):
            for _, layer in named_modules(module):
                if id(layer) in self._watched and has_known_forward(layer):
                    self._seen.of(layer).in_compiled_code |= uses_batch_statistics(layer)
        for layer in self._scripted_layers:
            self._seen.of(layer).in_compiled_code |= layer.training

    def saw_batch_statistics(self, layer: nn.Module, how: How, values: Tensor | None) -> None:
        """Note that a BN layer normalises a batch with batch statistics."""
        seen = self._seen.of(layer)
        if id(layer) not in self._watched:
            self._tell_those_it_shares_with(layer)
        elif seen.ran_at is None:
            seen.ran_at = place_of_outermost_call(sys._getframe(1))
        seen.lacking += how == "batches" and not layer.training and has_known_forward(layer)
        seen.count(how, in_eval=not layer.training)

    def saw_call(
        self, name: str, state: Tensor, values: Tensor | None, frame: FrameType, *, batch: bool
    ) -> None:
        """Note that somebody normalised with a layer's tensors, as if they were the layer."""
        for layer in self._by_state.get(address(state), ()):
            self._forward_seen = True
            if batch:
                seen = self._seen.of(layer)
                place = place_of(frame, f"{name}()")  # through torch.nn.functional, if at all
                seen.ran_at = seen.ran_at or (place and replace(place, tool=None))
                seen.by_others += 1
                seen.function = name
                seen.count("batches", in_eval=not layer.training)

    @cached_property
    def _by_state(self) -> dict[int, list[nn.Module]]:
        """Return the watched BN layers by where their running means lie, or else their weights.

        Those that they had when the step began: meanwhile functional_call may lend them others.
        """
        held, found = self._selection.names.tensors.by_key, []
        for key, layer in self._selection.modules.items():
            if is_bn_layer(layer):
                names = (join(key, name) for name in _TELLING)
                found.append((next((held[name] for name in names if name in held), None), layer))
        return group_by_address(found)

    def _tell_those_it_shares_with(self, layer: nn.Module) -> None:
        """Note of which watched layers a layer that is not watched updates the statistics."""
        mean = getattr(layer, "running_mean", None)
        at = address(mean) if isinstance(mean, Tensor) else 0
        for watched in self._by_state.get(at, ()):
            seen = self._seen.of(watched)
            if not seen.shared_with:
                named = self._selection.names.modules.items()
                names = (name for name, module in named if module is layer)
                seen.shared_with = next(names, f"a {type(layer).__name__} outside of the model")
                seen.ran_at = seen.ran_at or place_of_outermost_call(sys._getframe(2))

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Note that a module is being put in training mode."""
        if not training or id(module) not in self._watched or not is_bn_layer(module):
            return
        seen = self._seen.of(module)
        if seen.normalised or seen.own_forwards:
            return  # what led to the first batch is what counts
        restores = id(module) in self._began_in_training and frame.f_code.co_name != "train"
        seen.saw_training_set(module, frame, restores=restores)

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> Finish | None:
        """Note that an optimizer is about to step."""
        held = held_by(optimizer)
        self.stepped_for |= held
        if not self._optimizer_seen:
            mine = {id(tensor) for tensor in all_tensors(self._model)}
            mine |= set(map(id, self._selection.tensors.tensors))
            self._optimizer_seen = bool(held & mine)
        return self._operations.before_step(optimizer, frame, closure=closure)

    def before_load(self, module: nn.Module, frame: FrameType | None) -> Finish | None:
        """Note that a module is about to load a state."""
        return self._operations.before_load(module, frame)

    def before_collective(
        self, name: str, tensors: list[Tensor], frame: FrameType | None
    ) -> Finish | None:
        """Note that processes are about to exchange tensors."""
        return self._operations.before_collective(name, tensors, frame)

    def saw_compiled_code(self) -> None:
        """Note that compiled code runs, in which forwards are unseen."""
        self._compiled_seen = True
        for layer in self._bn_layers:
            if isinstance(layer, _NormBase) and uses_batch_statistics(layer):
                self._seen.of(layer).beside_compiled_code = True

    def seen_of(self, module: nn.Module | None) -> LayerActivity:
        """Return what was seen of a module."""
        return self._seen.get(module) or _UNSEEN

    @property
    def saw_use(self) -> bool:
        """Tell whether anything ran that may have used what is watched."""
        return self._forward_seen or self._compiled_seen

    @property
    def saw_optimizer(self) -> bool:
        """Tell whether an optimizer stepped that holds parameters of the model."""
        return self._optimizer_seen

    @property
    def handled(self) -> bool:
        """Tell whether any operation was given a watched tensor."""
        return self._operations.touched

    def done_to(self, tensor: Tensor) -> TensorHistory:
        """Return what operations did to a watched tensor."""
        return self._operations.of(tensor)

    def ran_module(self, module: nn.Module | None) -> bool:
        """Tell whether a module of the model was called, in eager code."""
        return id(module) in self._ran

    def stranger(self, tensor: Tensor) -> Place | None:
        """Tell of a module outside of the model that holds a tensor's memory and ran."""
        return self._strangers.ran_at.get(address(tensor))

    @property
    def saw_compiled(self) -> bool:
        """Tell whether code ran that nobody can see into."""
        return self._compiled_seen

    def used_batch_statistics(self, seen: LayerActivity) -> bool:
        """Tell whether a layer did normalise with batch statistics, as far as its mode tells."""
        all_compiled = seen.beside_compiled_code and not self._forward_seen
        return seen.batches > 0 or seen.in_compiled_code or all_compiled


class OutsideModules:
    """Modules outside of a model that hold memory of its tensors, as traced and exported ones do.

    Args:
        modules: ids of the model's own modules.
        tensors: the model's watched tensors.
    """

    def __init__(self, modules: set[int], tensors: list[Tensor]) -> None:
        self._modules = modules
        self._tensors = tensors
        self._known: dict[int, weakref.ref[nn.Module]] = {}
        self.ran_at: dict[int, Place] = {}

    @cached_property
    def memory(self) -> set[int]:
        """Return where the tensors lie."""
        return addresses(self._tensors)

    def saw(self, module: nn.Module) -> None:
        """Look at a module that is about to run, once."""
        key, known = id(module), self._known
        if key in self._modules or key in known:
            return
        known[key] = weakref.ref(module, lambda _: known.pop(key, None) and None)
        parts = [m for _, m in named_modules(module) if id(m) not in self._modules]
        held = addresses(tensor for part in parts for _, _, tensor in own_tensors(part))
        place = place_of_outermost_call(sys._getframe(1))
        if place is not None:
            self.ran_at = dict.fromkeys(held & self.memory, place) | self.ran_at


def _versions(names: ModelNames) -> list[int | None]:
    """Return what mostly moves when a tensor is written: evidence of presence, not of absence."""
    tensors = names.tensors.tensors
    with torch._C.DisableTorchFunction():  # lazy parameters refuse to be asked otherwise
        try:
            return [tensor._version for tensor in tensors]
        except RuntimeError:  # those made in inference mode have none
            return list(map(version, tensors))


def _parents(modules: Iterable[nn.Module], plain: set[int]) -> set[int]:
    """Return the parents of watched modules that are no BN layers: they may use a child's tensors
    without calling it, as `MultiheadAttention` does with its `out_proj`.
    """
    if not plain:
        return set()
    return {
        id(parent)
        for parent in modules
        if parent._modules and not plain.isdisjoint(map(id, parent._modules.values()))
    }
