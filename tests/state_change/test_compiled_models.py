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
