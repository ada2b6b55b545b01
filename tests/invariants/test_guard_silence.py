"""Silence is never a pass: a step in which nothing ran, a guard that is used twice or never."""

from __future__ import annotations

import gc
import pickle
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import (
    GateError,
    frozen,
    frozen_bn,
    same_output,
)
from pytest_bninvariants.guard_registry import open_guards
from pytest_bninvariants.invariants.conclude import conclude
from pytest_bninvariants.invariants.guard import GuardNeverEntered
from tests.invariants.guard_steps import GUARDS, nothing, started
from tests.watching import watching


def only_the_mode(net: Any, batch: Tensor) -> None:
    net.train().eval()


def another_model(net: Any, batch: Tensor) -> None:
    type(net)().train()(batch)


def another_models_optimizer(net: Any, batch: Tensor) -> None:
    other = type(net)()
    other(batch).sum().backward()
    torch.optim.SGD(other.parameters(), lr=1.0).step()


def only_reading(net: Any, batch: Tensor) -> None:
    net.state_dict()
    list(net.parameters())
    [p.sum() for p in net.parameters()]
    net.zero_grad()
    net.requires_grad_(False).requires_grad_(True)
    repr(net)


def a_copy(net: Any, batch: Tensor) -> None:
    pickle.loads(pickle.dumps(net))(batch)


NOTHING = [
    nothing,
    only_the_mode,
    another_model,
    another_models_optimizer,
    only_reading,
    a_copy,
]


@GUARDS
@pytest.mark.parametrize("step", NOTHING)
def test_a_step_in_which_nothing_ran_is_a_gate_error(
    net: Any, batch: Tensor, guard: Any, step: Callable[[Any, Tensor], None]
) -> None:
    with pytest.raises(GateError, match="nothing ran inside frozen") as caught, guard(net):
        step(net, batch)
    assert "\n" not in str(caught.value)


@GUARDS
@pytest.mark.parametrize("watched", ["neck", "backbone"])
def test_a_forward_of_an_unwatched_part_does_not_count(
    net: Any, batch: Tensor, guard: Any, watched: str
) -> None:
    with pytest.raises(GateError, match="nothing ran"), guard(net, watched):
        net.head(torch.ones(1, 3))


def test_a_forward_of_a_layer_without_bn_does_not_count_for_frozen_bn(
    net: Any, batch: Tensor
) -> None:
    with pytest.raises(GateError, match="nothing ran"), frozen_bn(net, "backbone"):
        net.backbone.conv(batch)
    with watching(frozen(net, "backbone"), layers=2, tensors=7):
        net.backbone.conv(batch)


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize("part", ["self_attn", "self_attn.out_proj", "linear1", "norm2"])
def test_the_fast_path_of_a_transformer_counts_for_all_that_is_in_its_layers(
    part: str, fast_path: bool
) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    with frozen(model, f"layers.1.{part}"), torch.set_grad_enabled(not fast_path):
        model(torch.randn(2, 3, 8))
    with pytest.raises(GateError, match="nothing ran"), frozen(model, f"layers.1.{part}"):
        model.layers[0](torch.randn(2, 3, 8))


def test_an_excluded_layers_forward_does_not_count(net: Any, batch: Tensor) -> None:
    with pytest.raises(GateError, match="nothing ran"), frozen_bn(net, exclude="neck"):
        net.neck(torch.ones(2, 3, 1))


def an_optimizers_step(net: Any, batch: Tensor) -> None:
    net.head(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.0).step()


def an_optimizer_without_gradients(net: Any, batch: Tensor) -> None:
    torch.optim.SGD(net.head.parameters(), lr=1.0).step()


def a_write_elsewhere(net: Any, batch: Tensor) -> None:
    with torch.no_grad():
        net.head.weight += 1


def a_load(net: Any, batch: Tensor) -> None:
    net.load_state_dict(net.state_dict())


def a_new_module(net: Any, batch: Tensor) -> None:
    net.extra = nn.Linear(1, 1)


def a_forward_under_no_grad(net: Any, batch: Tensor) -> None:
    with torch.no_grad():
        net(batch)


def a_forward_in_inference_mode(net: Any, batch: Tensor) -> None:
    with torch.inference_mode():
        net(batch)


def a_forward_in_a_thread(net: Any, batch: Tensor) -> None:
    thread = threading.Thread(target=net, args=(batch,))
    thread.start()
    thread.join()


def a_functional_call(net: Any, batch: Tensor) -> None:
    torch.func.functional_call(net, dict(net.named_parameters()), (batch,))


def a_data_parallel_forward(net: Any, batch: Tensor) -> None:
    nn.DataParallel(net)(batch)


def one_layers_forward(net: Any, batch: Tensor) -> None:
    net.neck(torch.ones(2, 3, 1))


