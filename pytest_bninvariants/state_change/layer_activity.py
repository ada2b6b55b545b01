"""Record what each watched BN layer did during a step."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import FrameType

from torch import Tensor, nn

from pytest_bninvariants.batchnorm.statistics_used import StatisticsUsed, statistics_used
from pytest_bninvariants.frames import place_of
from pytest_bninvariants.instrumentation.call_sites import ModeHistory, place_of_outermost_call
from pytest_bninvariants.instrumentation.module_map import ModuleMap
from pytest_bninvariants.instrumentation.observer_api import ForwardKind
from pytest_bninvariants.selection.bn_layers import (
    BN_STATE,
    STATISTICS,
    has_known_forward,
    has_stored_statistics,
    holds_weight_as_buffer,
    is_bn_layer,
    uses_batch_statistics,
)
from pytest_bninvariants.selection.selection_plan import Selection
from pytest_bninvariants.selection.walk import join, named_modules
from pytest_bninvariants.snapshot.addresses import address, group_by_address, share_memory
from pytest_bninvariants.state_change.compiled_reach import CompiledReach
from pytest_bninvariants.torch_internals.private_api import NormBase, current_graph_task_id
from pytest_bninvariants.torch_internals.scripted import BakedIn, baked_in
from pytest_bninvariants.verdict import Place


def _flags_say_batch(layer: nn.Module) -> bool:
    """Tell whether a layer's flags say that it uses batch statistics, if its forward obeys them."""
    return isinstance(layer, NormBase) and uses_batch_statistics(layer)


@dataclass(slots=True)
class LayerActivity(ModeHistory):
    """What was seen of one BN layer.

    Args:
        batches: forwards that normalised with batch statistics.
        failed: forwards in training mode that raised.
        own_forwards: forwards of a user's own code that called none of torch's functions, in
            training mode or with a write to the statistics.
        in_compiled_code: whether a compiled module that contains it ran, unseen inside, while its
            mode said to use batch statistics.
        beside_compiled_code: whether compiled code that can reach it, or a device graph, ran while
            its mode said so.
        in_graph: whether a device graph was captured or replayed while its mode said so.
        in_eval: how many of `batches` and `own_forwards` happened while its mode was eval.
        by_others: how many of `batches` other code normalised, updating its statistics.
        function: the function of torch that this code called.
        without_statistics: how many of `batches` it normalised in eval, for it had no statistics.
        shared_with: a layer that normalised batches and whose statistics share its memory.
        shared_outside: whether that layer is outside the model.
        shared: the names of the statistics that share it.
        shared_at: the line of the outermost call that led to that.
        recomputed: how many of `batches` it normalised inside a backward.
        ran_at: the line of the outermost call that led to its first such forward.
        outputs: by mode, what the first output of its own forward tells that it normalised with.
    """

    batches: int = 0
    failed: int = 0
    own_forwards: int = 0
    in_compiled_code: bool = False
    beside_compiled_code: bool = False
    in_graph: bool = False
    in_eval: int = 0
    by_others: int = 0
    function: str = ""
    without_statistics: int = 0
    shared_with: str = ""
    shared_outside: bool = False
    shared: tuple[str, ...] = ()
    shared_at: Place | None = None
    recomputed: int = 0
    ran_at: Place | None = None
    outputs: dict[bool, StatisticsUsed] = field(default_factory=dict)

    def count(self, kind: ForwardKind, *, in_eval: bool) -> None:
        """Count a forward, or a call of a function that stands in for one."""
        if kind == "failed":
            self.failed += 1
            return
        if in_eval:
            self.in_eval += 1
        if kind == "own_forwards":
            self.own_forwards += 1
            return
        self.batches += 1
        if current_graph_task_id() != -1:  # autograd is running a backward
            self.recomputed += 1

    @property
    def may_have_run_unseen(self) -> bool:
        """Tell whether compiled code or a device graph may have normalised more batches."""
        return self.in_compiled_code or self.beside_compiled_code

    @property
    def normalised(self) -> bool:
        """Tell whether it may have normalised with batch statistics, which explains a change."""
        return bool(self.batches or self.failed or self.may_have_run_unseen)


_IDLE = LayerActivity()


