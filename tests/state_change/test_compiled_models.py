"""Compiled, scripted and traced models are judged by what they did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.state_change.pairs import (
    BATCH,
    BATCH_STATISTICS,
    OwnForward,
    Pair,
    found,
    judged,
    run,
)

COMPILED: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "torch.compile": lambda m: torch.compile(m, backend="eager"),
    "in place": lambda m: (m.compile(backend="eager"), m)[1],
    "function": lambda m: torch.compile(lambda batch: m(batch), backend="eager"),
}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("compiled", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("bn", [nn.BatchNorm1d, OwnForward])
def test_compiled_code_is_judged_by_what_it_did(
    compiled: Callable[[nn.Module], Callable[[Tensor], Tensor]],
    warm: bool,
    bn: Callable[[int], nn.Module],
) -> None:
    for training in (False, True):
        torch._dynamo.reset()
        model = Pair(bn(2)).train(training)
        forward = compiled(model)
        if warm:
            forward(BATCH)
        verdict = judged(model, lambda _, f=forward: f(BATCH))
        assert verdict.holds != training


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("compiled", ["torch.compile", "in place"])
def test_a_compiled_module_without_stored_statistics_is_found(compiled: str, warm: bool) -> None:
    model = Pair(nn.BatchNorm1d(2, track_running_stats=False)).eval()
    forward = COMPILED[compiled](model)
    if warm:
        forward(BATCH)
    verdict = judged(model, lambda _: forward(BATCH))
    assert found(verdict) == BATCH_STATISTICS


@pytest.mark.parametrize("also", [True, False])
def test_a_number_of_batches_is_not_all_where_compiled_code_ran_too(also: bool) -> None:
    model = Pair(nn.BatchNorm1d(2).train())
    forward = COMPILED["torch.compile"](model)
    verdict = judged(model, lambda m: [m(BATCH), *([forward(BATCH)] if also else [])])
    why = verdict.causes[0].why
    assert "bn normalised 1 batch with batch statistics" in why
    assert (", and perhaps more in compiled code" in why) == also


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("compiled", ["torch.compile", "in place"])
def test_a_compiled_part_beside_eager_ones_is_judged_by_its_mode(
    compiled: str, alone: bool, training: bool
) -> None:
    kept = nn.BatchNorm1d(2, momentum=0.0)  # only its mode tells that it normalised
    kept.num_batches_tracked = None
    part: Any = COMPILED[compiled](kept if alone else nn.Sequential(kept))
    model = nn.Sequential(part, nn.BatchNorm1d(2)).eval()
    for mode in (True, False, training):
        kept.train(mode)
        model(BATCH)
    verdict = judged(model, lambda _: model(BATCH))
    assert verdict.holds != training
    assert [change.kind for change in verdict.changes] == ["batch-statistics"] * training


class WithUnusedLayer(Pair):
    """Hold a layer that its forward leaves out, such as an auxiliary head."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(2))
        self.unused = nn.BatchNorm1d(2)


@pytest.mark.parametrize("compiled", ["torch.compile", "in place"])
def test_a_layer_that_compiled_code_leaves_out_is_no_violation(compiled: str) -> None:
    model = WithUnusedLayer().train()
    forward = COMPILED[compiled](model)
    assert judged(model, lambda _: forward(BATCH), "unused").holds


def test_a_compiled_wrapper_itself_can_be_watched() -> None:
    model = torch.compile(Pair(nn.BatchNorm1d(2)), backend="eager")
    assert not judged(model, run).holds  # type: ignore[arg-type]
    model.eval()
    assert judged(model, run, "bn").holds  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_models_statistics_are_watched() -> None:
    model = torch.jit.script(Pair(nn.BatchNorm1d(2)))
    assert judged(model.eval(), run).holds
    verdict = judged(model.train(), run)
    assert {name for name, _ in found(verdict)} >= {"bn.running_mean", "bn.running_var"}


@pytest.mark.filterwarnings("ignore")
def test_a_traced_models_statistics_are_watched() -> None:
    model = torch.jit.trace(Pair(nn.BatchNorm1d(2)).train(), (BATCH,))
    verdict = judged(model.eval(), run)
    assert {name for name, _ in found(verdict)} >= {"bn.running_mean", "bn.running_var"}


