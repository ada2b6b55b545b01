"""The invariant `trains`: what is to be trained does move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from pytest_bninvariants.errors import GateError, shown
from pytest_bninvariants.invariants import snapshot
from pytest_bninvariants.invariants.found import Found
from pytest_bninvariants.invariants.guards import Guard
from pytest_bninvariants.invariants.ledger import Ledger
from pytest_bninvariants.invariants.selection import (
    Names,
    Scope,
    Watched,
    has_stored_statistics,
    layers_of,
    names_of,
    own_tensors,
    select,
)
from pytest_bninvariants.invariants.spelling import model_of, names_among, spelled
from pytest_bninvariants.invariants.trainees import Trainee, Trainees
from pytest_bninvariants.invariants.undisturbed import undisturbed
from pytest_bninvariants.invariants.updating import diagnose as diagnose_updates
from pytest_bninvariants.invariants.verdict import Cause, CauseName, Change, Verdict
from pytest_bninvariants.invariants.wording import name_list, one_or_many


@dataclass(frozen=True, slots=True, kw_only=True)
class _Still:
    """A parameter that did not move.

    Args:
        name: its qualified name.
        seen: what was seen of it.
        asks: whether it asks for a gradient.
        twins: its other names, which were not asked to train.
        stepped: the optimizers that stepped.
        dtype: its dtype.
    """

    name: str
    seen: Trainee
    asks: bool
    twins: list[str]
    stepped: list[str]
    dtype: str


class TrainsGuard(Guard):
    """Hold that parameters move, and that BN layers update their statistics.

    Args:
        model: the model.
        scope: what is to be trained.
        spelling: the guard as its user wrote it.
        source: where the model was found; empty where it was passed.
    """

    def __init__(self, model: nn.Module, scope: Scope, spelling: str, source: str) -> None:
        super().__init__(model, spelling)
        self._scope, self._source = scope, source
        self._kept: dict[str, snapshot.Kept] = {}
        self._layers: dict[str, tuple[str, nn.Module]] = {}
        self._trainees: Trainees | None = None
        self._ledger: Ledger | None = None

    def _begin(self) -> None:
        with undisturbed():
            selection = select(self.model, self._scope)
            parameters = {
                key: each
                for key, each in selection.tensors.items()
                if each.kind == "parameter" and self._is_meant(each.tensor)
            }
            if not parameters:
                raise GateError(
                    f"{self.spelled}: no parameter there "
                    f"{'is' if self._scope.modules else 'has requires_grad=True'}: "
                    "there is nothing to train"
                )
            self._kept = snapshot.take(parameters)
        self._layers = {
            key: (selection.bn_names[key], layer)
            for key, layer in selection.bn_layers.items()
            if self._scope.buffers and has_stored_statistics(layer) and self._is_to_update(layer)
        }
        self._trainees = Trainees(each.tensor for each in parameters.values())
        self._ledger = Ledger((layer for _, layer in self._layers.values()), self.model)
        self._trainees.start()
        self._ledger.start()

    def _is_meant(self, parameter: Tensor) -> bool:
        return bool(self._scope.modules) or parameter.requires_grad

    def _is_to_update(self, layer: nn.Module) -> bool:
        own = (each for kind, _, each in own_tensors(layer) if kind == "parameter")
        return bool(self._scope.modules) or layer.training or any(p.requires_grad for p in own)

    def _end(self) -> None:
        if self._trainees is not None:
            self._trainees.stop()
        if self._ledger is not None:
            self._ledger.stop()

    def _judge(self) -> Verdict:
        with undisturbed():
            now = dict(Names.of(self.model).tensors())
            still = list(self._still(now))
            layers = [found for found in self._found() if _is_lacking(found)]
        changes = [_change(each.name, _told(each)) for each in still]
        changes += [_change(each.name, _told_of_layer(each)) for each in layers]
        return Verdict(
            guard=self.spelled,
            noun="trained part",
            broke="did not move",
            column="name",
            model=type(self.model).__name__,
            source=self._source,
            layers=len(self._kept) + len(self._layers),
            tensors=None,
            changes=tuple(changes),
            causes=(*_diagnose(still), *diagnose_updates(layers)),
        )

    def _still(self, now: dict[str, Watched]) -> Iterator[_Still]:
        """Yield the parameters whose bytes are what they were."""
        assert self._trainees is not None
        watched = {id(kept.watched.tensor) for kept in self._kept.values()}
        for key, kept in self._kept.items():
            held = now.get(key)
            tensor = kept.watched.tensor if held is None else held.tensor
            if not snapshot.unchanged(kept, tensor):
                continue
            same = (w.name for k, w in now.items() if w.tensor is tensor and k not in self._kept)
            yield _Still(
                name=kept.watched.name,
                seen=self._trainees.of(kept.watched.tensor),
                asks=tensor.requires_grad,
                twins=list(same) if id(tensor) in watched else [],
                stepped=self._trainees.stepped,
                dtype=str(tensor.dtype).removeprefix("torch."),
            )

    def _found(self) -> Iterator[Found]:
        assert self._ledger is not None
        held = layers_of(self.model)
        for key, (name, layer) in self._layers.items():
            yield Found.of(name, layer, held.get(key), self._ledger, times=1)


def _is_lacking(found: Found) -> bool:
    return found.updates == 0 or found.undone


def _change(name: str, text: str) -> Change:
    return Change(name=name, layer=name, kind="still", text=text)


def _told(still: _Still) -> str:
    seen = still.seen
    if not still.asks:
        return "did not move; requires_grad is False"
    if not seen.held_by:
        return "did not move; no optimizer that holds it stepped"
    return (
        f"did not move; {seen.held_by} (group {seen.group}) stepped with lr {seen.rate:g} and "
        f"{_GRADIENTS[seen.gradient].format(size=seen.size)}"
    )


_GRADIENTS = {
    "none": "no gradient",
    "zero": "a gradient of zeros",
    "nonzero": "a gradient of up to {size:.1e}",
}


def _told_of_layer(found: Found) -> str:
    return "its running statistics were put back" if found.undone else "0 updates of its statistics"


@dataclass(frozen=True, slots=True)
class _Rule:
    """A cause, when it applies to a parameter, and what it says of all of them."""

    cause: CauseName
    applies: Callable[[_Still], bool]
    why: Callable[[list[_Still]], str]
    fix: str


def _diagnose(still: Iterable[_Still]) -> Iterator[Cause]:
    """Explain each parameter by the first rule that applies."""
    grouped: dict[int, list[_Still]] = {}
    for each in still:
        number = next(number for number, rule in enumerate(RULES) if rule.applies(each))
        grouped.setdefault(number, []).append(each)
    for number in sorted(grouped):
        rule, found = RULES[number], grouped[number]
        names = [each.name for each in found]
        yield Cause(
            name=rule.cause,
            layers=tuple(names),
            tensors=tuple(names),
            why=f"{name_list(names)} {rule.why(found)}",
            fix=rule.fix.format(names=name_list(names)),
        )


def _of(found: list[_Still], one: str, many: str) -> str:
    return one_or_many([each.name for each in found], one, many)


def _why_tied(found: list[_Still]) -> str:
    twins = list(dict.fromkeys(twin for each in found for twin in each.twins))
    return (
        f"{_of(found, 'is the tensor of', 'are the tensors of')} {name_list(twins)}, too, "
        "which requires_grad=False has frozen under both names"
    )


def _why_unheld(found: list[_Still]) -> str:
    stepped = found[0].stepped
    if not stepped:
        return f"{_of(found, 'was', 'were')} not stepped for: no optimizer stepped at all"
    return f"{_of(found, 'is', 'are')} in no optimizer that stepped ({', '.join(stepped)} did)"


def _why_no_gradient(found: list[_Still]) -> str:
    return (
        f"had no gradient when {found[0].seen.held_by} stepped: no loss depended on "
        f"{_of(found, 'it', 'them')}, by way of what autograd records"
    )


RULES: tuple[_Rule, ...] = (
    _Rule(
        "tied",
        lambda each: not each.asks and bool(each.twins),
        _why_tied,
        "untie {names} (a Parameter of its own, with a copy of the values), or do not freeze it",
    ),
    _Rule(
        "requires-grad-off",
        lambda each: not each.asks,
        lambda found: f"{_of(found, 'has', 'have')} requires_grad=False",
        "call requires_grad_(True) on {names}, or leave out of what trains what is to be frozen",
    ),
    _Rule(
        "not-in-optimizer",
        lambda each: not each.seen.held_by,
        _why_unheld,
        "build the optimizer of {names}, after the last conversion or copy of the model; under "
        "GradScaler look whether the step was skipped",
    ),
    _Rule(
        "no-gradient",
        lambda each: each.seen.gradient == "none",
        _why_no_gradient,
        "look for detach(), no_grad() or .data between {names} and the loss, or a branch that "
        "this step does not run",
    ),
    _Rule(
        "zero-gradient",
        lambda each: each.seen.gradient == "zero",
        lambda found: f"had a gradient of zeros when {found[0].seen.held_by} stepped",
        "look for what multiplies by zero or saturates between {names} and the loss, or for "
        "zero_grad() between backward() and step()",
    ),
    _Rule(
        "learning-rate-0",
        lambda each: each.seen.rate == 0,
        lambda found: f"had a gradient, and a learning rate of 0 in {found[0].seen.held_by}",
        "give the group of {names} a learning rate, or look at its scheduler's warm-up",
    ),
    _Rule(
        "rounded-away",
        lambda _: True,
        lambda found: (
            f"had a gradient of up to {max(each.seen.size for each in found):.1e} and a learning "
            f"rate of {found[0].seen.rate:g}, and {_of(found, 'its', 'their')} values in "
            f"{found[0].dtype} stayed: the step was rounded away, undone, or made on another tensor"
        ),
        "where a BatchNorm follows, a bias before it has no effect: build that with bias=False; "
        "else keep {names} in float32, or look for what copies the old values back",
    ),
)
"""The first that applies explains a parameter."""


def trains(
    model: nn.Module,
    *modules: str,
    buffers: bool = True,
    exclude: Iterable[str] | str = (),
    _source: str = "",
) -> Guard:
    """Hold that every parameter moves, and that every BN layer in training updates its statistics.

    Args:
        model: the model.
        modules: qualified names of modules or tensors; a name covers its subtree, `*` and `?` work
            as in a shell. None: every parameter with requires_grad=True.
        buffers: hold it of running statistics, too.
        exclude: names that are left out.

    Returns:
        A context manager for one step.

    Raises:
        GateError: when entered, if there is nothing to train.
        InvariantBroken: when left, if something did not move.
    """
    if not isinstance(buffers, bool):
        raise GateError(f"buffers= takes True or False; got {shown(buffers)}")
    scope = Scope(modules=names_among(model, modules), exclude=names_of(exclude), buffers=buffers)
    options: dict[str, object] = {} if buffers else {"buffers": False}
    options |= {"exclude": exclude} if scope.exclude else {}
    spelling = spelled("trains", scope.modules, **options)
    return TrainsGuard(model_of("trains", model), scope, spelling, _source)
