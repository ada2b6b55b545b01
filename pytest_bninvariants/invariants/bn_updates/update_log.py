"""Keep account of the updates that BN layers make during a step."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import FrameType

from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants.frames import callers, place_of
from pytest_bninvariants.instrumentation.call_sites import (
    place_of_mode_call,
    place_of_outermost_call,
)
from pytest_bninvariants.instrumentation.installation import Watcher
from pytest_bninvariants.instrumentation.observer_api import AfterCall, AfterForward, ForwardKind
from pytest_bninvariants.instrumentation.optimizers import held_by
from pytest_bninvariants.invariants.bn_updates.reference_check import Given, judge
from pytest_bninvariants.invariants.bn_updates.state_history import (
    Batch,
    History,
    Lineage,
    State,
    statistics_of,
)
from pytest_bninvariants.selection.bn_layers import has_known_forward, is_to_update
from pytest_bninvariants.selection.model_names import all_tensors, named_modules
from pytest_bninvariants.snapshot.addresses import address
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo
from pytest_bninvariants.torch_internals.isolation import in_transform, undisturbed
from pytest_bninvariants.torch_internals.private_api import current_graph_task_id
from pytest_bninvariants.verdict import Place

_UNKNOWN = object()
"""The momentum of a layer that has no such attribute; None is that of a cumulative average."""


@dataclass(slots=True)
class Account:
    """What was seen of one BN layer.

    Args:
        layer: the layer.
        history: the states of its statistics, and what led to each.
        meant: whether it was in training when the step began.
        updates: how many updates it made, those that were undone with the others.
        forwards: how many forwards it ran.
        idle: how many of them normalised with batch statistics and updated nothing.
        by_momentum_zero: how many of these did so because momentum was 0.
        without_tracking: how many because track_running_stats was False.
        elsewhere: how many updates were of other tensors than those at the start.
        in_eval: how many forwards ran in eval.
        unreadable: whether its statistics could not be read at some forward.
        put_in_eval: where it was last put in eval.
    """

    layer: nn.Module
    history: History
    meant: bool
    updates: int = 0
    forwards: int = 0
    idle: int = 0
    by_momentum_zero: int = 0
    without_tracking: int = 0
    elsewhere: int = 0
    in_eval: int = 0
    unreadable: bool = False
    put_in_eval: Place | None = None


@dataclass(slots=True)
class _Forward:
    """A layer's forward that is running.

    Args:
        account: the layer's.
        before: its statistics.
        x: the first tensor that it was called with.
        training: its mode.
        momentum: its momentum, if it says so.
        values: what it normalised with batch statistics, if it called torch's function for that.
        parts: how often it normalised with batch statistics: each time a part of its batch.
        by_call: whether it is none, but a call of torch's function with the layer's statistics.
    """

    account: Account
    before: State
    x: Given | None
    training: bool
    momentum: object
    values: Given | None = None
    parts: int = 0
    by_call: bool = False


class Ledger(Watcher):
    """Keep account of some BN layers during one step.

    Args:
        layers: the layers.
        model: the model; steps of optimizers that hold its parameters are counted.
        on_purpose: whether it was said of these very layers that they are to be updated.
    """

    def __init__(
        self, layers: Iterable[nn.Module], model: nn.Module, *, on_purpose: bool = False
    ) -> None:
        self._on_purpose = on_purpose
        with undisturbed():
            self._accounts = {
                id(layer): Account(layer, History.beginning(State.of(layer)), is_to_update(layer))
                for layer in layers
            }
        self._model = model
        self._running: dict[int, _Forward] = {}
        self._stepping: set[FrameType] = set()
        self.steps = 0
        """How many steps of optimizers that hold parameters of the model are over."""
        self.compiled = False
        """Whether compiled code ran, in which forwards are unseen."""

    def expects_updates(self, layer: nn.Module) -> bool:
        """Tell whether a layer is one of those that are to be updated."""
        return self._on_purpose and id(layer) in self._accounts

    def of(self, layer: nn.Module) -> Account:
        """Return what was seen of a layer."""
        return self._accounts[id(layer)]

    def before_layer(self, layer: nn.Module, x: Tensor | None) -> AfterForward | None:
        """Note a layer's statistics; return what compares them after its forward."""
        account = self._accounts.get(id(layer))
        if account is None or id(layer) in self._running:
            return None
        with undisturbed():
            forward = _Forward(
                account=account,
                before=State.of(layer),
                x=Given.of(x),
                training=layer.training,
                momentum=getattr(layer, "momentum", _UNKNOWN),
            )
        self._running[id(layer)] = forward

        def end(failed: bool) -> None:
            del self._running[id(layer)]
            with undisturbed():
                self._take(forward, failed=failed)

        return end

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Note that a layer's forward normalises with batch statistics."""
        forward = self._running.get(id(layer))
        if forward is None:
            return
        forward.parts += 1
        if forward.parts > 1:
            forward.x = forward.values = None
            return
        with undisturbed():
            forward.values = Given.of(values)

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Hear of every call: any module may normalise with the statistics of a layer in it."""
        return False

    def saw_call(
        self, name: str, state: Tensor, values: Tensor | None, frame: FrameType, *, batch: bool
    ) -> AfterCall | None:
        """Note the statistics of a layer that is normalised for without a call of its own."""
        at = address(state)
        with undisturbed():
            forwards = [
                _Forward(
                    account=account,
                    before=State.of(account.layer),
                    x=None,
                    training=batch and account.layer.training,
                    momentum=getattr(account.layer, "momentum", _UNKNOWN),
                    values=Given.of(values) if name == "batch_norm" else None,
                    parts=int(batch),
                    by_call=True,
                )
                for account in self._accounts.values()
                if at == _address_of_mean(account.layer)
            ]

        def finish() -> None:
            with undisturbed():
                for forward in forwards:
                    self._take(forward, failed=False)

        return finish if forwards else None

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Note where a layer is put in eval."""
        account = self._accounts.get(id(module))
        if account is not None and not training:
            account.put_in_eval = place_of_mode_call(frame, module, training)

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Return what counts an optimizer's step when it is over; one inside is part of it."""
        if held_by(optimizer).isdisjoint(map(id, all_tensors(self._model))):
            return None
        if frame is None or any(caller in self._stepping for caller in callers(frame)):
            return None
        self._stepping.add(frame)

        def finish() -> None:
            self._stepping.discard(frame)
            self.steps += 1

        return finish

    def before_load(self, module: nn.Module, frame: FrameType | None) -> AfterCall | None:
        """Return what notes after a load which statistics it set."""
        below = {id(part) for _, part in named_modules(module)}
        accounts = [account for key, account in self._accounts.items() if key in below]
        if not accounts:
            return None
        place = place_of(frame, f"{type(module).__name__}.load_state_dict()")
        return lambda: self._note_writes(accounts, "loaded", place)

    def before_collective(
        self, name: str, tensors: list[Tensor], frame: FrameType | None
    ) -> AfterCall | None:
        """Return what takes statistics as an exchange between processes has left them."""
        given = {address(tensor) for tensor in tensors} - {0}
        accounts = [
            account
            for account in self._accounts.values()
            if given & {address(each) for each in statistics_of(account.layer).values()}
        ]
        return (lambda: self._note_writes(accounts, "", None)) if accounts else None

    def saw_compiled_code(self) -> None:
        """Note that forwards may be unseen."""
        self.compiled = True

    def lineage(self, account: Account, layer: nn.Module) -> Lineage:
        """Return what led to the statistics that a layer, or what is in its place, has now."""
        with undisturbed():
            return self._lineage(account, State.of(layer))

    def _note_writes(self, accounts: list[Account], how: str, place: Place | None) -> None:
        for account in accounts:
            with undisturbed():
                now, history = State.of(account.layer), account.history
                known = history.of(now)
                if known is None:
                    known = Lineage() if now.is_new and how else history.latest[1]
                    known = replace(known, written=how, written_at=place) if how else known
                history.add(now, known)

    def _lineage(self, account: Account, state: State, *, by_call: bool = False) -> Lineage:
        known, (latest, lineage) = account.history.of(state), account.history.latest
        if known is not None:
            return known
        counted = state.differs_from(latest) == {"num_batches_tracked"}
        if counted and (by_call or lineage.by_calls):
            return lineage
        if state.is_new:
            return Lineage(written="reset")
        return replace(lineage, written="in-place")

    def _before(self, forward: _Forward) -> Lineage:
        """Return what led to the statistics before a forward.

        Where it begins an average anew, nothing of what was before matters, nor what wrote it.
        """
        momentum, state = forward.momentum, forward.before
        if state.is_new and (momentum is None or momentum == 1):
            return Lineage()
        return self._lineage(forward.account, state, by_call=forward.by_call)

    def _take(self, forward: _Forward, *, failed: bool) -> None:
        """Take a forward into its layer's account."""
        account, layer = forward.account, forward.account.layer
        after = State.of(layer)
        account.forwards += 1
        account.in_eval += not forward.training
        if not (forward.before.readable and after.readable) or in_transform():
            account.unreadable = True
            return
        moved = after.differs_from(forward.before)
        if failed and not moved:
            return
        if not self._updates(forward, moved):
            self._take_idle(forward, after)
            return
        account.updates += 1
        account.elsewhere += not account.history.origin.is_of(forward.before.tensors)
        old = self._before(forward)
        place = place_of_outermost_call(sys._getframe()) if old.wants_place else None
        account.history.add(after, self._advanced(old, forward, after, place))

    def _updates(self, forward: _Forward, moved: set[str]) -> bool:
        """Tell whether a forward was an update of the statistics."""
        if forward.momentum == 0 and not moved - {"num_batches_tracked"}:
            return False
        layer = forward.account.layer
        meant = forward.parts > 0 and getattr(layer, "track_running_stats", True)
        return bool(moved) or (meant and has_known_forward(layer) and not forward.by_call)

    def _take_idle(self, forward: _Forward, after: State) -> None:
        """Take in a forward that updated nothing."""
        account = forward.account
        if forward.parts or forward.training:
            account.idle += 1
            tracks = getattr(account.layer, "track_running_stats", True)
            account.by_momentum_zero += forward.momentum == 0 and tracks
            account.without_tracking += not tracks
        if after.differs_from(account.history.latest[0]):
            account.history.add(after, self._before(forward))

    def _advanced(
        self, old: Lineage, forward: _Forward, after: State, place: Place | None
    ) -> Lineage:
        """Return what led to the statistics after an update."""
        layer = forward.account.layer
        number = old.updates + 1
        judged = judge(layer, forward, after, number)
        batch = None
        if judged.batch is not None:
            batch = Batch.of(self.steps, judged.batch, judged.count)
        counted = None if forward.by_call else judged.counted
        rightly = {None, 1, forward.parts or 1} | ({0} if forward.momentum is not None else set())
        return replace(
            old.with_wrong(judged.wrong, meant=judged.guessed),
            updates=number,
            recomputed=old.recomputed + (current_graph_task_id() != -1),
            repeated=old.repeated + (batch in old.batches),
            in_eval=old.in_eval + (not forward.training),
            by_calls=old.by_calls + forward.by_call,
            uncounted=old.uncounted + (counted == 0),
            miscounted=old.miscounted + (counted not in rightly),
            lost=old.lost + judged.lost,
            unjudged=old.unjudged + (judged.batch is None),
            unknown=old.unknown + (judged.batch is None and judged.guessed),
            places=(*old.places, place) if old.wants_place else old.places,
            batches=old.with_batch(batch),
        )


def _address_of_mean(layer: nn.Module) -> int | None:
    """Return where a layer's running mean lies; None if nowhere."""
    mean = statistics_of(layer).get("running_mean")
    return None if mean is None else address(mean) or None
