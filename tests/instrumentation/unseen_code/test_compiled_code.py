"""Compilations and compiled code are heard, and wrappers make way for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.callback import callback_handler

from pytest_bninvariants import frozen
from pytest_bninvariants.instrumentation.norm_calls import norm_hooks
from pytest_bninvariants.torch_internals import dynamo
from tests.instrumentation.recorder import outcome_of, recording


def test_a_compilation_is_heard_and_listening_goes_on_after_it(net: Any, batch: Tensor) -> None:
    with recording() as recorder:
        torch.compile(net.neck, backend="eager")(torch.ones(2, 3, 1))
        net.head(torch.ones(1, 3))
    assert recorder.events("compilation")
    assert net.head in recorder.events("forward")


def test_ours_is_off_while_dynamo_compiles(net: Any, batch: Tensor) -> None:
    real = nn.Module._call_impl, nn.Module.__setattr__.__code__
    during: list[tuple[object, object]] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        during.append((nn.Module._call_impl, nn.Module.__setattr__.__code__))
        return graph.forward

    with recording():
        torch.compile(net, backend=backend)(batch)
        assert nn.Module._call_impl is not real[0]
        assert nn.Module.__setattr__.__code__ is not real[1]
    assert during
    assert set(during) == {real}


def test_a_failed_compilation_does_not_end_the_listening(net: Any, batch: Tensor) -> None:
    def backend(*_: object) -> Any:
        raise RuntimeError("no backend")

    with recording() as recorder:
        with pytest.raises(Exception, match="no backend"):
            torch.compile(net, backend=backend)(batch)
        net.head(torch.ones(1, 3))
    assert net.head in recorder.events("forward")


def test_a_step_that_clears_dynamos_callbacks_is_none_of_our_business(
    net: Any, batch: Tensor
) -> None:
    with frozen(net) as guard:
        callback_handler.clear()
        torch._dynamo.reset()
        net(batch)
    assert callback_handler.start_callbacks == callback_handler.end_callbacks == []
    assert outcome_of(guard) == (True, 4, 14)


def test_code_that_was_compiled_before_is_heard_of_when_it_runs(net: Any, batch: Tensor) -> None:
    compiled = torch.compile(lambda x: net(x), backend="eager")
    compiled(batch)
    assert dynamo.sees_compiled_code()
    with recording() as recorder:
        net.head(torch.ones(1, 3))
        assert not recorder.events("compilation")
        compiled(batch)
        assert recorder.events("compilation")
        assert not norm_hooks.off_for_compiled_code


def test_a_module_that_was_compiled_in_place_is_heard_to_run(net: Any) -> None:
    net.head.compile(backend="eager")
    with recording() as recorder:
        net.head(torch.ones(1, 3))
        assert recorder.events("forward")[0] is net.head
        assert not norm_hooks.off_for_compiled_code


def test_code_that_was_not_compiled_is_not_taken_for_it(net: Any, batch: Tensor) -> None:
    torch.compile(net, backend="eager")(batch)
    with recording() as recorder:
        net(batch)
        torch.compiler.disable(net)(batch)
    assert recorder.events("compilation") == []