def _state_of(key: str, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the statistics of the layer with a key, or else its weight."""
    found = [tensors[each] for name in STATISTICS if (each := join(key, name)) in tensors]
    weight = join(key, "weight")
    return found or ([tensors[weight]] if weight in tensors else [])


def _has(layer: nn.Module, state: tuple[Tensor, ...]) -> bool:
    """Tell whether a layer's statistics, or else weight, are this memory now."""
    names = STATISTICS if len(state) == len(STATISTICS) else ("weight",)
    own = [getattr(layer, name, None) for name in names]
    pairs = zip(own, state, strict=True)
    return all(isinstance(mine, Tensor) and share_memory(mine, each) for mine, each in pairs)


class ActivityRecorder:
    """Record what the watched BN layers of a model do.

    Args:
        selection: what is watched.
        scripted: ids of the model's scripted modules.
    """

    def __init__(self, selection: Selection, scripted: set[int]) -> None:
        self._selection = selection
        self._watched = {id(module) for module in selection.modules.values()}
        self._began_in_training = {id(m) for m in selection.modules.values() if m.training}
        self._scripted = {id(m) for m in self._bn_layers if id(m) in scripted} if scripted else {}
        self._baked_in: dict[int, BakedIn | None] = {}
        """By id of a scripted layer: what its code always normalises with."""
        self._activities: ModuleMap[LayerActivity] = ModuleMap()
        self._reach = CompiledReach()
        self._captured: set[int] = set()
        """Ids of layers that a device graph recorded while their mode said so."""
        self.saw_own_outputs = False
        """Whether the output of any layer's own forward was looked at."""

    @cached_property
    def _bn_layers(self) -> list[nn.Module]:
        """Return the watched BN layers."""
        return [module for module in self._selection.modules.values() if is_bn_layer(module)]

    def activity_of(self, module: nn.Module | None) -> LayerActivity:
        """Return what was seen of a module."""
        return self._activities.get(module) or _IDLE

    def activity_under_name(self, old: nn.Module | None, new: nn.Module | None) -> LayerActivity:
        """Return what was seen of a layer, from the one of two modules with its name that ran.

        Args:
            old: the module that held the name before the step.
            new: the module that holds it now.
        """
        old_activity = self.activity_of(old)
        if new is old:
            return old_activity
        new_activity = self.activity_of(new)
        new_ran = new_activity.normalised and not old_activity.normalised
        return new_activity if old is None or new_ran else old_activity

    def began_in_training(self, module: nn.Module | None) -> bool:
        """Tell whether a watched module was in training mode when the step began."""
        return id(module) in self._began_in_training

    def saw_compiled_module(self, module: nn.Module) -> None:
        """Note which layers may run unseen inside a compiled module that is about to run."""
        for _, layer in named_modules(module):
            if id(layer) in self._watched and _flags_say_batch(layer):
                self._entry(layer).in_compiled_code = True

    def saw_scripted_module(self, module: nn.Module) -> None:
        """Note which layers run unseen inside a scripted module that is about to run."""
        for _, layer in named_modules(module):
            if id(layer) in self._scripted:
                self._entry(layer).in_compiled_code |= self._script_uses_batch(layer)

    def _script_uses_batch(self, layer: nn.Module) -> bool:
        known = self._baked_in.get(id(layer), "")
        if known == "":
            known = self._baked_in[id(layer)] = baked_in(layer)
        by_flags = layer.training or not has_stored_statistics(layer)
        return by_flags if known is None else known == "batch"

    def saw_compiled_code(self, frame: FrameType) -> None:
        """Note which layers may run in compiled code that a frame is about to run."""
        layers = [layer for layer in self._bn_layers if _flags_say_batch(layer)]
        reached = self._reach.modules_from(frame) if layers else set()
        for layer in layers:
            if reached is None or id(layer) in reached:
                self._entry(layer).beside_compiled_code = True

    def saw_captured_module(self, module: nn.Module) -> None:
        """Note a layer that is captured in a device graph, to run unseen in replays."""
        if id(module) in self._watched and _flags_say_batch(module):
            self._captured.add(id(module))

    def saw_graph_replay(self, frame: FrameType) -> None:
        """Note which layers a device graph that a frame replays may have normalised with.

        They are those that were captured since the guard began, in the modes that they had then,
        and those that may be in an older graph: what that reaches cannot be seen, unless compiled
        code replays it. A graph that is replayed in backward holds a backward pass.
        """
        if current_graph_task_id() != -1:
            return
        reached = self._reach.modules_from(frame) or None
        for layer in self._bn_layers:
            may_be_reached = reached is None or id(layer) in reached
            if id(layer) in self._captured:
                self._entry(layer).in_compiled_code = self._entry(layer).in_graph = True
            elif may_be_reached and _flags_say_batch(layer):
                self._entry(layer).beside_compiled_code = self._entry(layer).in_graph = True

    def saw_batch_statistics(self, layer: nn.Module, kind: ForwardKind) -> None:
        """Note that a BN layer normalises a batch with batch statistics."""
        activity = self._entry(layer)
        self._note_shared_memory(layer, sys._getframe(1))
        if activity.ran_at is None and id(layer) in self._watched:
            activity.ran_at = place_of_outermost_call(sys._getframe(1))
        if kind == "batches" and not layer.training and has_known_forward(layer):
            activity.without_statistics += 1
        activity.count(kind, in_eval=not layer.training)

    def saw_own_forward(self, layer: nn.Module, x: Tensor | None, output: object) -> None:
        """Find out what a layer's own forward used, once in each mode: it takes some operators."""
        if id(layer) not in self._watched:
            return
        self.saw_own_outputs = True
        outputs, training = self._entry(layer).outputs, layer.training
        if training not in outputs:
            outputs[training] = statistics_used(layer, x, output)
        if outputs[training] == "batch" and not training:
            self.saw_batch_statistics(layer, "batches")
        elif training and (outputs[training] == "stored" or holds_weight_as_buffer(layer)):
            self._entry(layer).own_forwards -= 1  # this one, which wrote no statistics either

    def saw_call(self, layer: nn.Module, function: str, frame: FrameType) -> None:
        """Note that other code normalised a batch with a layer's tensors.

        Args:
            layer: the layer.
            function: the function of torch that the code called.
            frame: the frame that called it.
        """
        activity = self._entry(layer)
        place = place_of(frame, f"{function}()")  # through torch.nn.functional, if at all
        activity.ran_at = activity.ran_at or (place and replace(place, tool=None))
        activity.by_others += 1
        activity.function = function
        self._note_shared_memory(layer, frame)
        activity.count("batches", in_eval=not layer.training)

    def saw_training_set(self, module: nn.Module, frame: FrameType) -> None:
        """Note that a frame is about to put a module in training mode."""
        if id(module) not in self._watched or not is_bn_layer(module):
            return
        activity = self._entry(module)
        if activity.normalised or activity.own_forwards:
            return  # only what led to the first batch matters
        restores = self.began_in_training(module) and frame.f_code.co_name != "train"
        activity.saw_training_set(module, frame, restores=restores)

    def layers_with(self, state: tuple[Tensor, ...]) -> list[nn.Module]:
        """Return the watched BN layers whose statistics, or else weight, are this memory.

        If none had it before the step, `functional_call` may have given it to some for a while.
        """
        had = self._by_state.get(tuple(map(address, state)), [])
        return had or [each for each in dict.fromkeys(self._bn_layers) if _has(each, state)]

    @cached_property
    def _by_state(self) -> dict[tuple[int, ...], list[nn.Module]]:
        """Return the watched BN layers by the addresses of the state that they had before."""
        tensors, layers = self._selection.names.tensors.by_key, defaultdict(list)
        keys = {layer: key for key, layer in self._selection.modules.items() if is_bn_layer(layer)}
        for layer, key in keys.items():
            at = tuple(map(address, _state_of(key, tensors)))
            if at and all(at):
                layers[at].append(layer)
        return layers

    @cached_property
    def _by_statistic(self) -> dict[str, dict[int, list[nn.Module]]]:
        """Return, by a statistic's name, the watched BN layers by its address before the step."""
        tensors = self._selection.names.tensors.by_key
        layers = [(key, m) for key, m in self._selection.modules.items() if is_bn_layer(m)]
        return {
            name: group_by_address((tensors.get(join(key, name)), m) for key, m in layers)
            for name in BN_STATE
        }

    def _note_shared_memory(self, layer: nn.Module, frame: FrameType) -> None:
        """Note which watched layers share the statistics that another layer updates."""
        for name in BN_STATE:
            statistic = getattr(layer, name, None)
            for watched in self._layers_with(name, statistic):
                activity = self._entry(watched)
                if watched is layer or name in activity.shared:
                    continue
                activity.shared += (name,)
                if activity.shared_at is None:
                    activity.shared_at = place_of_outermost_call(frame)
                    activity.shared_with, activity.shared_outside = self._describe(layer)

    def _layers_with(self, name: str, statistic: object) -> list[nn.Module]:
        """Return the watched BN layers whose statistic of this name had this memory before."""
        start = address(statistic) if isinstance(statistic, Tensor) else 0
        return self._by_statistic[name].get(start, [])

    def _describe(self, layer: nn.Module) -> tuple[str, bool]:
        """Return a layer's name for use in a sentence, and whether it is outside the model."""
        for name, module in self._selection.names.modules.items():
            if module is layer:
                return name, False
        return f"a {type(layer).__name__} outside the model", True

    def _entry(self, module: nn.Module) -> LayerActivity:
        """Return the activity of a module, to add to it."""
        activity = self._activities.get(module)
        if activity is None:
            activity = LayerActivity()
            self._activities.add(module, activity)
        return activity
