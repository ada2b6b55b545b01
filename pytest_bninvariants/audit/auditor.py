"""Watch all models at once, and find the frozen BN layers whose statistics move.

Nobody says here what is frozen, so the model must tell: a BN layer is, while none of its parameters
requires a gradient, or, where it has none, none of the innermost module around it that has some.
That is asked at each of its forwards in training mode. The state that a frozen layer has before the
first of these is kept, and compared when the layer is frozen no more, or at the end.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import FrameType

from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants.audit.averaging_check import FrozenParameters
from pytest_bninvariants.audit.call_context import CallContext, call_context_of
from pytest_bninvariants.audit.leaks import Leak, verdicts
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.instrumentation import installation, observer_api
from pytest_bninvariants.instrumentation.call_sites import ModeHistory
from pytest_bninvariants.instrumentation.observer_api import AfterCall, ForwardKind, Observer
from pytest_bninvariants.selection.bn_layers import (
    BN_STATE,
    STATISTICS,
    has_known_forward,
    has_stored_statistics,
    is_compiled,
    uses_batch_statistics,
)
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.selection.walk import named_modules
from pytest_bninvariants.snapshot.tensor_bytes import is_uninitialised
from pytest_bninvariants.snapshot.tensors import Snapshot, changes_since, take_snapshot
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo
from pytest_bninvariants.torch_internals.isolation import in_transform, undisturbed
from pytest_bninvariants.torch_internals.private_api import (
    DisableTorchFunction,
    count_function_modes,
)
from pytest_bninvariants.verdict import Change, Verdict


@dataclass(slots=True)
class FrozenStretch:
    """A stretch of a layer's forwards while it is frozen.

    Args:
        kind: the layer's class name.
        kept: its statistics before the first of them.
        parameters: its parameters, or its holder's.
        run: what that one was part of; None as long as none has used batch statistics.
        batches: how many have.
    """

    kind: str
    kept: Snapshot
    parameters: FrozenParameters
    run: CallContext | None = None
    batches: int = 0


@dataclass(slots=True, kw_only=True)
class AuditedLayer(ModeHistory):
    """What was seen of one BN layer.

    Args:
        layer: the layer.
        holder: whose parameters tell whether it is frozen, where it has none.
        normalised: whether it ran in training mode.
        frozen: whether it ever was frozen then.
        freeze: while it is frozen and runs in training mode.
    """

    layer: weakref.ref[nn.Module]
    holder: weakref.ref[nn.Module] | None = None
    normalised: bool = False
    frozen: bool = False
    freeze: FrozenStretch | None = None


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
        self._seen: dict[int, AuditedLayer] = {}
        self._dead: list[int] = []
        self._frozen_in: dict[str, set[str]] = {}
        self._leaks: dict[tuple[str, str], Leak] = {}

    def start(self) -> None:
        """Begin to watch."""
        installation.add(self)

    def stop(self) -> tuple[Verdict, ...]:
        """Watch no longer, and return a verdict for each model that leaked."""
        installation.discard(self)
        for seen in list(self._seen.values()):
            self._judge(seen)
        self._seen.clear()
        frozen = {model: len(layers) for model, layers in self._frozen_in.items()}
        return verdicts(self._leaks.values(), frozen)

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Tell whether a module is no BN layer, or one that is known, and trained as it was."""
        seen = self._seen.get(id(module))
        if seen is None or not seen.normalised or seen.freeze or seen.layer() is not module:
            return super().ignores(module)
        weight = module._parameters.get("weight")
        return type(weight) is nn.Parameter and not count_function_modes() and weight.requires_grad

    def saw_forward(self, module: nn.Module) -> None:
        """Look at a BN layer that is about to run in training mode."""
        if module.training and has_stored_statistics(module):
            self._count(self._look_at(module))
        if is_compiled(module):
            for _, layer in named_modules(module):
                if has_known_forward(layer) and uses_batch_statistics(layer):
                    self.saw_batch_statistics(layer, "batches", None)

    def observes_layer(self, layer: nn.Module) -> bool:
        """Tell whether a BN layer that is about to run is frozen."""
        seen = self._seen.get(id(layer))
        return seen is not None and seen.freeze is not None

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Count a batch that a BN layer normalises."""
        if not has_stored_statistics(layer):
            return
        seen = self._look_at(layer)
        self._count(seen)
        if seen.freeze is not None and not self._counts(seen.freeze, layer, kind):
            seen.freeze = None
        if kind == "own_forwards":
            self._judge(seen, _buffers(layer))

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Note where a BN layer is put in training mode."""
        if not (training and getattr(module, "_buffers", None) and has_stored_statistics(module)):
            return
        seen = self._of(module)
        if seen.freeze is not None:
            return  # what led to the first batch is what counts
        seen.saw_training_set(module, frame, restores=False)

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Note that what an optimizer writes with a gradient is no average, but a step."""
        return _all(
            parameters.leave_out(values=closure or parameters.have_gradients_in(optimizer))
            for parameters in self._frozen_parameters()
        )

    def before_load(self, module: nn.Module, frame: FrameType | None) -> AfterCall | None:
        """Note that a load of the values that are there is no average."""
        return _all(each.leave_out(values=False) for each in self._frozen_parameters())

    def _frozen_parameters(self) -> list[FrozenParameters]:
        freezes = (seen.freeze for seen in list(self._seen.values()))
        return [freeze.parameters for freeze in freezes if freeze is not None]

    def _count(self, seen: AuditedLayer) -> None:
        self.layers += not seen.normalised
        seen.normalised = True

    def _look_at(self, layer: nn.Module) -> AuditedLayer:
        seen = self._of(layer)
        with DisableTorchFunction():  # a user's mode is not to hear of our questions
            frozen = _is_frozen(layer, seen)
            self.frozen += frozen and not seen.frozen
            seen.frozen |= frozen
            if not frozen:
                self._judge(seen)
            elif seen.freeze is None and _is_readable(layer):
                seen.freeze = _freeze(layer, seen.holder)
        return seen

    def _of(self, layer: nn.Module) -> AuditedLayer:
        """Return what was seen of a layer, to be added to."""
        seen = self._seen.get(id(layer))
        if seen is not None and seen.layer() is layer:
            return seen
        while self._dead:  # judged here, since a layer may die at any moment
            self._judge(self._seen.pop(self._dead.pop()))
        key, dead = id(layer), self._dead
        self._seen[key] = seen = AuditedLayer(layer=weakref.ref(layer, lambda _: dead.append(key)))
        return seen

    def _counts(self, freeze: FrozenStretch, layer: nn.Module, kind: ForwardKind) -> bool:
        """Count a batch of a frozen layer; tell whether it is one that may make a leak."""
        if kind == "own_forwards" and not _moved(freeze, _buffers(layer)):
            return False  # all that is known of these is what they have done by now
        if any(observer.expects_updates(layer) for observer in observer_api.active_observers):
            return False
        if freeze.run is None and not self._is_copy(layer):
            with DisableTorchFunction():
                freeze.run = call_context_of(layer)
        if freeze.run is None:
            return False
        freeze.batches += 1
        self._frozen_in.setdefault(freeze.run.model, set()).add(freeze.run.name)
        return True

    def _is_copy(self, layer: nn.Module) -> bool:
        """Tell whether a layer's statistics are those of one that runs too, as compilers do it."""
        others = (seen.freeze for seen in self._seen.values() if seen.layer() is not layer)
        kept = (freeze.kept for freeze in others if freeze is not None and freeze.run is not None)
        mean = layer._buffers["running_mean"]
        return any(mean is each.watched.tensor for tensors in kept for each in tensors.values())

    def _judge(self, seen: AuditedLayer, now: Mapping[str, Tensor] | None = None) -> None:
        """End a freeze: it leaked if its statistics moved and its parameters did not.

        Args:
            seen: the layer's.
            now: its tensors by name; the kept ones if they are to be trusted.
        """
        freeze, seen.freeze = seen.freeze, None
        if freeze is None or freeze.run is None:
            return
        moved = _moved(freeze, now or {})
        if not moved:
            return
        run = freeze.run
        prefix = f"{run.name}." if run.name else ""
        leak = Leak(
            model=run.model,
            layer=run.name,
            kind=freeze.kind,
            flipped=seen.flipped,
            put_in_training=seen.put_in_training,
            ran_at=run.place,
            batches=freeze.batches,
            changes=tuple(replace(c, name=f"{prefix}{c.name}", layer=run.name) for c in moved),
            tensors=len(freeze.kept),
        )
        self._leaks.setdefault((leak.model, leak.layer), leak)


