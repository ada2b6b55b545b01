"""Tools that run, trace, copy or average a model, and the causes that they lead to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_bninvariants import FrozenStateChanged, Verdict, frozen_bn

STATISTICS = ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")


class Small(nn.Module):
    def __init__(self, norm: type[nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.bn = norm(4)

    def forward(self, batch: Tensor) -> Tensor:
        return self.bn(self.linear(batch))


def batch() -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def verdict_of(model: nn.Module, step: Callable[[], object]) -> Verdict:
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        step()
    return caught.value.verdict


def the_cause(model: nn.Module, step: Callable[[], object]) -> Any:
    (cause,) = verdict_of(model, step).causes
    return cause


def test_update_bn_is_a_flip_by_a_tool() -> None:
    model = Small().eval()
    cause = the_cause(model, lambda: torch.optim.swa_utils.update_bn([batch()], model))
    assert cause.name == "mode-flip"
    assert cause.place.tool == "torch.optim.swa_utils.update_bn"


def test_a_trace_of_a_model_in_training_mode_names_the_tracer() -> None:
    model = Small().train()
    cause = the_cause(model, lambda: torch.jit.trace(model, batch(), check_trace=False))
    assert cause.name == "training-mode"
    assert "the forward was run by torch.jit._trace." in cause.why


def test_a_traced_model_that_shares_buffers_and_runs_later() -> None:
    model = Small().train()
    traced = torch.jit.trace(copy.deepcopy(model), batch(), check_trace=False)
    traced.bn.running_mean.set_(model.bn.running_mean)
    model.eval()
    cause = the_cause(model, lambda: traced(batch()))
    assert cause.name == "update-in-eval"
    assert cause.tensors == ("bn.running_mean",)
    assert "a module outside the model that shares their memory ran" in cause.why


def test_an_exported_model_that_runs_updates_the_one_it_came_from() -> None:
    model = Small().train()
    exported = torch.export.export(model, (batch(),)).module()
    model.eval()
    cause = the_cause(model, lambda: exported(batch()))
    assert cause.name == "update-in-eval"
    assert cause.tensors == STATISTICS
    assert cause.place.call.startswith("GraphModule")


def test_a_symbolically_traced_model_runs_the_very_layers() -> None:
    model = Small().train()
    traced = torch.fx.symbolic_trace(model)
    cause = the_cause(model, lambda: traced(batch()))
    assert cause.name == "training-mode"


@pytest.mark.parametrize("dynamo", [False, True])
def test_an_onnx_export_of_a_model_in_training_mode(dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    model = Small().train()
    options: dict[str, Any] = {"training": torch.onnx.TrainingMode.TRAINING}
    verdict = None
    try:
        with frozen_bn(model) as guard:
            torch.onnx.export(model, (batch(),), tmp_path / "m.onnx", dynamo=dynamo, **options)
    except FrozenStateChanged as failure:
        verdict = failure.verdict
    if dynamo and verdict is None:  # it exports functionally, and leaves the model alone
        assert guard.verdict is not None
        assert guard.verdict.holds
        return
    assert verdict is not None
    (cause,) = verdict.causes
    assert cause.name == "training-mode"
    assert cause.place is not None
    assert str(cause.place.tool).startswith("torch.onnx.")


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputation_in_training_mode_is_told_from_its_forward(reentrant: bool) -> None:
    model = Small().eval()
    inputs = batch().requires_grad_()

    def step() -> None:
        unchecked = {} if reentrant else {"determinism_check": "none"}
        y = checkpoint(model, inputs, use_reentrant=reentrant, **unchecked)
        model.train()
        y.sum().backward()
        model.eval()

    cause = the_cause(model, step)
    assert cause.name == "recomputation"
    assert "all in backward" in cause.why
    assert "of them again" not in cause.why
    assert cause.place.function == "step"
    assert cause.place.tool.startswith("torch.utils.checkpoint.")


def test_a_recomputation_that_follows_its_forward_is_counted() -> None:
    model = Small().train()
    inputs = batch().requires_grad_()
    cause = the_cause(
        model, lambda: checkpoint(model, inputs, use_reentrant=False).sum().backward()
    )
    assert cause.name == "training-mode"
    assert "normalised 2 batches with batch statistics, 1 of them again in backward" in cause.why


class AlwaysUpdates(nn.BatchNorm1d):
    def forward(self, batch: Tensor) -> Tensor:
        return nn.functional.batch_norm(batch, self.running_mean, self.running_var, training=True)


def test_a_forward_that_ignores_its_mode() -> None:
    model = Small(AlwaysUpdates).eval()
    cause = the_cause(model, lambda: model(batch()))
    assert cause.name == "update-in-eval"
    assert "bn was in eval and normalised 1 batch with batch statistics" in cause.why
    assert "training=self.training" in cause.fix


def test_an_update_in_eval_after_a_flip_there_and_back() -> None:
    model = Small(AlwaysUpdates).eval()
    assert the_cause(model, lambda: model.train().eval()(batch())).name == "update-in-eval"


def test_a_scripted_layer_in_training_mode_is_judged_by_its_mode() -> None:
    model = nn.Sequential(torch.jit.script(nn.BatchNorm1d(3))).train()
    assert the_cause(model, lambda: model(batch())).name == "training-mode"


def test_a_load_into_a_scripted_model_is_told() -> None:
    scripted = torch.jit.script(Small().eval())
    other = Small()
    other.bn.running_mean += 1

    def step() -> None:
        scripted(batch())
        scripted.load_state_dict(other.state_dict())

    assert the_cause(scripted, step).name == "loaded"


def test_what_another_rank_overwrites_is_a_broadcast(ranks: Callable[..., list[Any]]) -> None:
    first, second = ranks("broadcasting_rank.py")
    reduced = ["broadcast", ["bn.running_mean"], "torch.distributed.all_reduce()"]
    broadcast = ["broadcast", ["bn.running_mean"], "torch.distributed._broadcast_coalesced()"]
    assert first == {"wrap_and_run": None, "reduce": reduced}
    assert second == {"wrap_and_run": broadcast, "reduce": reduced}
