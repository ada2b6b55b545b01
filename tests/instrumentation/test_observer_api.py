"""Who is told what happens, and in which thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from pytest_bninvariants.instrumentation import installation, observer_api
from pytest_bninvariants.instrumentation.observer_api import Observer, captures_here


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
