"""Watch all models at once, and find the frozen BN layers whose statistics move.

No test says here what is frozen, so the model must tell: a BN layer is frozen while none of its
parameters requires a gradient. If it has no parameters, those of the innermost module around it
that has some decide. An auditor looks at each forward in training mode. It keeps the state of a
frozen layer before the first of them, and compares it when the layer is no longer frozen, or at the
end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FrameType

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
    """Hear nothing, but keep torch's functions wrapped between one auditor and the next.

    To wrap them takes as long as a small test does.
    """

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Tell that no call is heard."""
        return True

    def observes_layer(self, layer: nn.Module) -> bool:
        """Tell that no layer is listened to."""
        return False


class Auditor(Observer):
    """Watch every BN layer that runs, from `start` to `stop`."""

    def __init__(self) -> None:
        self.layers = 0
        """How many BN layers have run in training mode."""
        self.frozen = 0
        """How many of them were frozen then."""
        self._seen = AuditedLayers()
        self._log = LeakLog()

    def start(self) -> None:
        """Begin to watch."""
        installation.add(self)

    def stop(self) -> tuple[Verdict, ...]:
        """Watch no longer, and return a verdict for each model that leaked."""
        installation.discard(self)
        for seen in self._seen:
            self._end_period(seen)
        self._seen.clear()
        return self._log.verdicts()

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Tell whether a module is not a BN layer, or is a known one that still trains."""
        seen = self._seen.by_id.get(id(module))
        if (
            seen is None
            or not seen.ran_in_training
            or seen.period is not None
            or seen.layer() is not module
        ):
            return super().ignores(module)
        weight = module._parameters.get("weight")
        return type(weight) is nn.Parameter and not count_function_modes() and weight.requires_grad

    def saw_forward(self, module: nn.Module) -> None:
        """Look at a BN layer that is about to run in training mode."""
        if module.training and has_stored_statistics(module):
            self._look_at(module)
        if is_compiled(module):
            for _, layer in named_modules(module):
                if has_known_forward(layer) and uses_batch_statistics(layer):
                    self.saw_batch_statistics(layer, "batches", None)

    def observes_layer(self, layer: nn.Module) -> bool:
        """Tell whether a BN layer that is about to run is frozen."""
        seen = self._seen.by_id.get(id(layer))
        return seen is not None and seen.period is not None

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Count a batch that a BN layer normalises."""
        if not has_stored_statistics(layer):
            return
        seen = self._look_at(layer)
        if seen.period is not None and not self._counts(seen.period, layer, kind):
            seen.period = None
        if kind == "own_forwards":
            self._end_period(seen, buffers_of(layer))

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Note where a BN layer is put in training mode."""
        if not (training and getattr(module, "_buffers", None) and has_stored_statistics(module)):
            return
        seen = self._entry(module)
        if seen.period is not None:
            return  # only what led to the first batch matters
        seen.saw_training_set(module, frame, restores=False)

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Note that what an optimizer writes with a gradient is a step, not an average."""
        return _call_all(
            parameters.exclude_operation(values=closure or parameters.have_gradients_in(optimizer))
            for parameters in self._frozen_parameters()
        )

    def before_load(self, module: nn.Module, frame: FrameType | None) -> AfterCall | None:
        """Note that a load of the values that are there is not an average."""
        return _call_all(each.exclude_operation(values=False) for each in self._frozen_parameters())

    def _frozen_parameters(self) -> list[FrozenParameters]:
        return [seen.period.parameters for seen in self._seen if seen.period is not None]

    def _look_at(self, layer: nn.Module) -> AuditedLayer:
        """Count a layer that runs in training mode, and tell whether it is frozen now."""
        seen = self._entry(layer)
        with DisableTorchFunction():  # a user's mode must not see our calls
            if seen.is_frozen(layer):
                self._saw_frozen(seen, layer)
            else:
                self._end_period(seen)
        if not seen.ran_in_training:
            seen.ran_in_training = True
            self.layers += 1
        return seen

    def _saw_frozen(self, seen: AuditedLayer, layer: nn.Module) -> None:
        if not seen.was_frozen:
            seen.was_frozen = True
            self.frozen += 1
        if seen.period is None:
            seen.begin_period(layer)

    def _entry(self, layer: nn.Module) -> AuditedLayer:
        """Return what was seen of a layer, to be added to."""
        seen = self._seen.get(layer)
        if seen is not None:
            return seen
        for dead in self._seen.take_dead():
            self._end_period(dead)
        return self._seen.add(layer)

    def _counts(self, period: FrozenPeriod, layer: nn.Module, kind: ForwardKind) -> bool:
        """Count a batch of a frozen layer; tell whether it is one that may make a leak."""
        if kind == "own_forwards" and not period.moved(buffers_of(layer)):
            return False  # all that is known of these is what they have done by now
        if any(observer.expects_updates(layer) for observer in observer_api.active_observers):
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
        """Tell whether a layer's statistics are those of one that runs too, as compilers do it."""
        mean = layer._buffers["running_mean"]
        others = (seen.period for seen in self._seen if seen.layer() is not layer)
        running = (each for each in others if each is not None and each.context is not None)
        return any(mean is not None and period.keeps(mean) for period in running)

    def _end_period(self, seen: AuditedLayer, now: Mapping[str, Tensor] | None = None) -> None:
        """End a layer's frozen period: it leaked if statistics moved, and parameters did not.

        Args:
            seen: what was seen of the layer.
            now: its tensors by name; the kept ones if they are to be trusted.
        """
        period, seen.period = seen.period, None
        if period is not None and period.context is not None:
            self._log.add(period, period.moved(now), seen)


def _call_all(finishes: Iterable[AfterCall]) -> AfterCall | None:
    """Return what calls each of these; None if there are none."""
    each = list(finishes)

    def finish() -> None:
        for one in each:
            one()

    return finish if each else None
