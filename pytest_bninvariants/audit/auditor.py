"""Watch all models at once, and find the frozen BN layers whose statistics move.

Here no test says what is frozen, so the model decides: a BN layer is frozen while none of its
parameters requires a gradient. If it has no parameters, those of the innermost module around it
that has some decide. An auditor looks at each forward in training mode. It keeps the state of a
frozen layer before the first such forward, and compares it when the layer is no longer frozen, or
at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants.audit.audited_layers import AuditedLayer, AuditedLayers
from pytest_bninvariants.audit.averaging_check import FrozenParameters
from pytest_bninvariants.audit.call_context import call_context_of
from pytest_bninvariants.audit.frozen_period import FrozenPeriod, buffers_of
from pytest_bninvariants.audit.leaks import LeakLog
from pytest_bninvariants.instrumentation import installation, observer_api
from pytest_bninvariants.instrumentation.observer_api import AfterCall, ForwardKind, Observer
from pytest_bninvariants.selection.bn_layers import (
    has_known_forward,
    has_stored_statistics,
    is_compiled,
    uses_batch_statistics,
)
from pytest_bninvariants.selection.walk import named_modules
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo
from pytest_bninvariants.torch_internals.private_api import (
    DisableTorchFunction,
    count_function_modes,
)
from pytest_bninvariants.verdict import Verdict


class IdleWatcher(installation.Watcher):
    """Observe nothing, but keep torch's functions wrapped between one auditor and the next.

    Wrapping them takes as long as a small test.
    """

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Ignore all calls."""
        return True

    def observes_layer(self, layer: nn.Module) -> bool:
        """Observe no layer."""
        return False


class Auditor(Observer):
    """Watch every BN layer that runs, from `start` to `stop`."""

    def __init__(self) -> None:
        self.layers = 0
        """How many BN layers have run in training mode."""
        self.frozen = 0
        """How many of them were frozen then."""
        self._records = AuditedLayers()
        self._log = LeakLog()

    def start(self) -> None:
        """Start watching."""
        installation.add(self)

    def stop(self) -> tuple[Verdict, ...]:
        """Stop watching, and return a verdict for each model that leaked."""
        installation.discard(self)
        for record in self._records:
            self._end_period(record)
        self._records.clear()
        return self._log.verdicts()

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Tell whether a module is not a BN layer, or is one on record that still trains."""
        record = self._records.by_id.get(id(module))
        if (
            record is None
            or not record.ran_in_training
            or record.period is not None
            or record.layer() is not module
        ):
            return super().ignores(module)
        weight = module._parameters.get("weight")
        return type(weight) is nn.Parameter and not count_function_modes() and weight.requires_grad

    def saw_forward(self, module: nn.Module) -> None:
        """Look at a BN layer in training mode, or at those in a compiled module, before it runs."""
        if module.training and has_stored_statistics(module):
            self._look_at(module)
        if is_compiled(module):
            for _, layer in named_modules(module):
                if has_known_forward(layer) and uses_batch_statistics(layer):
                    self.saw_batch_statistics(layer, "batches", None)

    def observes_layer(self, layer: nn.Module) -> bool:
        """Tell whether a BN layer that is about to run is frozen."""
        record = self._records.by_id.get(id(layer))
        return record is not None and record.period is not None

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Count a batch that a BN layer normalises."""
        if not has_stored_statistics(layer):
            return
        record = self._look_at(layer)
        if record.period is not None and not self._count_batch(record.period, layer, kind):
            record.period = None
        if kind == "own_forwards":
            self._end_period(record, buffers_of(layer))

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Note where a BN layer is put in training mode."""
        if not (training and getattr(module, "_buffers", None) and has_stored_statistics(module)):
            return
        record = self._entry(module)
        if record.period is not None:
            return  # only what led to the first batch matters
        record.saw_training_set(module, frame, restores=False)

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Note that an optimizer is about to write: with a gradient, that is not an average."""
        return _combine(
            parameters.exclude_operation(values=closure or parameters.have_gradients_in(optimizer))
            for parameters in self._frozen_parameters()
        )

    def before_load(
        self, module: nn.Module, state: Mapping[str, Any], frame: FrameType | None
    ) -> AfterCall | None:
        """Note that a load is about to write: if no value changes, that is not an average."""
        return _combine(each.exclude_operation(values=False) for each in self._frozen_parameters())

    def _frozen_parameters(self) -> list[FrozenParameters]:
        return [record.period.parameters for record in self._records if record.period is not None]

    def _look_at(self, layer: nn.Module) -> AuditedLayer:
        """Count a layer that runs in training mode, and begin or end its frozen period."""
        record = self._entry(layer)
        with DisableTorchFunction():  # a user's mode must not see our calls
            if record.is_frozen(layer):
                self._saw_frozen(record, layer)
            else:
                self._end_period(record)
        if not record.ran_in_training:
            record.ran_in_training = True
            self.layers += 1
        return record

    def _saw_frozen(self, record: AuditedLayer, layer: nn.Module) -> None:
        if not record.was_frozen:
            record.was_frozen = True
            self.frozen += 1
        if record.period is None:
            record.begin_period(layer)

    def _entry(self, layer: nn.Module) -> AuditedLayer:
        """Return the record of a layer, to add to it."""
        record = self._records.get(layer)
        if record is not None:
            return record
        for dead in self._records.take_dead():
            self._end_period(dead)
        return self._records.add(layer)

    def _count_batch(self, period: FrozenPeriod, layer: nn.Module, kind: ForwardKind) -> bool:
        """Count a batch of a frozen layer; return whether the batch may be a leak."""
        if kind == "own_forwards" and not period.moved(buffers_of(layer)):
            return False  # only what these forwards have written tells what they did
        if any(observer.expects_updates(layer) for observer in observer_api.observers_here()):
            return False
        if period.context is None and not self._is_copy(layer):
            with DisableTorchFunction():
                period.context = call_context_of(layer)
        if period.context is None:
            return False
        period.batches += 1
        self._log.saw_frozen(period.context)
        return True

    def _is_copy(self, layer: nn.Module) -> bool:
        """Tell whether a layer, such as a compiler's copy, has the statistics of a running one."""
        mean = layer._buffers["running_mean"]
        others = (record.period for record in self._records if record.layer() is not layer)
        running = (each for each in others if each is not None and each.context is not None)
        return any(mean is not None and period.keeps(mean) for period in running)

    def _end_period(self, record: AuditedLayer, now: Mapping[str, Tensor] | None = None) -> None:
        """End a layer's frozen period: it leaked if statistics moved, and parameters did not.

        Args:
            record: the record of the layer.
            now: its buffers by name; by default, the tensors that were kept.
        """
        period, record.period = record.period, None
        if period is not None and period.context is not None:
            self._log.add(period, period.moved(now), record)


def _combine(finishes: Iterable[AfterCall]) -> AfterCall | None:
    """Return a function that calls each of these; None if there are none."""
    functions = list(finishes)

    def finish() -> None:
        for function in functions:
            function()

    return finish if functions else None
