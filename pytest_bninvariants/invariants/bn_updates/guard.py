"""The invariant `bn_updates`: running statistics get the expected number of correct updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from torch import nn

from pytest_bninvariants.checks import is_int
from pytest_bninvariants.errors import GateError, Refusal, describe
from pytest_bninvariants.invariants.bn_updates.hazards import hazards_of, notes_about
from pytest_bninvariants.invariants.bn_updates.layer_result import LayerResult, results_from_log
from pytest_bninvariants.invariants.bn_updates.rules.order import diagnose
from pytest_bninvariants.invariants.bn_updates.update_log import UpdateLog
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.invariants.signature import (
    module_names,
    option_names,
    refuse_wrong_calls,
    spell,
)
from pytest_bninvariants.selection.bn_layers import has_stored_statistics
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Verdict

Times = int | Literal["forwards"]
Per = Literal["step", "optimizer_step"]


class UpdatesGuard(Guard):
    """Check that BN layers update their running statistics as often as expected, and correctly.

    Args:
        model: the model.
        scope: the layers.
        times: how many updates each must make, or `forwards` for one per forward.
        per: whether `times` counts per step of the guard or per step of an optimizer.
        spelling: the guard as its user wrote it.
    """

    def __init__(
        self, model: nn.Module, scope: Scope, times: Times, per: Per, spelling: str
    ) -> None:
        super().__init__(model, spelling)
        self._scope, self._times, self._per = scope, times, per
        self._layers: dict[str, tuple[str, nn.Module]] = {}
        self._log: UpdateLog | None = None

    def _begin(self) -> None:
        selection = select(self.model, self._scope)
        self._layers = {
            key: (selection.bn_names[key], layer)
            for key, layer in selection.bn_layers.items()
            if has_stored_statistics(layer)
        }
        if not self._layers:
            raise Refusal(
                "none of the BN layers has running statistics (track_running_stats=False): there "
                "is nothing to update"
            )
        self._log = UpdateLog(
            (layer for _, layer in self._layers.values()),
            self.model,
            on_purpose=bool(self._scope.modules) and self._times != 0,
        )
        self._log.start()

    def _pictured_layers(self) -> Mapping[str, nn.Module]:
        return dict(self._layers.values())

    @property
    def watched_layers(self) -> frozenset[str]:
        """Return the names of the layers whose updates it counts."""
        return frozenset(self._layers)

    def _end(self) -> None:
        if self._log is not None:
            self._log.stop()

    def _judge(self) -> Verdict:
        assert self._log is not None
        with undisturbed():
            found = self._results()
            results = [each for each in found if self._scope.modules or each.is_to_update]
            self._insist_on_updates_to_judge(results, found)
            counts = {each.updates for each in results if not each.shared_by}
            equally_often = len(counts) == 1
            results = [replace(each, equally_often=equally_often) for each in results]
        return Verdict(
            guard=self.spelling,
            noun="BN layer",
            broke=_broken_text(results, self._times, self._per),
            column="layer",
            model=type(self.model).__name__,
            source=self.source,
            layers=len(results),
            tensors=None,
            changes=tuple(change for each in results for change in each.changes()),
            causes=diagnose([each for each in results if not each.holds]),
            hazards=(*hazards_of(results, found), *self._log.unregistered.hazards()),
            notes=tuple(notes_about(results)),
        )

    def _results(self) -> list[LayerResult]:
        assert self._log is not None
        steps = 1 if self._per == "step" else self._log.steps
        return results_from_log(self._layers, self.model, self._log, self._times, steps)

    def _insist_on_updates_to_judge(
        self, results: list[LayerResult], found: list[LayerResult]
    ) -> None:
        assert self._log is not None
        if not results and not any(each.record.began_in_training for each in found):
            raise Refusal(
                "no BN layer is in training: all are in eval and frozen; name those that must "
                "update"
            )
        ran = any(each.record.forwards or each.provenance.written for each in results or found)
        ran |= any(each.replaced and not each.holds for each in results)
        if not (ran or self._log.compiled):
            raise GateError(
                f"nothing ran inside {self.spelling}: it saw no forward of a BN layer; run the "
                "train step, on this very model, inside the guard"
            )
        if self._per == "optimizer_step" and not self._log.steps:
            raise Refusal(
                "no optimizer that holds the model's parameters stepped, so there is no step to "
                "count updates in"
            )


def _broken_text(results: list[LayerResult], times: Times, per: Per) -> str:
    if not any(each.counts_wrongly for each in results):
        return "not updated as BatchNorm does it"
    if times == "forwards":
        return "not updated once a forward"
    often = "once" if times == 1 else f"{times} times"
    where = " in each optimizer step" if per == "optimizer_step" else ""
    return f"not updated exactly {often}{where}"


@refuse_wrong_calls()
def bn_updates(
    model: nn.Module,
    *modules: str,
    times: Times = 1,
    per: Per = "step",
    exclude: Iterable[str] | str = (),
) -> Guard:
    """Check that each BN layer in training makes `times` correct updates of its statistics.

    Each update must match what the reference makes of the layer's batch, within the bounds of
    docs/tolerance.md, and count as one. Statistics must stay finite, with running_var >= 0. No
    update may run inside a backward pass, in eval, or twice with the same batch before an optimizer
    steps. Updates that the step itself undoes, by a load or by copying the old values back, do not
    count.

    Args:
        model: the model.
        modules: qualified names of modules; a name covers its subtree, `*` and `?` work as in a
            shell. Without any: every BN layer that has a parameter with requires_grad=True or
            runs in training mode.
        times: how many updates each layer must make, or `"forwards"` for one in each forward.
        per: `"step"`: `times` counts the updates inside the guard; `"optimizer_step"`: it counts
            them for each step of an optimizer that holds parameters of the model. A step taken
            inside another optimizer's step counts as part of it.
        exclude: names to leave out.

    Returns:
        A context manager for one step.

    Raises:
        GateError: when entered, if there is nothing to watch; when left, if nothing ran.
        InvariantBroken: when left, if a layer made another number of updates, or a wrong one.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import InvariantBroken, bn_updates
        >>> model = torch.nn.BatchNorm1d(2)
        >>> with bn_updates(model) as guard:
        ...     _ = model(torch.randn(4, 2))
        >>> guard.verdict.holds, guard.verdict.layers
        (True, 1)
        >>> try:
        ...     with bn_updates(model):
        ...         _ = model(torch.randn(4, 2)), model(torch.randn(4, 2))
        ... except InvariantBroken as broken:
        ...     print(str(broken).splitlines()[0])
        1 of 1 BN layer not updated exactly once: the model (extra-forward)
    """
    if times != "forwards" and (not is_int(times) or times < 0):
        raise GateError(f'times= takes a whole number >= 0, or "forwards"; got {describe(times)}')
    if per not in ("step", "optimizer_step"):
        raise GateError(f'per= takes "step" or "optimizer_step"; got {describe(per)}')
    if times == "forwards" and per != "step":
        raise GateError('times="forwards" counts for each forward: leave per= out')
    scope = Scope(modules=module_names(model, modules), exclude=option_names(exclude), bn_only=True)
    options: dict[str, object] = {} if times == 1 else {"times": times}
    options |= {} if per == "step" else {"per": per}
    options |= {"exclude": exclude} if scope.exclude else {}
    spelling = spell("bn_updates", scope.modules, **options)
    return UpdatesGuard(model, scope, times, per, spelling)