def _is_frozen(layer: nn.Module, seen: AuditedLayer) -> bool:
    own = [parameter for parameter in layer._parameters.values() if parameter is not None]
    if own:
        return all(map(_asks_for_none, own))
    if seen.holder is None:
        run = call_context_of(layer)
        seen.holder = None if run is None else run.holder
    holder = None if seen.holder is None else seen.holder()
    return holder is not None and all(map(_asks_for_none, holder.parameters()))


def _asks_for_none(parameter: Tensor) -> bool:
    """Tell whether a parameter asks for no gradient; what `functional_call` puts there is none."""
    return not parameter.requires_grad and isinstance(parameter, nn.Parameter)


def _is_readable(layer: nn.Module) -> bool:
    """Tell whether a layer has values, which are its own and not a function transform's."""
    return not in_transform() and not is_uninitialised(_buffers(layer)["running_mean"])


def _buffers(layer: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in layer._buffers.items() if buffer is not None}


def _freeze(layer: nn.Module, holder: weakref.ref[nn.Module] | None) -> FrozenStretch | None:
    """Keep what a frozen layer is compared with; None where it cannot be compared."""
    of = None if holder is None else holder()
    statistics = {name: each for name, each in _buffers(layer).items() if name in BN_STATE}
    watched = {name: WatchedTensor(name, "", "buffer", each) for name, each in statistics.items()}
    try:
        with undisturbed():
            return FrozenStretch(
                type(layer).__name__, take_snapshot(watched), FrozenParameters(of or layer)
            )
    except GateError:
        return None


def _moved(freeze: FrozenStretch, now: Mapping[str, Tensor]) -> list[Change]:
    """Return the changes of a layer's statistics, if nobody averaged models meanwhile.

    Args:
        freeze: what was kept.
        now: tensors to compare by name; the very tensors that were copied, where it has none.
    """
    watched = {
        key: kept.watched._replace(tensor=now.get(key, kept.watched.tensor))
        for key, kept in freeze.kept.items()
    }
    with undisturbed():
        found = changes_since(freeze.kept, watched, ())
    moved = {change.name for change in found if change.kind == "values"}
    return found if moved & {*STATISTICS} and not freeze.parameters.averaged else []


def _all(finishes: Iterable[AfterCall]) -> AfterCall | None:
    """Return what calls each of these; None if there are none."""
    each = list(finishes)

    def finish() -> None:
        for one in each:
            one()

    return finish if each else None
