"""Record the updates that BN layers make during a step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants.frames import place_of
from pytest_bninvariants.instrumentation.call_sites import (
    place_of_mode_call,
    place_of_outermost_call,
)
from pytest_bninvariants.instrumentation.installation import Watcher
from pytest_bninvariants.instrumentation.norm_calls import OutermostCall, norm_hooks
from pytest_bninvariants.instrumentation.observer_api import AfterCall, AfterForward, ForwardKind
from pytest_bninvariants.instrumentation.optimizers import OuterSteps, gradient_of, held_by
from pytest_bninvariants.instrumentation.unregistered_layers import UnregisteredLayers
from pytest_bninvariants.invariants.bn_updates.layer_forward import LayerForward
from pytest_bninvariants.invariants.bn_updates.layer_record import LayerRecord
from pytest_bninvariants.invariants.bn_updates.note_queue import (
    ForwardNote,
    NoteQueue,
    StateNote,
)
from pytest_bninvariants.invariants.bn_updates.statistics_snapshot import (
    StatisticsReader,
    StatisticsSnapshot,
    read_statistics,
    statistics_of,
)
from pytest_bninvariants.selection.bn_layers import STATISTICS
from pytest_bninvariants.selection.layers_to_train import layers_to_train
from pytest_bninvariants.selection.walk import all_tensors, named_modules
from pytest_bninvariants.snapshot.addresses import address
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Place


class UpdateLog(Watcher):
    """Record the updates of some BN layers during one step.

    Args:
        layers: the layers.
        model: the model; steps of optimizers that hold its parameters are counted.
        on_purpose: whether the user named these layers, and so wants them updated.
    """

    def __init__(
        self, layers: Iterable[nn.Module], model: nn.Module, *, on_purpose: bool = False
    ) -> None:
        self._on_purpose = on_purpose
        to_train = layers_to_train(model)
        self._notes = NoteQueue()
        readers = list(map(StatisticsReader, layers))
        with undisturbed():
            self._records = {
                id(reader.layer): LayerRecord.begin(
                    reader, start, is_to_train=id(reader.layer) in to_train
                )
                for reader, start in zip(readers, read_statistics(readers), strict=True)
            }
        self._model = model
        self.unregistered = UnregisteredLayers(model)
        self._running: dict[int, LayerForward] = {}
        self._outer_steps = OuterSteps()
        self._stepped: set[int] = set()
        self._parts = {id(part) for _, part in named_modules(model)}
        self._model_forwards = 0
        self._model_runs_in: OutermostCall | None = None
        self._placed: tuple[OutermostCall | None, Place | None] = (None, None)
        self._last_backward_was_dummy = False
        self._has_stopped = False
        self.compiled = False
        """Whether compiled code ran, in which forwards cannot be seen."""

    @property
    def steps(self) -> int:
        """Return how many steps of optimizers that hold parameters of the model have ended."""
        return self._outer_steps.count

    @property
    def optimizers(self) -> int:
        """Return how many optimizers began these steps."""
        return len(self._stepped)

    def stop(self) -> None:
        """Stop recording, and note which layers are to train by now."""
        super().stop()
        if self._has_stopped:
            return
        self._has_stopped = True
        to_train = layers_to_train(self._model)
        for key, record in self._records.items():
            record.is_to_train |= key in to_train
        if self._last_backward_was_dummy:
            self._note_dummy_step()

    def settle(self) -> None:
        """Read what devices hold of what was seen; the caller must hold `undisturbed()`."""
        self._notes.settle()

    def saw_backward(self, returned: Mapping[int, Tensor]) -> None:
        """Note what the gradients are, in a step that may end without one of an optimizer."""
        self._last_backward_was_dummy = not self.steps and self._all_gradients_are_zero()

    def _all_gradients_are_zero(self) -> bool:
        """Tell whether there are gradients, and all are zero; as a rule, the first settles it."""
        known = set()
        with undisturbed():
            for parameter in self._model.parameters():
                known.add(gradient_of(parameter))
                if "nonzero" in known:
                    return False
        return "zero" in known

    def _note_dummy_step(self) -> None:
        step = self.steps

        def note(_: StatisticsSnapshot) -> None:
            for record in self._records.values():
                record.note_dummy_step(step)

        with undisturbed():
            self._notes.add(StateNote(StatisticsSnapshot({}, {}), note))

    def expects_updates(self, layer: nn.Module) -> bool:
        """Tell whether the user wants this layer updated."""
        return self._on_purpose and id(layer) in self._records

    def record_of(self, layer: nn.Module) -> LayerRecord:
        """Return the record of a layer."""
        return self._records[id(layer)]

    def saw_forward(self, module: nn.Module) -> None:
        """Count the forwards of the model."""
        if module is self._model:
            self._model_forwards += 1
            self._model_runs_in = norm_hooks.outermost_call()

    def _outer(self) -> object:
        """Return what identifies the forward of the model, or of a part that was called alone.

        A module outside the model that calls parts of it several times has no say in how the model
        uses them.
        """
        call = norm_hooks.outermost_call()
        ours = call is not None and (call is self._model_runs_in or call.module in self._parts)
        return (self._model_forwards, call) if ours else object()

    def before_layer(self, layer: nn.Module, x: Tensor | None) -> AfterForward | None:
        """Note a layer's statistics; return a function that compares them after its forward."""
        record = self._records.get(id(layer))
        if record is None or id(layer) in self._running:
            return None
        with undisturbed():
            forward = LayerForward.begin(record.reader, x)
        self._running[id(layer)] = forward

        def end(failed: bool) -> None:
            del self._running[id(layer)]
            with undisturbed():
                self._note_forward(record, forward, self._place_of_forward, failed=failed)

        return end

    def _place_of_forward(self, frame: FrameType) -> Place | None:
        """Find the user's line that called the outermost module, once for all layers in it."""
        call = norm_hooks.outermost_call()
        if call is None or call is not self._placed[0]:
            self._placed = call, place_of_outermost_call(frame)
        return self._placed[1]

    def _note_forward(
        self,
        record: LayerRecord,
        forward: LayerForward,
        find_place: Callable[[FrameType], Place | None],
        *,
        failed: bool,
    ) -> None:
        """Note a forward that has ended."""
        wants_place = record.history.latest[1].wants_place
        place = find_place(sys._getframe(2)) if wants_place else None
        ended = forward.end(place, failed=failed)
        self._notes.add(ForwardNote(record, ended, self.steps, self._outer()))

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Note that a layer's forward normalises with batch statistics."""
        self.unregistered.saw_batch_statistics(layer)
        forward = self._running.get(id(layer))
        if forward is not None:
            with undisturbed():
                forward.add_part(values)

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Ignore no module: any may normalise with the statistics of a layer in it."""
        return False

    def saw_call(
        self,
        name: str,
        state: tuple[Tensor, ...],
        values: Tensor | None,
        frame: FrameType,
        *,
        batch: bool,
    ) -> AfterCall | None:
        """Note the statistics of the layers whose tensors a call of torch's function gets."""
        at = [*map(address, state)]
        normalised = values if name == "batch_norm" else None
        with undisturbed():
            forwards = [
                (record, LayerForward.begin_call(record.reader, normalised, batch=batch))
                for record in self._records.values()
                if at == _addresses_of_statistics(record.layer)
            ]

        def finish() -> None:
            with undisturbed():
                for record, forward in forwards:
                    self._note_forward(record, forward, place_of_outermost_call, failed=False)

        return finish if forwards else None

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Note where a layer is put in eval."""
        record = self._records.get(id(module))
        if record is not None and not training:
            record.put_in_eval = place_of_mode_call(frame, module, training)

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Return a function that counts an optimizer's step, but not a step inside another."""
        if held_by(optimizer).isdisjoint(map(id, all_tensors(self._model))):
            return None
        if not self._outer_steps.begins(frame):
            return None
        self._stepped.add(id(optimizer))
        is_dummy = not closure and self._all_gradients_are_zero()

        def finish() -> None:
            if is_dummy or (closure and self._all_gradients_are_zero()):
                self._note_dummy_step()
            self._last_backward_was_dummy = False
            self._outer_steps.ended(frame)

        return finish

    def before_load(
        self, module: nn.Module, state: Mapping[str, Any], frame: FrameType | None
    ) -> AfterCall | None:
        """Return a function that notes after a load which statistics it set."""
        below = {id(part) for _, part in named_modules(module)}
        records = [record for key, record in self._records.items() if key in below]
        if not records:
            return None
        place = place_of(frame, f"{type(module).__name__}.load_state_dict()")

        def finish() -> None:
            with undisturbed():
                for record in records:
                    self._note_state(record, partial(record.note_load, place=place))

        return finish

    def before_collective(
        self, name: str, tensors: list[Tensor], frame: FrameType | None
    ) -> AfterCall | None:
        """Return a function that notes after a collective which statistics it set."""
        addresses = {address(tensor) for tensor in tensors} - {0}
        records = [
            record
            for record in self._records.values()
            if addresses & {address(each) for each in statistics_of(record.layer).values()}
        ]

        def finish() -> None:
            with undisturbed():
                for record in records:
                    self._note_state(record, record.note_collective)

        return finish if records else None

    def _note_state(self, record: LayerRecord, note: Callable[[StatisticsSnapshot], None]) -> None:
        """Note the statistics that a layer has now, once they are read on the host."""
        self._notes.add(StateNote(record.reader.read(), note))

    def saw_compiled_code(self) -> None:
        """Note that forwards may be unseen."""
        self.compiled = True


def _addresses_of_statistics(layer: nn.Module) -> list[int]:
    """Return the addresses of a layer's running mean and variance; none if one has no memory."""
    statistics = statistics_of(layer)
    found = [address(statistics[name]) for name in STATISTICS if name in statistics]
    return found if all(found) else []
