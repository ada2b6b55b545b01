"""A guarded run compiles the graphs that a bare one does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import frozen_bn
from tests.invariants.neutral_runs import (
    Compiled,
    Guard,
    OwnForward,
    around,
    audit,
    bare,
    everything,
    in_bytes,
    seed,
)


class SetsAttributes(nn.BatchNorm1d):
    def forward(self, batch: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0)
        return super().forward(batch)


class ByItsBuffers(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, batch: Tensor) -> Tensor:
        return (batch - self.running_mean) * self.running_var.rsqrt()


class Graphs:
    """A backend that keeps what it is given to compile."""

    def __init__(self) -> None:
        self.code: list[str] = []

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        self.code.append(graph.print_readable(print_output=False))
        return graph.forward


def as_module(model: nn.Module, backend: Graphs) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend=backend)  # type: ignore[return-value]


def in_place(model: nn.Module, backend: Graphs) -> Callable[[Tensor], Tensor]:
    model.compile(backend=backend)
    return model


def as_a_function(model: nn.Module, backend: Graphs) -> Callable[[Tensor], Tensor]:
    def forward(batch: Tensor) -> Tensor:
        return 2 * model(batch)

    return torch.compile(forward, backend=backend)  # type: ignore[return-value]


def a_part(model: Any, backend: Graphs) -> Callable[[Tensor], Tensor]:
    model.bn.compile(backend=backend)
    return model  # type: ignore[no-any-return]


COMPILE = {"module": as_module, "in place": in_place, "function": as_a_function, "part": a_part}


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "torch's": nn.BatchNorm1d,
    "own forward": OwnForward,
    "sets attributes": SetsAttributes,
    "by its buffers": ByItsBuffers,
}


def steps(model: nn.Module, forward: Callable[[Tensor], Tensor]) -> list[object]:
    """Train a little, switch modes and the size of the batch, and give what came out."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    out = []
    for size, training in ((4, True), (4, True), (4, False), (6, False), (4, True)):
        model.train(training)
        y = forward(torch.randn(size, 4))
        out.append(in_bytes(y))
        if training:
            optimizer.zero_grad()
            y.sum().backward()
            optimizer.step()
    return [*out, everything(model, [optimizer])]


def compiled_run(
    guard: Guard,
    compiling: Callable[[nn.Module, Graphs], Callable[[Tensor], Tensor]],
    layer: Callable[[int], nn.Module],
    when: str,
) -> tuple[list[str], dict[str, dict[str, int]], list[object]]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    seed()
    model, backend = Compiled(layer(3)), Graphs()
    forward = compiling(model, backend) if when != "inside" else model
    if when == "warm":
        forward(torch.randn(4, 4))
    out: list[object] = []
    with around(guard, model) if guard is not bare else bare(model):
        if when == "inside":
            forward = compiling(model, backend)
        out = steps(model, forward)
    out.append(in_bytes(forward(torch.randn(4, 4))))
    counters = torch._dynamo.utils.counters
    counted = {name: dict(counters[name]) for name in ("stats", "graph_break", "unimplemented")}
    return backend.code, counted, out


RUNS = [
    *itertools.product(COMPILE, ["torch's", "own forward"], ["cold", "warm", "inside"]),
    *itertools.product(["module"], ["sets attributes", "by its buffers"], ["cold", "inside"]),
]


@pytest.mark.parametrize(("how", "layer", "when"), RUNS)
def test_guarded_and_bare_runs_compile_the_same_graphs(how: str, layer: str, when: str) -> None:
    expected = compiled_run(bare, COMPILE[how], LAYERS[layer], when)
    graphs, counters, out = compiled_run(frozen_bn, COMPILE[how], LAYERS[layer], when)
    assert len(graphs) == len(expected[0])
    assert graphs or how == "part"  # a torch layer alone is not compiled by every torch
    assert graphs == expected[0]
    assert counters == expected[1]
    assert out == expected[2]


@pytest.mark.parametrize("when", ["cold", "warm", "inside"])
@pytest.mark.parametrize("how", COMPILE)
def test_audited_and_bare_runs_of_a_leak_compile_the_same_graphs(how: str, when: str) -> None:
    def leaking(features: int) -> nn.Module:
        return nn.BatchNorm1d(features).requires_grad_(False)

    expected = compiled_run(bare, COMPILE[how], leaking, when)
    assert compiled_run(audit, COMPILE[how], leaking, when) == expected


def test_a_second_guard_compiles_nothing_again() -> None:
    torch._dynamo.reset()
    seed()
    model, backend = Compiled(nn.BatchNorm1d(3)).eval(), Graphs()
    forward = as_module(model, backend)
    forward(torch.randn(4, 4))
    once = len(backend.code)
    for _ in range(3):
        with frozen_bn(model):
            forward(torch.randn(4, 4))
        forward(torch.randn(4, 4))
    assert len(backend.code) == once


def test_a_module_that_is_compiled_inside_a_guard_keeps_nothing_of_it() -> None:
    model = Compiled(nn.BatchNorm1d(3)).eval()
    with frozen_bn(model):
        compiled: Any = torch.compile(model, backend="eager")
        compiled(torch.randn(4, 4))
    assert torch._dynamo.eval_frame.innermost_fn(compiled.forward) == model.__call__


def test_a_module_that_is_compiled_in_place_inside_a_guard_keeps_nothing_of_it() -> None:
    model = Compiled(nn.BatchNorm1d(3)).eval()
    with frozen_bn(model):
        model.compile(backend="eager")
        model(torch.randn(4, 4))
    compiled: Any = model._compiled_call_impl
    assert torch._dynamo.eval_frame.innermost_fn(compiled) == model._call_impl
