"""The invariant `bn_updates`: running statistics are updated so often, and rightly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from pytest_bninvariants.errors import GateError, shown
from pytest_bninvariants.invariants.guards import Guard
from pytest_bninvariants.invariants.ledger import Account, Ledger
from pytest_bninvariants.invariants.lineage import Lineage, State
from pytest_bninvariants.invariants.selection import (
    STATISTICS,
    Names,
    Scope,
    Selection,
    has_stored_statistics,
    names_of,
    own_tensors,
    select,
)
from pytest_bninvariants.invariants.snapshot import UNREADABLE
from pytest_bninvariants.invariants.spelling import model_of, names_among, spelled
from pytest_bninvariants.invariants.undisturbed import undisturbed
from pytest_bninvariants.invariants.updating import Found, diagnose
from pytest_bninvariants.invariants.verdict import Hazard, Verdict
from pytest_bninvariants.invariants.wording import name_list

Times = int | Literal["forwards"]
Per = Literal["step", "optimizer_step"]


@dataclass(frozen=True, slots=True)
class _Now:
    """A layer at the end of a step.

    Args:
        name: its qualified name.
        layer: the module that holds the name now; None if it is gone.
        account: what was seen of the one that held it at the start.
        lineage: what led to its statistics.
    """

    name: str
    layer: nn.Module | None
    account: Account
    lineage: Lineage


class UpdatesGuard(Guard):
    """Hold that BN layers update their running statistics so often, and as the reference says.

    Args:
        model: the model.
        scope: the layers.
        times: how many updates each makes, or `forwards` for one a forward.
        per: what these are counted for.
        spelling: the guard as its user wrote it.
        source: where the model was found; empty where it was passed.
    """

    def __init__(
        self, model: nn.Module, scope: Scope, times: Times, per: Per, spelling: str, source: str
    ) -> None:
        super().__init__(model, spelling)
        self._scope, self._times, self._per, self._source = scope, times, per, source
        self._selection: Selection | None = None
        self._ledger: Ledger | None = None

    def _begin(self) -> None:
        selection = select(self.model, self._scope)
        layers = {key: each for key, each in selection.bn_layers.items() if _tracks(each)}
        if not layers:
            raise GateError(
                f"{self.spelled}: none of the BN layers has running statistics "
                "(track_running_stats=False): there is nothing to update"
            )
        self._selection = selection
        self._layers = layers
        self._ledger = Ledger(layers.values(), self.model)
        self._ledger.start()

    def _end(self) -> None:
        if self._ledger is not None:
            self._ledger.stop()

    def _judge(self) -> Verdict:
        assert self._ledger is not None
        with undisturbed():
            layers = [each for each in self._now() if self._is_meant(each)]
            if not layers:
                raise GateError(self._told_of_none())
            ran = any(each.account.forwards for each in layers) or self._ledger.compiled
            if not ran and not any(each.lineage.written for each in layers):
                raise GateError(
                    f"nothing ran inside {self.spelled}: it saw no forward of a BN layer; run the "
                    "train step, on this very model, inside the guard"
                )
            times = self._expected()
            found = [self._found(each, times) for each in layers]
        return Verdict(
            guard=self.spelled,
            noun="BN layer",
            broke=_broke(found, times),
            column="layer",
            model=type(self.model).__name__,
            source=self._source,
            layers=len(layers),
            tensors=None,
            changes=tuple(change for each in found for change in each.changes()),
            causes=diagnose([each for each in found if not each.holds]),
            hazards=tuple(hazard for each in found for hazard in _hazards(each)),
            notes=tuple(_notes(found)),
        )

    def _now(self) -> Iterator[_Now]:
        assert self._selection is not None
        assert self._ledger is not None
        names = Names.of(self.model)
        held = {names.bare[name]: module for name, module in names.modules.items()}
        for key, layer in self._layers.items():
            account = self._ledger.of(layer)
            now = held.get(key)
            lineage = self._ledger.lineage(account, layer if now is None else now)
            yield _Now(self._selection.bn_names[key], now, account, lineage)

    def _is_meant(self, now: _Now) -> bool:
        """Tell whether a layer is to be judged: all are that were named, else what is trained."""
        if self._scope.modules or now.account.training or now.account.updates:
            return True
        parameters = own_tensors(now.account.layer)
        return any(kind == "parameter" and each.requires_grad for kind, _, each in parameters)

    def _told_of_none(self) -> str:
        return (
            f"{self.spelled}: no BN layer is in training: all are in eval and frozen; "
            "name those that must update"
        )

    def _expected(self) -> Times:
        assert self._ledger is not None
        if self._times == "forwards" or self._per == "step":
            return self._times
        if not self._ledger.steps:
            raise GateError(
                f"{self.spelled}: no optimizer that holds the model's parameters stepped, so there "
                "is no step to count for"
            )
        return self._times * self._ledger.steps

    def _found(self, now: _Now, times: Times) -> Found:
        assert self._ledger is not None
        account, layer = now.account, now.layer
        return Found(
            name=now.name,
            account=account,
            lineage=now.lineage,
            times=times,
            steps=self._ledger.steps,
            compiled=self._ledger.compiled,
            elsewhere=_elsewhere(account, layer),
            replaced=layer is not account.layer,
            training=layer is not None and layer.training,
            counted=_counted(account, layer),
            unsound=_unsound(layer),
        )


def _tracks(layer: nn.Module) -> bool:
    return has_stored_statistics(layer)


def _elsewhere(account: Account, layer: nn.Module | None) -> int:
    """Return how many updates were of tensors that functional_call put there, and took away."""
    returned = layer is not None and State.of(layer).shares_tensors(account.history.origin)
    return account.elsewhere if returned else 0


def _counted(account: Account, layer: nn.Module | None) -> int | None:
    """Return by how much the counter of a layer moved in the step; None if it has none."""
    old = account.history.origin.number
    new = None if layer is None else layer._buffers.get("num_batches_tracked")
    return None if old is None or new is None else int(new.item()) - old


def _unsound(layer: nn.Module | None) -> list[tuple[str, str]]:
    """Return the statistics that no forward could use, and what is wrong with them."""
    found = []
    for name in STATISTICS:
        value = None if layer is None else layer._buffers.get(name)
        try:
            values = None if value is None else value.detach().flatten().double()
            if values is None:
                continue
            bad = ~values.isfinite()
            if bool(bad.any()):
                found.append((name, f"{int(bad.sum())} of {len(bad)} values are not finite"))
            elif name == "running_var" and bool((values < 0).any()):
                found.append((name, f"{int((values < 0).sum())} of {len(bad)} values are negative"))
        except UNREADABLE:
            continue
    return found


def _broke(found: list[Found], times: Times) -> str:
    if not any(each.counts_wrongly for each in found):
        return "not updated as BatchNorm does it"
    if times == "forwards":
        return "not updated once a forward"
    return f"not updated exactly {'once' if times == 1 else f'{times} times'}"


def _hazards(found: Found) -> Iterator[Hazard]:
    if not found.holds:
        return
    if found.undone:
        text = "its running statistics were put back: the step leaves no update in them"
        yield Hazard(name=found.name, text=text)
    if found.lineage.uncounted:
        yield Hazard(name=found.name, text="its num_batches_tracked does not count its updates")


def _notes(found: list[Found]) -> Iterator[str]:
    by_counter = [each.name for each in found if each.by_counter]
    if by_counter:
        yield (
            f"{name_list(by_counter)} ran in compiled code, or in a way that cannot be seen into: "
            "judged by the counter"
        )
    unjudged = [each.name for each in found if each.lineage.unjudged and not each.by_counter]
    if unjudged:
        yield f"the values of {name_list(unjudged)} were not held against the reference"


def bn_updates(
    model: nn.Module,
    *modules: str,
    times: Times = 1,
    per: Per = "step",
    exclude: Iterable[str] | str = (),
    _source: str = "",
) -> Guard:
    """Hold that each BN layer in training updates its running statistics so often, and rightly.

    Each update must be what the reference says for the batch that the layer saw, within the bounds
    of `batchnorm/tolerance.py`, and count as one; statistics stay finite, with running_var >= 0;
    none is made inside of a backward, in eval, or twice with one batch in an optimizer's step.
    Updates that the step undoes itself, by a load or by copying the old values back, do not count.

    Args:
        model: the model.
        modules: qualified names of modules; a name covers its subtree, `*` and `?` work as in a
            shell. None: every BN layer that is in training mode when the step begins, has a
            parameter with requires_grad=True, or updates.
        times: how many updates each layer makes, or `"forwards"` for one in each forward.
        per: `"step"`, what the guard is around, or `"optimizer_step"`, each optimizer's step in it.
        exclude: names that are left out.

    Returns:
        A context manager for one step.

    Raises:
        GateError: when entered, if there is nothing to watch; when left, if nothing ran.
        InvariantBroken: when left, if a layer was not updated so often, or not rightly.
    """
    if times != "forwards" and (not isinstance(times, int) or isinstance(times, bool) or times < 0):
        raise GateError(f'times= takes a number from 0, or "forwards"; got {shown(times)}')
    if per not in ("step", "optimizer_step"):
        raise GateError(f'per= takes "step" or "optimizer_step"; got {shown(per)}')
    if times == "forwards" and per != "step":
        raise GateError('times="forwards" counts for each forward: leave per= out')
    scope = Scope(modules=names_among(model, modules), exclude=names_of(exclude), bn_only=True)
    options: dict[str, object] = {} if times == 1 else {"times": times}
    options |= {} if per == "step" else {"per": per}
    options |= {"exclude": exclude} if scope.exclude else {}
    spelling = spelled("bn_updates", scope.modules, **options)
    return UpdatesGuard(model_of("bn_updates", model), scope, times, per, spelling, _source)