class Two(nn.Module):
    """Two layers, of which a compiled function may run one."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem, self.neck = nn.Sequential(nn.Linear(5, 5), stem), nn.BatchNorm1d(2)

    def forward(self, batch: Tensor) -> Tensor:
        output: Tensor = self.neck(self.stem(batch))
        return output


def untracked() -> nn.Module:
    return nn.BatchNorm1d(2, track_running_stats=False)


class OwnUntracked(nn.BatchNorm1d):
    """A subclass with a forward of its own, as timm's layers have one."""

    def __init__(self) -> None:
        super().__init__(2, track_running_stats=False)

    def forward(self, batch: Tensor) -> Tensor:
        return nn.functional.batch_norm(batch, None, None, training=True).relu()


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("stem", [untracked, OwnUntracked])
def test_a_compiled_function_beside_eager_layers_hides_no_batch_statistics(
    stem: Callable[[], nn.Module], warm: bool
) -> None:
    model = Two(stem()).eval()
    run_stem = torch.compile(lambda batch: model.stem(batch), backend="eager")
    if warm:
        run_stem(BATCH)
    verdict = judged(model, lambda _: model.neck(run_stem(BATCH)))
    assert found(verdict) == {("stem.1", "batch-statistics")}


def test_a_layer_that_ran_eagerly_with_stored_statistics_is_not_judged_by_its_mode_then() -> None:
    kept = nn.BatchNorm1d(2, momentum=0.0)
    kept.num_batches_tracked = None
    model = Two(kept).train()
    double = torch.compile(lambda batch: kept(batch) if kept is None else batch, backend="eager")

    def step(_: nn.Module) -> None:
        double(BATCH)
        kept.eval()
        kept(BATCH)

    assert judged(model, step, "stem").holds


@pytest.mark.parametrize("compiled", ["torch.compile", "in place"])
def test_a_compiled_layer_with_a_forward_of_its_own_and_no_statistics_is_found(
    compiled: str,
) -> None:
    model = Two(OwnUntracked()).eval()
    forward = COMPILED[compiled](model)
    forward(BATCH)
    verdict = judged(model, lambda _: forward(BATCH))
    assert found(verdict) == {("stem.1", "batch-statistics")}
    assert [cause.name for cause in verdict.causes] == ["no-stored-statistics"]


@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
@pytest.mark.parametrize("compiled", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("excluded", [True, False])
def test_a_counter_that_is_excluded_or_put_back_does_not_hide_a_compiled_forward(
    compiled: Callable[[nn.Module], Callable[[Tensor], Tensor]], excluded: bool
) -> None:
    for training in (True, False):
        torch._dynamo.reset()
        model = Pair(nn.BatchNorm1d(2, momentum=0.0)).train(training)
        forward = compiled(model)

        def step(_: nn.Module, model: Any = model, forward: Any = forward) -> None:
            before = model.bn.num_batches_tracked.clone()
            forward(BATCH)
            if not excluded:
                model.bn.num_batches_tracked = before

        verdict = judged(model, step, exclude="*.num_batches_tracked" if excluded else ())
        assert found(verdict) == (BATCH_STATISTICS if training else set())


def test_a_layer_with_an_excluded_counter_that_compiled_code_leaves_out_is_no_violation() -> None:
    model = WithUnusedLayer().train()
    forward = torch.compile(model, backend="eager")
    exclude = ["unused.num_batches_tracked"]
    assert judged(model, lambda _: forward(BATCH), "unused", exclude=exclude).holds


SCRIPTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "scripted": torch.jit.script,
    "traced": lambda model: torch.jit.trace(model, (BATCH,)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("part", [True, False], ids=["a part", "whole"])
def test_a_scripted_or_traced_layer_without_statistics_is_found(
    script: Callable[[nn.Module], nn.Module], part: bool
) -> None:
    model: Any = Two(untracked()).eval()
    if part:
        model.stem = script(model.stem)
    else:
        model = script(model)
    verdict = judged(model, run)
    assert found(verdict) == {("stem.1", "batch-statistics")}
    assert [cause.name for cause in verdict.causes] == ["no-stored-statistics"]
    assert judged(model, run, "neck").holds


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_scripted_or_traced_layer_that_did_not_run_is_no_violation(
    script: Callable[[nn.Module], nn.Module],
) -> None:
    model: Any = Two(untracked()).eval()
    model.stem = script(model.stem)
    assert judged(model, lambda _: model.neck(BATCH)).holds


@pytest.mark.filterwarnings("ignore")
def test_a_traced_layer_keeps_the_mode_that_it_was_traced_in() -> None:
    kept = nn.BatchNorm1d(2, momentum=0.0)
    kept.num_batches_tracked = None
    for training in (True, False):
        model = torch.jit.trace(Pair(kept).train(training), (BATCH,))
        verdict = judged(model.train(not training), run)
        assert found(verdict) == (BATCH_STATISTICS if training else set())
