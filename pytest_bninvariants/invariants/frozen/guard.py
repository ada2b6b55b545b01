"""The invariants `frozen_bn` and `frozen`: state keeps its bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import nn

from pytest_bninvariants.errors import FrozenStateChanged, GateError, describe
from pytest_bninvariants.invariants.frozen import earlier_runs
from pytest_bninvariants.invariants.frozen.earlier_runs import BrokenGuard, GuardSlot
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.invariants.sharded_parameters import (
    refuse_parts_of_flat_parameters,
    refuse_sharded_since,
)
from pytest_bninvariants.invariants.signature import (
    module_names,
    option_names,
    refuse_wrong_calls,
    spell,
)
from pytest_bninvariants.invariants.trains.guard import TrainsGuard
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.state_change.before_after import StateBefore, read_state_before
from pytest_bninvariants.state_change.compare import StateDifference, compare
from pytest_bninvariants.state_change.witness import Witness
from pytest_bninvariants.verdict import Change, Verdict


class FrozenGuard(Guard):
    """Check that everything in a scope keeps its bytes.

    Args:
        spelling: the guard as its user wrote it.
        noun: what a verdict calls a layer.
        model: the model.
        scope: what to watch in it.
    """

    failure = FrozenStateChanged
    judges_halfway = True
    broken_by_writes = True

    def __init__(self, spelling: str, noun: str, model: nn.Module, scope: Scope) -> None:
        super().__init__(model, spelling)
        self._before: StateBefore | None = None
        self._slot: GuardSlot | None = None
        self._earlier: BrokenGuard | None = None
        self._kept: Mapping[str, KeptTensor] = {}
        self._noun = noun
        self._scope = scope
        self._witness: Witness | None = None

    def _begin(self) -> None:
        now = read_state_before(
            self.model, self._scope, earlier_runs.to_keep_exactly(self.model, self.spelling)
        )
        refuse_parts_of_flat_parameters(now.selection, self._scope)
        self._slot = earlier_runs.slot_for(self.model, self.spelling)
        last = None if self._slot is None else self._slot.last
        self._earlier = last if last is not None and last.is_as_left(now) else None
        self._before = now if self._earlier is None else self._earlier.before
        self._witness = Witness(self.model, now.selection)
        self._witness.start()
        self._kept = now.kept

    @property
    def watched_layers(self) -> frozenset[str]:
        """Return the names of the layers of which something must stay."""
        assert self._before is not None
        bare = self._before.selection.names.bare
        return frozenset(bare[name] for name in self._before.layers)

    def _pictured_layers(self) -> Mapping[str, nn.Module]:
        assert self._before is not None
        selection = self._before.selection
        return {selection.bn_names[key]: layer for key, layer in selection.bn_layers.items()}

    def _traced(self) -> Mapping[str, KeptTensor]:
        return self._kept

    def _end(self) -> None:
        if self._witness is not None:
            self._witness.stop()

    def _judge(self) -> Verdict:
        assert self._before is not None
        assert self._witness is not None
        known = self._earlier.lasting_changes if self._earlier else frozenset()
        difference = compare(self._before, self._witness, self._scope, known)
        if self._earlier is not None:
            difference, heard = _with_earlier(difference, self._earlier.heard)
            known |= heard
        if difference.changes:
            refuse_sharded_since(self._before.kept.tensors, self.model)
            self._remember(difference)
        elif not (difference.touched or self._witness.runs.saw_anything()):
            raise GateError(
                f"nothing ran inside {self.spelling}: it saw no forward of a watched layer, no "
                "step of an optimizer that holds the model's parameters and no other change of "
                "the model (a write through .data to what is not watched cannot be seen); run the "
                "train step, on this very model, inside the guard"
            )
        verdict = self._verdict(difference, known.intersection(difference.changes))
        # a guard that its user keeps must not keep the snapshot alive
        self._before = self._witness = self._earlier = self._slot = None
        self._kept = {}
        return verdict

    def _remember(self, difference: StateDifference) -> None:
        """Let a rerun of the test compare with the same state as this run."""
        assert self._before is not None
        earlier_runs.remember_inexact(
            self.model, self.spelling, self._before.kept, difference.changes
        )
        if self._slot is None:
            return
        self._slot.remember(
            BrokenGuard(
                model=self.model,
                before=self._before,
                changes=difference.changes,
                causes=difference.causes + (self._earlier.causes if self._earlier else ()),
            )
        )

    def _verdict(self, difference: StateDifference, old: Collection[Change]) -> Verdict:
        """Return the verdict.

        Args:
            difference: what differs, and why.
            old: the changes among them that an earlier run of the test had left.
        """
        assert self._before is not None
        return Verdict(
            guard=self.spelling,
            noun=self._noun,
            model=type(self.model).__name__,
            source=self.source,
            layers=len(self._before.layers),
            tensors=len(self._before.kept),
            changes=difference.changes,
            causes=difference.causes + (self._earlier.causes_of(old) if self._earlier else ()),
            hazards=difference.hazards,
            notes=(earlier_runs.NOTE,) if old else (),
        )


def _with_earlier(
    difference: StateDifference, heard: Iterable[Change]
) -> tuple[StateDifference, frozenset[Change]]:
    """Add what an earlier run heard of layers of which this run found nothing; return that, too.

    A model that outlived that run is no better for a run in which it behaved.
    """
    layers = {change.layer for change in difference.changes}
    added = tuple(change for change in heard if change.layer not in layers)
    return replace(difference, changes=difference.changes + added), frozenset(added)


def _guard(
    invariant: str,
    noun: str,
    model: nn.Module,
    scope: Scope,
    trains: Iterable[str] | str | None,
) -> Guard:
    names = () if trains is None else option_names(trains, "trains")
    if not names and trains is not None:
        raise GateError(f"trains= names what must train, and {describe(trains)} names nothing")
    guard = FrozenGuard(_spelling(invariant, scope, names), noun, model, scope)
    if not names:
        return guard
    beside = TrainsGuard(model, Scope(modules=names), spell("trains", names), frozen=scope)
    return guard.attach(beside)


def _spelling(invariant: str, scope: Scope, trains: tuple[str, ...]) -> str:
    options: dict[str, object] = {}
    if not scope.parameters:
        options["parameters"] = False
    if not scope.buffers:
        options["buffers"] = False
    if scope.allow_batch_stats:
        options["allow_batch_stats"] = True
    for name, names in (("exclude", scope.exclude), ("trains", trains)):
        if names:
            options[name] = names[0] if len(names) == 1 else list(names)
    return spell(invariant, scope.modules, **options)


@refuse_wrong_calls()
def frozen_bn(
    model: nn.Module,
    *modules: str,
    parameters: bool = True,
    buffers: bool = True,
    allow_batch_stats: bool = False,
    exclude: Iterable[str] | str = (),
    trains: Iterable[str] | str | None = None,
) -> Guard:
    """Check that every BN layer keeps its state, bit for bit, and never uses batch statistics.

    Args:
        model: the model; names are looked up in it again after the step.
        modules: qualified names of modules or tensors; a name covers its subtree, `*` and `?` work
            as in a shell, wrapper prefixes such as `module.` may be left out. Without any: all BN
            layers.
        parameters: watch weight and bias.
        buffers: watch running statistics, and refuse batch statistics.
        allow_batch_stats: let the layers normalise with batch statistics.
        exclude: names to leave out.
        trains: names of modules or tensors that must train in the same step, as the invariant
            `trains` checks it; what the guard freezes among them need not.

    Returns:
        A context manager for one step.

    Raises:
        GateError: when entered, if there is nothing to watch; when left, if nothing ran.
        FrozenStateChanged: when left, if a layer changed.
        InvariantBroken: when left, if something named in `trains` did not train.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import FrozenStateChanged, frozen_bn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).eval()
        >>> with frozen_bn(model) as guard:
        ...     _ = model(torch.randn(4, 3))
        >>> guard.verdict.holds, guard.verdict.layers, guard.verdict.tensors
        (True, 1, 5)
        >>> try:
        ...     with frozen_bn(model):
        ...         _ = model.train()(torch.randn(4, 3))
        ... except FrozenStateChanged as changed:
        ...     print(str(changed).splitlines()[0])
        1 of 1 frozen BN layer changed: 1 (mode-flip)
    """
    scope = Scope(
        modules=module_names(model, modules),
        exclude=option_names(exclude),
        parameters=parameters,
        buffers=buffers,
        allow_batch_stats=allow_batch_stats,
        bn_only=True,
    )
    return _guard("frozen_bn", "frozen BN layer", model, scope, trains)


@refuse_wrong_calls()
def frozen(
    model: nn.Module,
    *modules: str,
    parameters: bool = True,
    buffers: bool = True,
    allow_batch_stats: bool = False,
    exclude: Iterable[str] | str = (),
    trains: Iterable[str] | str | None = None,
) -> Guard:
    """Check that all parameters and buffers keep their bytes, and BN layers as `frozen_bn` does.

    Its arguments, result and exceptions are those of `frozen_bn`; without names of modules, it
    watches the whole model.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import FrozenStateChanged, frozen
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
        >>> _ = model[0].requires_grad_(False)
        >>> def train_step():
        ...     optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
        ...     model(torch.randn(4, 3)).sum().backward()
        ...     optimizer.step()
        >>> with frozen(model, "0", trains="1"):
        ...     train_step()
        >>> try:
        ...     with frozen(model):
        ...         train_step()
        ... except FrozenStateChanged as changed:
        ...     print(str(changed).splitlines()[0])
        1 of 2 frozen layers changed: 1 (gradient-step)
    """
    scope = Scope(
        modules=module_names(model, modules),
        exclude=option_names(exclude),
        parameters=parameters,
        buffers=buffers,
        allow_batch_stats=allow_batch_stats,
    )
    return _guard("frozen", "frozen layer", model, scope, trains)
