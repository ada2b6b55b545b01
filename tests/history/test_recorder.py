"""A recorder samples at steps, or at forwards, marks mode flips, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_bninvariants.batchnorm.drift import statistics_drift
from pytest_bninvariants.drift_history import DriftHistory
from pytest_bninvariants.history import recorder
from pytest_bninvariants.history.recorder import StatisticsRecorder
from tests.engine import Net, everything_wrapped


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.BatchNorm1d)}


def train(model: nn.Module, batch: Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(batch).square().mean().backward()
        optimizer.step()


class Recorded:
    """A recording that ends with its block."""

    history: DriftHistory

    def __init__(self, model: nn.Module) -> None:
        self._recorder = StatisticsRecorder(layers_of(model))

    def __enter__(self) -> Recorded:
        self._recorder.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._recorder.stop()
        self.history = self._recorder.history()


def test_columns_are_optimizer_steps_and_a_flip_is_marked_where_it_was(batch: Tensor) -> None:
    model = Net().eval()
    with Recorded(model) as recorded:
        train(model, batch, 3)
        model.train()
        train(model, batch, 2)
    history = recorded.history
    assert history.by == "optimizer step"
    assert history.samples == ("start", "step 1", "step 2", "step 3", "step 4", "step 5")
    (first, second) = history.layers
    assert (first.name, second.name) == ("backbone.bn", "neck")
    assert [drift is not None for drift in first.drifts] == [False] * 3 + [True] * 2
    (mark,) = history.marks
    assert mark.column == 3
    assert "Net.train(True) at " in mark.text
    assert "test_recorder.py" in mark.text


def test_a_layer_that_is_put_in_the_mode_that_it_has_is_not_marked(batch: Tensor) -> None:
    model = Net()
    with Recorded(model) as recorded:
        model.train()
        model(batch)
    assert recorded.history.marks == ()


@pytest.mark.parametrize("eps", [1e-5, 3.0])
def test_a_drift_is_measured_with_the_layers_own_eps(eps: float, batch: Tensor) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, eps=eps))
    before = model[0].running_mean.clone(), model[0].running_var.clone()
    with Recorded(model) as recorded:
        model(batch + 1)
    (drift,) = recorded.history.layers[0].drifts
    after = model[0].running_mean, model[0].running_var
    assert drift == statistics_drift(*before, *after, eps=eps)


def test_without_an_optimizer_columns_are_forwards(batch: Tensor) -> None:
    model = Net()
    with Recorded(model) as recorded:
        for _ in range(3):
            model(batch)
    history = recorded.history
    assert history.by == "forward"
    assert history.samples == ("start", "forward 1", "forward 2", "end")
    assert all(drift is not None for layer in history.layers for drift in layer.drifts)


def test_updates_in_backward_are_ticks_of_their_own_and_no_forward(batch: Tensor) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorded(model) as recorded:
        for _ in range(2):
            output = checkpoint(model, batch.clone().requires_grad_(), use_reentrant=False)
            output.square().mean().backward()
            optimizer.step()
    history = recorded.history
    assert history.by == "optimizer step"
    assert [(len(lane.ticks), len(lane.in_backward)) for lane in history.lanes] == [(4, 2), (4, 2)]
    assert len(history.steps) == 2
    moments = sorted([*history.steps, *(tick for lane in history.lanes for tick in lane.ticks)])
    assert moments == list(range(history.events))


def test_many_steps_are_merged_into_few_columns(
    batch: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "MOST_SAMPLES", 9)
    model = Net()
    with Recorded(model) as recorded:
        for step in range(60):
            model(batch)
            if step == 30:
                model.eval()
                model.train()
    history = recorded.history
    assert history.samples == (
        "start",
        *(f"forward {number}" for number in range(8, 60, 8)),
        "end",
    )
    (mark,) = history.marks
    assert history.samples[mark.column] == "forward 24"


def test_a_recording_changes_nothing_and_leaves_nothing(batch: Tensor) -> None:
    def run(*, recorded: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Net()
        if recorded:
            with Recorded(model):
                train(model, batch, 3)
        else:
            train(model, batch, 3)
        return {**model.state_dict(), "random": torch.rand(1)}

    before = everything_wrapped()
    bare, watched = run(recorded=False), run(recorded=True)
    assert all(torch.equal(bare[name], watched[name]) for name in bare)
    assert everything_wrapped() == before


def test_stopping_twice_is_stopping_once(batch: Tensor) -> None:
    made = StatisticsRecorder(layers_of(Net()))
    made.start()
    made.stop()
    made.stop()
    assert made.history().samples == ("start", "end")


def test_layers_without_statistics_and_lazy_ones_have_no_row(batch: Tensor) -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(2, track_running_stats=False), nn.LazyBatchNorm1d(), nn.BatchNorm1d(2)
    )
    with Recorded(model) as recorded:
        model(batch)
    assert [layer.name for layer in recorded.history.layers] == ["2"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers_of_several_dtypes_are_sampled_together(dtype: torch.dtype, batch: Tensor) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, dtype=dtype))
    with Recorded(model) as recorded:
        model[0](batch)
        model[1](batch.to(dtype))
    assert [layer.drifts[-1] is not None for layer in recorded.history.layers] == [True, True]