SOMETHING = [
    an_optimizers_step,
    an_optimizer_without_gradients,
    a_write_elsewhere,
    a_load,
    a_new_module,
    a_forward_under_no_grad,
    a_forward_in_inference_mode,
    a_forward_in_a_thread,
    a_functional_call,
    a_data_parallel_forward,
    one_layers_forward,
]


@pytest.mark.parametrize("step", SOMETHING)
@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
def test_a_step_in_which_something_ran_holds(
    net: Any, batch: Tensor, step: Callable[[Any, Tensor], None]
) -> None:
    with watching(frozen_bn(net), layers=2, tensors=10):
        step(net, batch)


@pytest.mark.parametrize("compiled", ["module", "in place", "function"])
def test_unknown_is_not_nothing_in_compiled_code(net: Any, batch: Tensor, compiled: str) -> None:
    forward: Callable[[Tensor], Tensor] = net
    if compiled == "module":
        forward = torch.compile(net, backend="eager")
    elif compiled == "in place":
        net.compile(backend="eager")
    else:
        forward = torch.compile(lambda batch: net(batch), backend="eager")
    forward(batch)
    with watching(frozen_bn(net), layers=2, tensors=10):
        forward(batch)


def test_a_guard_that_is_used_twice_is_a_gate_error(net: Any, batch: Tensor) -> None:
    guard = frozen(net)
    with guard:
        net(batch)
    with pytest.raises(GateError, match=r"frozen\(\) guards one step"), guard:
        net(batch)


def test_a_guard_that_is_entered_within_itself_is_a_gate_error(net: Any, batch: Tensor) -> None:
    guard = frozen(net)
    with guard:
        net(batch)
        with pytest.raises(GateError, match="guards one step"), guard:
            net(batch)
    assert guard.verdict is not None


def test_a_guard_that_was_never_started_cannot_finish(net: Any) -> None:
    guard = frozen(net)
    with pytest.raises(GateError, match="was never started"):
        guard.finish()


def test_a_guard_judges_once(net: Any, batch: Tensor) -> None:
    guard = frozen(net)
    guard.start()
    net(batch)
    assert guard.finish().holds
    with pytest.raises(GateError, match="was never started"):
        guard.finish()


@GUARDS
def test_a_guard_that_is_never_entered_warns_and_is_noted(
    net: Any, guard: Any, unreported: dict[int, str]
) -> None:
    line = sys._getframe().f_lineno + 2
    with pytest.warns(GuardNeverEntered, match=r"'neck'\), made at .*, was never entered"):
        guard(net, "neck")  # whose only reference this is
    noted = list(unreported.values())
    unreported.clear()  # else the plugin fails this test, as it should any other
    assert len(noted) == 1
    assert noted[0].startswith(f"{guard.__name__}('neck'), made at ")
    assert f"test_guard_silence.py:{line}, was never entered" in noted[0]


def test_a_guard_that_is_kept_and_never_entered_is_noted(
    net: Any, unreported: dict[int, str]
) -> None:
    kept = [frozen(net), frozen(net, "neck")]
    noted = len(unreported)
    for each in kept:
        each.stop()
    assert (noted, len(unreported)) == (2, 0)


def test_a_guard_that_was_entered_is_not_noted(
    net: Any, batch: Tensor, unreported: dict[int, str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watching(frozen(net), layers=4, tensors=14):
            net(batch)
        with pytest.raises(GateError), frozen(net, "typo"):
            pass
        with pytest.raises(GateError):
            frozen(net, parameters=3)  # type: ignore[arg-type]
        gc.collect()
    assert unreported == {}


def test_a_guard_that_is_entered_is_known_until_it_is_left(net: Any, batch: Tensor) -> None:
    guard = frozen(net)
    with guard:
        assert list(open_guards.values()) == [guard]
        assert "was entered and never left" in guard.left_open
        net(batch)
    assert open_guards == {}


def test_a_gate_error_wins_over_a_violation_and_carries_it(net: Any, batch: Tensor) -> None:
    guard = [started(net, "neck"), started(net, "head")]
    net.neck.train()(torch.randn(2, 3, 4))
    guards_of_another = started(type(net)())
    with pytest.raises(GateError, match="nothing ran") as caught:
        conclude([*guard, guards_of_another], None)
    assert any("neck" in note for note in caught.value.__notes__)


def test_every_guard_that_saw_nothing_is_named(net: Any) -> None:
    with pytest.raises(GateError) as caught:
        conclude([started(net, "neck"), started(net, "head")], None)
    assert "frozen('neck')" in str(caught.value)
    assert "frozen('head')" in str(caught.value)


def test_a_conversion_to_another_memory_format_counts_as_something_that_ran() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    with watching(frozen(model), layers=2, tensors=7):
        model.to(memory_format=torch.channels_last)
    with same_output(model, torch.randn(2, 3, 8, 8), atol=1e-4):
        model.to(memory_format=torch.contiguous_format)
