"""Torch is listened to without being disturbed, whatever else is put around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, frozen, frozen_bn
from pytest_bninvariants.instrumentation import installation, observer_api
from tests.instrumentation.recorder import Recorder, outcome_of, recording


def test_nothing_is_heard_before_and_after(net: Any, batch: Tensor) -> None:
    net.train()(batch)
    with recording() as recorder:
        pass
    net.train()(batch)
    torch.optim.SGD(net.parameters()).step()
    assert recorder.recorded == []


def test_every_observer_hears_until_it_leaves(net: Any, batch: Tensor) -> None:
    with recording() as outer:
        with recording() as inner:
            net.neck(torch.ones(1, 3, 1))
        net.head(torch.ones(1, 3))
    assert inner.events("forward") == [net.neck]
    assert outer.events("forward") == [net.neck, net.head]


def test_an_observer_that_leaves_twice_or_never_came_is_harmless(
    torch_state: Callable[[], dict[str, Any]],
) -> None:
    before = torch_state()
    with recording() as recorder:
        installation.discard(Recorder())
        installation.discard(recorder)
        assert torch_state() == before
    installation.discard(recorder)
    assert torch_state() == before


def test_who_comes_and_goes_while_others_are_heard_alone_leaves_nobody_behind() -> None:
    inside, go = threading.Barrier(3), threading.Barrier(3)

    def alone() -> None:
        with installation.observed_only_by(Recorder()):
            inside.wait()
            go.wait()

    early, late = Recorder(), Recorder()
    installation.add(early)
    threads = [threading.Thread(target=alone) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait()
    installation.discard(early)
    installation.add(late)
    go.wait()
    for thread in threads:
        thread.join()
    assert observer_api.active_observers == (late,)
    installation.discard(late)
    assert observer_api.active_observers == ()


def test_who_is_heard_alone_is_alone_in_its_own_thread_only() -> None:
    inside, go = threading.Event(), threading.Event()
    mine, others, theirs = nn.Linear(2, 2), nn.Linear(2, 2), Recorder()

    def alone() -> None:
        with installation.observed_only_by(theirs):
            others(torch.ones(1, 2))
            inside.set()
            go.wait()

    with recording() as recorder:
        thread = threading.Thread(target=alone)
        thread.start()
        inside.wait()
        mine(torch.ones(1, 2))
        go.set()
        thread.join()
    assert ("forward", mine) in recorder.recorded
    assert ("forward", others) not in recorder.recorded
    assert ("forward", others) in theirs.recorded
    assert ("forward", mine) not in theirs.recorded


def test_a_group_inside_another_is_heard_alone_until_it_ends() -> None:
    outer, inner, layer = Recorder(), Recorder(), nn.Linear(2, 2)
    with installation.observed_only_by(outer):
        with installation.observed_only_by(inner):
            layer(torch.ones(1, 2))
        assert inner.recorded
        assert not outer.recorded
        layer(torch.ones(1, 2))
        assert outer.recorded


def wrapper_of(original: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append("wrapped")
        return original(self, *args, **kwargs)

    return wrapped


@contextmanager
def wrapped(name: str, calls: list[str]) -> Iterator[None]:
    """Wrap one of Module's methods, whatever it is at the moment."""
    with mock.patch.object(nn.Module, name, wrapper_of(getattr(nn.Module, name), calls)):
        yield


@pytest.fixture
def put_back() -> Iterator[None]:
    names = "__call__", "_call_impl", "__setattr__"
    methods = {name: vars(nn.Module)[name] for name in names}
    yield
    for name, method in methods.items():
        setattr(nn.Module, name, method)


@pytest.mark.parametrize("name", ["__call__", "_call_impl", "__setattr__"])
def test_a_wrapper_around_ours_that_ends_within_the_step_is_seen_through(
    net: Any, batch: Tensor, name: str
) -> None:
    calls: list[str] = []
    with (
        pytest.raises(FrozenStateChanged),
        frozen_bn(net),
        wrapped(name, calls),
    ):
        net.train()(batch)
    assert calls


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("name", ["__call__", "_call_impl", "__setattr__"])
def test_a_wrapper_that_a_step_leaves_around_ours_does_not_break_the_next_guard(
    net: Any, batch: Tensor, name: str
) -> None:
    calls: list[str] = []
    with frozen_bn(net) as first:
        setattr(nn.Module, name, wrapper_of(getattr(nn.Module, name), calls))
        net.eval()(batch)
    assert outcome_of(first) == (True, 2, 10)
    for _ in range(2):
        with frozen_bn(net) as guard:
            net.eval()(batch)
        assert outcome_of(guard) == (True, 2, 10)
    with pytest.raises(FrozenStateChanged), frozen_bn(net):
        net.train()(batch)


def test_a_wrapper_around_ours_does_not_break_a_compilation_inside_it(
    net: Any, batch: Tensor
) -> None:
    calls: list[str] = []
    with frozen_bn(net) as guard:
        with wrapped("__setattr__", calls):
            torch.compile(net, backend="eager")(batch)
            net.neck.extra = 1
        net.eval()(batch)
    assert "wrapped" in calls
    assert outcome_of(guard) == (True, 2, 10)


def test_a_wrapper_that_ends_while_ours_is_around_it_is_not_brought_back(
    net: Any, batch: Tensor
) -> None:
    real = nn.Module._call_impl
    patch = mock.patch.object(nn.Module, "_call_impl", wrapper_of(real, []))
    patch.start()
    guard = frozen(net)
    guard.start()
    patch.stop()
    net.head.weight.data.add_(1)
    guard.finish()
    assert nn.Module._call_impl is real
