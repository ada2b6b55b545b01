"""Watch all models at once, and find the frozen BN layers whose statistics move.

Here no test says what is frozen, so the model decides: a BN layer is frozen while none of its
parameters requires a gradient. If it has no parameters, those of the innermost module around it
that has some decide. A layer that only runs under no_grad, and that no optimizer holds, counts as
frozen, too. An auditor keeps the state of such a layer before its first forward, and compares it
when the layer is no longer frozen, or at the end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants.audit.audited_layers import (
    AuditedLayer,
    AuditedLayers,
    layers_in,
)
from pytest_bninvariants.audit.averaging_check import FrozenParameters
from pytest_bninvariants.audit.call_context import (
    CallContext,
    call_context_of,
    running_modules,
)
from pytest_bninvariants.audit.end_state import not_finite, recomputed
from pytest_bninvariants.audit.findings.finding import AuditFinding
from pytest_bninvariants.audit.findings.finding_log import FindingLog, RuleVerdict
from pytest_bninvariants.audit.frozen_period import (
    FrozenPeriod,
    Stay,
    begin_frozen_period,
)
from pytest_bninvariants.audit.judging import leak_of, stuck_layer
from pytest_bninvariants.audit.layer_places import LayerPlaces
from pytest_bninvariants.audit.unheld_layers import UnheldLayers
from pytest_bninvariants.audit_rules import AUDIT_RULES, DEFAULT_CHOICE
from pytest_bninvariants.instrumentation import installation, observer_api
from pytest_bninvariants.instrumentation.module_map import ModuleMap
from pytest_bninvariants.instrumentation.observer_api import (
    AfterCall,
    ForwardKind,
    Observer,
    combined,
)
from pytest_bninvariants.instrumentation.optimizers import has_gradients, held_by
from pytest_bninvariants.selection.bn_layers import (
    has_known_forward,
    has_stored_statistics,
    is_compiled,
    uses_batch_statistics,
)
from pytest_bninvariants.selection.walk import all_parameters, named_modules, registered
from pytest_bninvariants.snapshot.addresses import addresses
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo
from pytest_bninvariants.torch_internals.isolation import in_transform
from pytest_bninvariants.torch_internals.private_api import (
    DisableTorchFunction,
    count_function_modes,
    current_graph_task_id,
)

_FROZEN = AUDIT_RULES["frozen-moved"].noun


class Auditor(Observer):
    """Watch every BN layer that runs, from `start` to `stop`.

    Args:
        rules: the names of the rules to go by.
        is_expected: tells whether a finding is expected, by its id; it is then left out.
        held: returns the ids of the parameters that optimizers from before `start` hold.

    Attributes:
        ran: how many BN layers have run.
        layers: how many of them have run in training mode.
        frozen: how many of these were frozen then.
        expected: the ids of the expected findings that were made.
    """

    def __init__(
        self,
        rules: Collection[str] = DEFAULT_CHOICE.all,
        is_expected: Callable[[str], bool] = lambda _: False,
        held: Callable[[], set[int]] = set,
    ) -> None:
        self.ran = self.layers = self.frozen = 0
        self.expected: dict[str, None] = {}
        self._rules = rules
        self._is_expected = is_expected
        self._held_before, self._held = held, set[int]()
        self._records = AuditedLayers()
        self._places = LayerPlaces()
        self._unheld = UnheldLayers(self._places)
        self._read = ModuleMap[None]()
        """The modules whose parameters somebody has read."""
        self._log = FindingLog(self._is_wanted)

    def start(self) -> None:
        """Start watching."""
        self._held = self._held_before()
        self._unheld.note_held(self._held)
        installation.add(self)

    def stop(self) -> tuple[RuleVerdict, ...]:
        """Stop watching, and return a verdict for each rule and model with a finding."""
        installation.discard(self)
        self._end(list(self._records))
        self._records.clear()
        for finding in self._unheld.findings():
            self._log.add(finding)
        return self._log.verdicts()

    def _is_wanted(self, finding: AuditFinding) -> bool:
        if finding.rule not in self._rules:
            return False
        if self._is_expected(finding.id):
            self.expected[finding.id] = None
            return False
        return True

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Tell whether a module is not a BN layer, or is one on record of which all is known."""
        record = self._records.by_id.get(id(module))
        if record is None or record.period is not None or record.layer() is not module:
            return super().ignores(module)
        if module.training and current_graph_task_id() != -1:
            return super().ignores(module)  # a checkpoint may compute it again
        known = record.ran_in_training and record.trains if module.training else record.ran_in
        if not known:
            return super().ignores(module)
        weight = registered(module._parameters, "weight")
        return type(weight) is nn.Parameter and not count_function_modes() and weight.requires_grad

    def saw_forward(self, module: nn.Module) -> None:
        """Look at a BN layer, or at those in a compiled module, before it runs."""
        if has_stored_statistics(module):
            if module.training:
                self._look_at(module)
            else:
                self._look_at_eval(module)
        if is_compiled(module):
            for _, layer in named_modules(module):
                if has_known_forward(layer) and uses_batch_statistics(layer):
                    self.saw_batch_statistics(layer, "batches", None)
                elif has_stored_statistics(layer) and not layer.training:
                    self._look_at_eval(layer)

    def observes_layer(self, layer: nn.Module) -> bool:
        """Tell whether a BN layer that is about to run may leak in this forward."""
        record = self._records.by_id.get(id(layer))
        if record is None or not layer.training:
            return False
        return record.period is not None or current_graph_task_id() != -1

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Count a batch that a BN layer normalises."""
        if not has_stored_statistics(layer):
            return
        ran_before = self._entry(layer).ran_in_training
        record = self._look_at(layer)
        if ran_before and kind == "batches" and self._is_recomputed(record, layer):
            record.recomputed += 1
        if record.period is not None and not self._count_batch(record.period, layer, kind):
            record.period = None
        if kind == "own_forwards":
            self._end_period(record)

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Note where a BN layer is put in training mode."""
        if not (training and getattr(module, "_buffers", None) and has_stored_statistics(module)):
            return
        record = self._entry(module)
        if record.period is None or record.period.stay == "eval":  # later only the first matters
            record.saw_training_set(module, frame, restores=False)

    def saw_parameters_read(self, module: nn.Module) -> None:
        """Keep the parameters of BN layers before somebody freezes, writes or trains them."""
        if module in self._read:
            return
        self._read.add(module, None)
        for layer, holder in layers_in(module):
            record = self._entry(layer)
            if record.early is None and not (record.ran_in_training or record.period) and holder:
                if holder is not layer:
                    record.holder = record.holder or weakref.ref(holder)
                record.early = FrozenParameters(holder)

    def saw_param_group(self, optimizer: Optimizer) -> None:
        """Note which BN layers an optimizer holds."""
        self._note_held({id(each) for each in optimizer.param_groups[-1]["params"]})

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Note that an optimizer is about to write: with a gradient, that is not an average."""
        held = held_by(optimizer)
        self._note_held(held)
        trains = closure or has_gradients(optimizer)
        if trains:
            self._unheld.before_step(optimizer, held, frame)
        finishes = []
        for record in self._records:
            if trains and record.ran_in and record.stuck is None:
                record.stuck = stuck_layer(record, optimizer, held, frame)
            period = record.period
            if period is not None:
                period.trained_beside |= trains
            parameters = record.early if period is None else period.parameters
            if parameters is not None and parameters.are_in(held):
                values = closure or parameters.have_gradients_in(held)
                finishes.append(parameters.exclude_operation(values=values))
        return combined(finishes)

    def before_load(
        self, module: nn.Module, state: Mapping[str, Any], frame: FrameType | None
    ) -> AfterCall | None:
        """Note that a load is about to write: if no value changes, that is not an average."""
        loaded = {id(layer) for layer, _ in layers_in(module)}
        finishes = []
        for record in self._records:
            if id(record.layer()) in loaded:
                if record.period is not None and record.period.stay == "eval":
                    self._end_period(record)
                if record.early is not None:
                    finishes.append(record.early.exclude_operation(values=True))
            if record.period is not None:
                finishes.append(record.period.parameters.exclude_operation(values=False))
        return combined(finishes)

    def before_collective(
        self, name: str, tensors: list[Tensor], frame: FrameType | None
    ) -> AfterCall | None:
        """Note that ranks are about to exchange parameters: that is no average, either."""
        memory = addresses(tensors)
        periods = [record.period for record in self._records if record.period is not None]
        kept = [record.early for record in self._records if record.early is not None]
        kept += [period.parameters for period in periods]
        exchanged = [each for each in kept if each.lie_in(memory)]
        return combined(each.exclude_operation(values=True) for each in exchanged)

    def _note_held(self, held: set[int]) -> None:
        self._unheld.note_held(held)
        for record in self._records:
            layer = record.layer()
            if layer is not None and not record.trains:
                holder = record.holder_of(layer)
                record.trains = any(id(each) in held for each in all_parameters(holder))

    def _look_at(self, layer: nn.Module) -> AuditedLayer:
        """Count a layer that runs in training mode, and begin or end its period."""
        record = self._entry(layer)
        self._count_run(record)
        with DisableTorchFunction():  # a user's mode must not see our calls
            self._follow(record, layer, self._stay_of(record, layer))
        record.stuck = None
        if not record.ran_in_training:
            record.ran_in_training = True
            self.layers += 1
            record.context = self._place(layer)
        return record

    def _place(self, layer: nn.Module) -> CallContext | None:
        """Return where a layer that runs is, which is noted for what is told of its model."""
        with DisableTorchFunction():
            context = None if in_transform() else self._places.of_running(layer)
        if context is not None:
            self._log.saw("BN layer", context)
        return context

    def _count_run(self, record: AuditedLayer) -> None:
        self.ran += not record.ran
        record.ran = True

    def _look_at_eval(self, layer: nn.Module) -> None:
        """Begin the period of a frozen layer in eval; note where one ran that is not frozen."""
        record = self._entry(layer)
        self._count_run(record)
        with DisableTorchFunction():
            if record.is_frozen(layer):
                if record.period is None:
                    self._follow(record, layer, "eval")
                return
        if record.period is not None and record.period.stay == "eval":
            record.period = None  # what is thawed may be written
        if not record.ran_in and torch.is_grad_enabled():
            record.ran_in = tuple(map(weakref.ref, running_modules()))

    def _stay_of(self, record: AuditedLayer, layer: nn.Module) -> Stay | None:
        """Return why the statistics of a layer in training mode should stay, if they should."""
        if record.is_frozen(layer):
            if not record.was_frozen:
                record.was_frozen = True
                self.frozen += 1
            return "training"
        record.trains = record.trains or torch.is_grad_enabled() or self._was_held(record, layer)
        return None if record.trains else "no-grad"

    def _was_held(self, record: AuditedLayer, layer: nn.Module) -> bool:
        parameters = all_parameters(record.holder_of(layer)) if self._held else ()
        return any(id(each) in self._held for each in parameters)

    def _follow(self, record: AuditedLayer, layer: nn.Module, stay: Stay | None) -> None:
        """Let a layer's period go on if its statistics should stay for the same reason."""
        last = record.period
        if last is not None and last.stay != stay:
            self._end_period(record)
        if stay is None:
            record.early = None
        elif record.period is None:
            record.period = self._begin(record, layer, stay, last)

    def _begin(
        self, record: AuditedLayer, layer: nn.Module, stay: Stay, last: FrozenPeriod | None
    ) -> FrozenPeriod | None:
        early, record.early = record.early, None
        parameters = None if last is None else last.parameters
        holder = record.holder_of(layer)
        if early is not None and not early.are_of(holder):
            early = None
        if early is not None and early.averaged and self._records.any_trains_like(layer):
            parameters = early
        period = begin_frozen_period(layer, holder, stay, parameters)
        if period is not None and stay == "eval":
            period.context = call_context_of(layer)
            if period.context is None:
                return None
            self._log.saw(_FROZEN, period.context)
        return period

    def _entry(self, layer: nn.Module) -> AuditedLayer:
        """Return the record of a layer, to add to it."""
        record = self._records.get(layer)
        if record is not None:
            return record
        dead = list(self._records.take_dead())
        if dead:
            self._end(dead)
        return self._records.add(layer)

    def _is_recomputed(self, record: AuditedLayer, layer: nn.Module) -> bool:
        """Tell whether a batch of a layer that ran before updates its statistics in backward."""
        if record.period is not None or current_graph_task_id() == -1:
            return False
        updates = getattr(layer, "momentum", None) != 0
        return updates and getattr(layer, "track_running_stats", True) and not _expected(layer)

    def _count_batch(self, period: FrozenPeriod, layer: nn.Module, kind: ForwardKind) -> bool:
        """Count a batch of a frozen layer; return whether the batch may be a leak."""
        if kind == "own_forwards" and not period.moved():
            return False  # only what these forwards have written tells what they did
        if _expected(layer):
            return False
        if period.context is None and not self._is_copy(layer):
            with DisableTorchFunction():
                period.context = call_context_of(layer)
        if period.context is None:
            return False
        period.batches += 1
        self._log.saw(_FROZEN, period.context)
        return True

    def _is_copy(self, layer: nn.Module) -> bool:
        """Tell whether a layer, such as a compiler's copy, has the statistics of a running one."""
        mean = layer._buffers["running_mean"]
        others = (record.period for record in self._records if record.layer() is not layer)
        running = (each for each in others if each is not None and each.context is not None)
        return any(mean is not None and period.keeps(mean) for period in running)

    def _end(self, records: list[AuditedLayer]) -> None:
        """Judge all that was seen of some layers."""
        findings = []
        for record in records:
            self._end_period(record)
            findings += [record.stuck, recomputed(record)]
        findings += not_finite(records) if "not-finite" in self._rules else ()
        for finding in findings:
            if finding is not None:
                self._log.add(finding)

    def _end_period(self, record: AuditedLayer) -> None:
        """End a layer's period, and note it if it leaked."""
        period, record.period = record.period, None
        leak = None if period is None else leak_of(record, period)
        if leak is not None:
            self._log.add(leak)


def _expected(layer: nn.Module) -> bool:
    """Tell whether a guard expects that a layer is updated, and judges that by itself."""
    return any(observer.expects_updates(layer) for observer in observer_api.observers_here())
