"""Who is told what happens, and in which thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants import run_config
from pytest_bninvariants.instrumentation import installation, observer_api
from pytest_bninvariants.instrumentation.observer_api import Observer, captures_here
from pytest_bninvariants.run_config import RunConfig
from tests.instrumentation.recorder import Recorder, recording


def test_while_a_thread_captures_it_and_backwards_are_told_nothing_and_others_are() -> None:
    observer = Observer()
    installation.add(observer)
    in_backward: list[bool] = []
    leaf = torch.ones(2, requires_grad=True)
    leaf.register_hook(lambda _: in_backward.append(captures_here()))
    with ThreadPoolExecutor(1) as other:
        try:
            assert not captures_here()
            other.submit(observer_api.begin_capture).result()
            assert other.submit(captures_here).result()
            assert other.submit(observer_api.observers_here).result() == ()
            assert observer_api.observers_here() == (observer,)
            leaf.sum().backward()
        finally:
            other.submit(observer_api.end_capture).result()
            installation.discard(observer)
        assert not other.submit(captures_here).result()
    leaf.sum().backward()
    assert in_backward == [True, False]


def test_observers_that_are_alone_in_a_thread_are_so_until_the_block_ends() -> None:
    first, second = Observer(), Observer()
    installation.add(first)
    try:
        with observer_api.alone_in_this_thread((second,)):
            assert observer_api.observers_here() == (second,)
            with ThreadPoolExecutor(1) as other:
                assert other.submit(observer_api.observers_here).result() == (first,)
            with observer_api.alone_in_this_thread(()):
                assert observer_api.observers_here() == ()
            assert observer_api.observers_here() == (second,)
        assert observer_api.observers_here() == (first,)
    finally:
        installation.discard(first)


@pytest.mark.parametrize(
    ("method", "is_observed"),
    [
        ("saw_requires_grad_set", observer_api.any_observes_grad_switches),
        ("before_step", observer_api.any_observes_steps),
        ("saw_parameters_read", observer_api.any_observes_parameter_reads),
    ],
)
def test_what_one_observer_overrides_is_observed(method: str, is_observed: Any) -> None:
    hearing = type("Hearing", (Observer,), {method: lambda *_: None})()
    assert is_observed([Observer(), hearing])
    assert not is_observed([Observer()])
    assert not is_observed([])


def test_an_observer_ignores_by_default_what_is_neither_a_bn_layer_nor_compiled() -> None:
    observer, plain = Observer(), nn.Linear(1, 1)
    assert observer.ignores(plain)
    assert not observer.ignores(nn.BatchNorm1d(1))
    assert not observer.ignores(nn.ModuleDict({"_orig_mod": plain}))
    with run_config.activate(RunConfig(bn_layer_types=("Own",))):
        assert not observer.ignores(plain)
    plain.compile(backend="eager")
    assert not observer.ignores(plain)


def test_functions_are_combined_if_there_are_any() -> None:
    called: list[int] = []
    combined = observer_api.combined(lambda n=n: called.append(n) for n in (1, 2))
    assert combined is not None
    combined()
    assert called == [1, 2]
    assert observer_api.combined([]) is None


def test_a_module_is_observed_if_one_observer_does_not_ignore_it() -> None:
    deaf, hearing = Observer(), Recorder()
    for observer in (deaf, hearing):
        with recording(observer):  # type: ignore[arg-type]
            assert observer_api.is_observed(nn.Linear(1, 1)) == (observer is hearing)
            with recording(hearing):
                assert observer_api.is_observed(nn.Linear(1, 1))


def test_calls_are_observed_if_anyone_does() -> None:
    class Hearing(Observer):
        def saw_call(self, *_: object, **__: object) -> None:
            pass

    observers = [Observer(), Hearing()]
    for observer in observers:
        installation.add(observer)
    try:
        assert observer_api.calls_are_observed()
        installation.discard(observers[1])
        assert not observer_api.calls_are_observed()
    finally:
        for observer in observers:
            installation.discard(observer)
