"""The invariant `trains`: what is to be trained does move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.invariants.bn_updates.layer_result import LayerResult
from pytest_bninvariants.invariants.bn_updates.rules import diagnose as diagnose_updates
from pytest_bninvariants.invariants.bn_updates.update_log import UpdateLog
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.invariants.signature import (
    module_names,
    option_names,
    refuse_wrong_calls,
    spell,
)
from pytest_bninvariants.invariants.trains.parameter_log import Trainees
from pytest_bninvariants.invariants.trains.rules import Parameter, diagnose
from pytest_bninvariants.selection.bn_layers import (
    has_stored_statistics,
    is_frozen_by_kind,
    is_to_update,
)
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.selection.submodules import modules_by_name
from pytest_bninvariants.snapshot.changes import is_unchanged
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.state_change import value_patterns
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Change, Hazard, Verdict


class TrainsGuard(Guard):
    """Hold that parameters move, and that BN layers update their statistics.

    Args:
        model: the model.
        scope: what is to be trained.
        spelling: the guard as its user wrote it.
    """

    def __init__(self, model: nn.Module, scope: Scope, spelling: str) -> None:
        super().__init__(model, spelling)
        self._scope = scope
        self._kept: Mapping[str, KeptTensor] = {}
        self._layers: dict[str, tuple[str, nn.Module]] = {}
        self._trainees: Trainees | None = None
        self._log: UpdateLog | None = None

    def _begin(self) -> None:
        with undisturbed():
            selection = select(self.model, self._scope)
            parameters = {
                key: each
                for key, each in selection.tensors.items()
                if each.kind == "parameter" and self._is_meant(each.tensor)
            }
            if not parameters:
                raise Refusal(
                    "no parameter there "
                    f"{'is' if self._scope.modules else 'has requires_grad=True'}: "
                    "there is nothing to train"
                )
            self._kept = take_snapshot(parameters)
        self._layers = {
            key: (selection.bn_names[key], layer)
            for key, layer in selection.bn_layers.items()
            if self._scope.buffers
            and has_stored_statistics(layer)
            and not is_frozen_by_kind(layer)
            and (self._scope.modules or is_to_update(layer))
        }
        self._trainees = Trainees(each.tensor for each in parameters.values())
        self._log = UpdateLog((layer for _, layer in self._layers.values()), self.model)
        self._trainees.start()
        self._log.start()

    def _is_meant(self, parameter: Tensor) -> bool:
        return bool(self._scope.modules) or parameter.requires_grad

    def _end(self) -> None:
        if self._trainees is not None:
            self._trainees.stop()
        if self._log is not None:
            self._log.stop()

    def _judge(self) -> Verdict:
        with undisturbed():
            parameters = list(self._parameters())
            layers = [found for found in self._found() if found.updates == 0 or found.undone]
        groups = {each.group for each in parameters if each.moved}
        still = [each for each in parameters if not each.trained]
        negligible = [each for each in still if each.is_negligible and each.group in groups]
        still = [each for each in still if each not in negligible]
        changes = [Change(name=p.name, layer=p.name, kind="still", text=p.text) for p in still]
        changes += [_change_of_layer(each) for each in layers]
        return Verdict(
            guard=self.spelled,
            noun="trainable part",
            broke="did not train",
            column="name",
            model=type(self.model).__name__,
            source=self.source,
            layers=len(self._kept) + len(self._layers),
            tensors=None,
            changes=tuple(changes),
            causes=(*diagnose(still), *diagnose_updates(layers)),
            hazards=tuple(Hazard(name=each.name, text=each.told_as_hazard) for each in negligible),
        )

    def _parameters(self) -> Iterator[Parameter]:
        """Yield the parameters as they are at the end."""
        assert self._trainees is not None
        now = ModelNames.from_model(self.model).tensors
        for key, kept in self._kept.items():
            tensor = now[key].tensor if key in now else kept.watched.tensor
            seen = self._trainees.of(kept.watched.tensor)
            stepped_bare = seen.moved and seen.gradient == "none"
            yield Parameter(
                name=kept.watched.name,
                seen=seen,
                moved=not is_unchanged(kept, tensor),
                asks=tensor.requires_grad,
                twins=[
                    w.name for k, w in now.items() if w.tensor is tensor and k not in self._kept
                ],
                shrank=stepped_bare and value_patterns.uniform_factor(kept, tensor) is not None,
                dtype=tensor.dtype,
                stepped=self._trainees.stepped,
            )

    def _found(self) -> Iterator[LayerResult]:
        assert self._log is not None
        held = modules_by_name(self.model)
        for key, (name, layer) in self._layers.items():
            yield LayerResult.from_log(name, layer, held.get(key), self._log, times=1)


def _change_of_layer(found: LayerResult) -> Change:
    text = "its running statistics were put back" if found.undone else "0 updates of its statistics"
    return Change(name=found.name, layer=found.name, kind="still", text=text)


@refuse_wrong_calls()
def trains(
    model: nn.Module,
    *modules: str,
    buffers: bool = True,
    exclude: Iterable[str] | str = (),
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
    scope = Scope(
        modules=module_names(model, modules), exclude=option_names(exclude), buffers=buffers
    )
    options: dict[str, object] = {} if buffers else {"buffers": False}
    options |= {"exclude": exclude} if scope.exclude else {}
    spelling = spell("trains", scope.modules, **options)
    return TrainsGuard(model, scope, spelling)
