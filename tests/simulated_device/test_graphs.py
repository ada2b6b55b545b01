"""A device graph, such as a CUDA graph: nothing of ours runs in a capture, and replays count."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import (
    FrozenStateChanged,
    GateError,
    InvariantBroken,
    accumulates,
    batch_invariant,
    bn_updates,
    frozen,
    frozen_bn,
    in_sync,
    same_output,
    trains,
)
from pytest_bninvariants.run_config import Trace, override
from tests.simulated_device.device import Counted, counted
from tests.simulated_device.models import DEVICE, batch, sgd, small_model


def new_graph() -> object:
    return torch.simdev.SIMDEVGraph()


def captured_forward(model: nn.Module, x: Tensor) -> object:
    graph = new_graph()
    with graph:
        model(x)
    return graph


def captured_step(model: nn.Module, x: Tensor) -> object:
    """Capture a whole training step, after one that makes gradients and moments."""
    optimizer = sgd(model, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()
    graph = new_graph()
    with graph:
        optimizer.zero_grad(set_to_none=False)
        model(x).square().sum().backward()
        optimizer.step()
    return graph


def test_a_replay_does_what_the_captured_step_does() -> None:
    torch.manual_seed(0)
    model = small_model()
    twin = small_model()
    twin.load_state_dict(model.state_dict())
    x = batch()
    graph = captured_step(model, x)
    captured_step(twin, x)
    before = {name: value.cpu() for name, value in model.state_dict().items()}
    for name, value in twin.state_dict().items():
        assert torch.equal(value.cpu(), before[name]), name  # a capture runs nothing
    graph.replay()
    changed = [n for n, value in model.state_dict().items() if not value.cpu().equal(before[n])]
    assert changed == list(before)


@pytest.mark.parametrize(
    "guard", [frozen, frozen_bn, bn_updates, trains], ids=lambda each: each.__name__
)
def test_a_replay_counts_as_a_run(guard: Callable[..., object]) -> None:
    model, x = small_model(), batch()
    if guard in (frozen, frozen_bn):
        model.eval()
    graph = captured_step(model, x) if guard is trains else captured_forward(model, x)
    with guard(model) as watched:
        graph.replay()
    assert watched.verdict.holds


def test_a_replay_of_layers_in_training_mode_is_told_with_what_to_do() -> None:
    model, x = small_model(), batch()
    graph = captured_forward(model, x)
    with pytest.raises(FrozenStateChanged) as broken, frozen_bn(model):
        graph.replay()
    text = " ".join(str(broken.value).split())
    assert "training-mode" in text
    assert "normalised with batch statistics in a device graph" in text
    assert "capture the graph after that" in text


def test_a_graph_that_was_captured_in_training_mode_moves_a_layer_in_eval() -> None:
    model, x = small_model(), batch()
    graph = captured_forward(model, x)
    model.eval()
    with pytest.raises(FrozenStateChanged) as broken, frozen_bn(model):
        graph.replay()
    assert "layers had when it was captured" in " ".join(str(broken.value).split())


def test_a_write_beside_no_graph_does_not_name_one() -> None:
    model, x = small_model().eval(), batch()

    def step() -> None:
        model(x)
        model[1].running_mean.data.add_(1)

    with pytest.raises(FrozenStateChanged) as broken, frozen_bn(model):
        step()
    assert "graph" not in str(broken.value)


def test_capture_and_replay_inside_a_guard() -> None:
    model, x = small_model(), batch()
    with pytest.raises(FrozenStateChanged) as broken, frozen_bn(model):
        captured_forward(model, x).replay()
    assert "in a device graph" in " ".join(str(broken.value).split())
    with frozen_bn(model.eval()) as guard:
        captured_forward(model, x).replay()
    assert guard.verdict.holds


def test_updates_in_replays_are_counted() -> None:
    model, x = small_model(), batch()
    graph = captured_forward(model, x)

    def replay_twice() -> None:
        graph.replay()
        graph.replay()

    with pytest.raises(InvariantBroken, match="2 updates"), bn_updates(model):
        replay_twice()
    with bn_updates(model):
        captured_forward(model, x).replay()


def test_without_a_replay_nothing_ran() -> None:
    model, x = small_model(), batch()
    graph = captured_forward(model, x)
    with pytest.raises(GateError, match="nothing ran"), frozen_bn(model):
        assert graph is not None
    with pytest.raises(GateError, match="nothing ran"), bn_updates(model):
        captured_forward(model, x)
    with frozen_bn(model):
        captured_forward(model, x)


def test_a_backward_in_a_graph_is_no_forward() -> None:
    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            graph.replay()
            return g

    other = nn.BatchNorm1d(5, track_running_stats=False).to(DEVICE)
    graph = captured_forward(other.eval(), batch())
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5, track_running_stats=False)).to(DEVICE)
    with frozen_bn(model):
        Replay.apply(model[0](batch())).sum().backward()


@pytest.mark.parametrize("guard", [frozen, bn_updates, trains], ids=lambda each: each.__name__)
def test_a_capture_has_the_operators_that_it_has_without_a_guard(
    guard: Callable[..., object],
) -> None:
    model, x = small_model(), batch()
    optimizer = sgd(model, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(x).square().sum().backward()
        optimizer.step()

    def capture() -> Counted:
        with new_graph(), counted() as happened:
            step()
        return happened

    step()
    bare = capture()
    watched = guard(model)
    watched.__enter__()
    guarded = capture()
    with suppress(InvariantBroken, GateError):
        watched.__exit__(None, None, None)
    assert guarded == bare


def test_a_layer_with_its_own_forward_is_not_looked_at_in_a_capture() -> None:
    class Own(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return (x - self.running_mean) / (self.running_var + self.eps).sqrt()

    model, x = nn.Sequential(nn.Linear(5, 5), Own(5)).to(DEVICE).eval(), batch()
    with frozen_bn(model), counted() as happened:
        captured_forward(model, x)
        model(x)
    assert happened["SYNC D2H copy"] <= 1  # the forward that ran


def test_a_trace_looks_at_nothing_in_a_capture() -> None:
    model, x = small_model(), batch()
    with override(trace=Trace()), pytest.raises(FrozenStateChanged), frozen_bn(model):
        captured_forward(model, x).replay()


GUARDS = {
    "frozen": lambda model, x: frozen(model),
    "bn_updates": lambda model, x: bn_updates(model),
    "trains": lambda model, x: trains(model),
    "same_output": lambda model, x: same_output(model, x),
}


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_is_refused_inside_a_capture(name: str) -> None:
    model, x = small_model(), batch()
    guard = GUARDS[name](model, x)
    with new_graph(), pytest.raises(GateError, match="entered while a graph is captured"):
        guard.__enter__()


def test_checks_are_refused_inside_a_capture() -> None:
    model, twin, x = small_model(), small_model(), batch()
    with new_graph(), pytest.raises(GateError, match="while a graph is captured"):
        in_sync(model, twin)
    with new_graph(), pytest.raises(GateError, match="while a graph is captured"):
        batch_invariant(model, x)
    with new_graph(), pytest.raises(GateError, match="while a graph is captured"):
        accumulates(model, x, 2, loss=lambda model, x: model(x).sum())


def test_a_guard_that_ends_inside_a_capture_is_refused() -> None:
    model, x = small_model().eval(), batch()
    guard = frozen_bn(model)
    guard.__enter__()
    model(x)
    with new_graph(), pytest.raises(GateError, match="left while a graph is captured"):
        guard.__exit__(None, None, None)


def test_a_model_of_the_cpu_is_judged_during_a_capture() -> None:
    model = nn.BatchNorm1d(3)
    with new_graph(), pytest.raises(FrozenStateChanged), frozen_bn(model):
        model.running_mean.add_(1)


def test_what_runs_after_a_capture_is_seen() -> None:
    model, x = small_model(), batch()

    def step() -> None:
        with suppress(ZeroDivisionError), new_graph():
            raise ZeroDivisionError("the capture failed")
        model(x)

    with pytest.raises(FrozenStateChanged, match="normalised 1 batch"), frozen_bn(model):
        step()


def test_a_capture_in_another_thread_hides_nothing_of_this_one() -> None:
    model, x = small_model(), batch()
    begun, ended = threading.Event(), threading.Event()

    def capture() -> None:
        with new_graph():
            begun.set()
            ended.wait(60)

    def step() -> None:
        thread = threading.Thread(target=capture)
        thread.start()
        begun.wait(60)
        model(x)
        ended.set()
        thread.join()

    with pytest.raises(FrozenStateChanged, match="training-mode"), frozen_bn(model):
        step()


def test_a_capture_that_does_not_begin_hides_nothing() -> None:
    class Broken(torch.simdev.SIMDEVGraph):
        def capture_begin(self) -> None:
            raise RuntimeError("there is no memory pool")

    model, x = small_model(), batch()

    def step() -> None:
        with suppress(RuntimeError), Broken():
            pass
        model(x)

    with pytest.raises(FrozenStateChanged, match="normalised 1 batch"), frozen_bn(model):
        step()


def test_a_replay_by_a_subclass_counts() -> None:
    class Own(torch.simdev.SIMDEVGraph):
        def replay(self) -> None:
            super().replay()

    model, x, graph = small_model().eval(), batch(), Own()
    with graph:
        model(x)
    with frozen_bn(model) as guard:
        graph.replay()
    assert guard.verdict.holds
