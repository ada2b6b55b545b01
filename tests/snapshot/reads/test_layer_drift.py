"""The drift of a layer, in the verdict of a guard around a real step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from pytest_bninvariants import FrozenStateChanged, Verdict, frozen, frozen_bn, run_config
from pytest_bninvariants.audit.auditor import Auditor
from pytest_bninvariants.state_change import before_after


def broken(model: nn.Module, step: Callable[[], object], *modules: str) -> Verdict:
    with pytest.raises(FrozenStateChanged) as failure, frozen(model, *modules):
        step()
    return failure.value.verdict


def drifts(verdict: Verdict) -> dict[str, float]:
    return {each.name: each.drift for each in verdict.changes if each.drift is not None}


def divergence(layer: nn.BatchNorm1d, mean: Tensor, var: Tensor) -> float:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    after = Normal(layer.running_mean, (layer.running_var + layer.eps).sqrt())
    return float(kl_divergence(Normal(mean, (var + layer.eps).sqrt()), after).mean())


def norms(*sizes: int, eps: float = 1e-5) -> nn.ModuleList:
    return nn.ModuleList(nn.BatchNorm1d(size, eps=eps) for size in sizes)


def run(layers: nn.ModuleList) -> None:
    for layer in layers:
        assert isinstance(layer, nn.BatchNorm1d)
        layer(torch.randn(16, layer.num_features))


@pytest.mark.parametrize("size", [1, 7, 5000])  # the last is no small tensor to a snapshot
def test_the_first_statistic_of_each_layer_has_the_drift_of_both(size: int) -> None:
    layers = norms(3, size, eps=0.1)
    verdict = broken(layers, lambda: run(layers))
    assert list(drifts(verdict)) == ["0.running_mean", "1.running_mean"]
    for layer, found in zip(layers, drifts(verdict).values(), strict=True):
        assert isinstance(layer, nn.BatchNorm1d)
        expected = divergence(layer, torch.zeros_like(layer.bias), torch.ones_like(layer.bias))
        assert found == pytest.approx(expected, rel=1e-3)


def test_a_variance_that_alone_moved_has_it() -> None:
    layers = norms(2)
    verdict = broken(layers, lambda: layers[0].running_var.fill_(2))
    assert list(drifts(verdict)) == ["0.running_var"]


def test_what_is_no_statistic_has_none() -> None:
    layers = norms(2)

    def step() -> None:
        layers[0].weight.data.add_(1)
        layers[0].num_batches_tracked.add_(1)

    assert drifts(broken(layers, step)) == {}


def test_a_statistic_that_is_lost_drifts_infinitely() -> None:
    layers = norms(2)
    verdict = broken(layers, lambda: layers[0].running_mean.fill_(torch.nan))
    assert drifts(verdict) == {"0.running_mean": torch.inf}
    assert "infinite drift" in " ".join(str(verdict).split())
    assert verdict.to_dict()["changes"][0]["drift"] == "inf"


def test_of_fingerprints_it_is_unknown() -> None:
    layers = norms(3, 5000)
    with run_config.override(snapshot_budget=0):
        verdict = broken(layers, lambda: run(layers))
    assert list(drifts(verdict)) == ["0.running_mean"]
    assert not next(each for each in verdict.changes if each.name == "1.running_mean").exact
    assert "drift" not in str(verdict).partition("1.running_mean")[2]


def test_where_one_statistic_is_not_watched_or_is_another_tensor_it_is_unknown() -> None:
    layers = norms(3)
    assert drifts(broken(layers, lambda: run(layers), "0.running_mean")) == {}

    def replace() -> None:
        layers[0].running_mean = torch.ones(3)
        layers[0].running_var = torch.ones(4)

    assert drifts(broken(layers, replace)) == {}

    def cast() -> None:
        layers[0].running_mean.fill_(3)
        layers[0].running_var = torch.ones(4).double()

    assert drifts(broken(layers, cast)) == {}


def test_the_eps_of_before_the_step_counts() -> None:
    layers = norms(1, eps=1.0)

    def step() -> None:
        layers[0].running_mean.fill_(1)
        layers[0].eps = 1e-5

    assert drifts(broken(layers, step)) == {"0.running_mean": pytest.approx(0.25)}


def test_layers_of_other_classes_and_without_eps_are_measured_too() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(2))
            self.register_buffer("running_var", torch.ones(2))

    model = nn.Sequential(Own())
    verdict = broken(model, lambda: model[0].running_mean.fill_(1))
    assert drifts(verdict) == {"0.running_mean": 0.5}


def test_a_guard_that_holds_computes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = norms(3).eval()
    asked: list[object] = []
    monkeypatch.setattr(before_after, "with_drift", lambda *args: asked.append(args))
    with frozen_bn(layers):
        run(layers)
    assert asked == []


def test_an_audit_tells_it_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].requires_grad_(False)
    auditor = Auditor()
    auditor.start()
    model(torch.randn(8, 2))
    (found,) = auditor.stop()
    assert drifts(found.verdict) == {
        "1.running_mean": pytest.approx(divergence(model[1], torch.zeros(2), torch.ones(2)), 1e-3)
    }


def test_a_row_shows_the_drift_and_the_last_of_many_rows_the_largest() -> None:
    layers = norms(*[2] * 12)
    verdict = broken(layers, lambda: run(layers))
    found = drifts(verdict)
    name, largest = max(found.items(), key=lambda pair: pair[1])
    layer = name.partition(".")[0]
    last = next(line for line in str(verdict).splitlines() if "drift" in line)
    assert last.split() == f"{layer} drift {largest:.2g} nats, the largest".split()
    alone = nn.ModuleList([layers[0]])
    one = broken(alone, lambda: run(alone))
    assert f"; drift {drifts(one)['0.running_mean']:.2g} nats" in " ".join(str(one).split())
