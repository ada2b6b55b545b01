"""Who reads parameters is heard, and which of them an optimizer is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.optim import Optimizer

from pytest_bninvariants.instrumentation import installation
from pytest_bninvariants.instrumentation.observer_api import Observer
from pytest_bninvariants.instrumentation.parameter_reads import ParameterReadHooks


class Listener(Observer):
    def __init__(self) -> None:
        self.read: list[nn.Module] = []
        self.optimizers: list[Optimizer] = []

    def saw_parameters_read(self, module: nn.Module) -> None:
        self.read.append(module)

    def saw_param_group(self, optimizer: Optimizer) -> None:
        self.optimizers.append(optimizer)


def heard(step: Any) -> Listener:
    listener = Listener()
    installation.add(listener)
    try:
        step()
    finally:
        installation.discard(listener)
    return listener


def test_whoever_reads_parameters_is_heard_before_the_first_is_read() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for read in (
        lambda: next(model.parameters()),
        lambda: dict(model.named_parameters()),
        lambda: model.requires_grad_(False),
        lambda: model.state_dict(),
    ):
        assert heard(read).read[0] is model


def test_groups_of_an_optimizer_are_heard_when_it_is_made_and_when_one_is_added() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    made: list[Optimizer] = []

    def make() -> None:
        made.append(torch.optim.SGD(first.parameters(), lr=0.1))
        made[0].add_param_group({"params": second.parameters()})

    listener = heard(make)
    assert listener.optimizers == [made[0], made[0]]
    assert len(made[0].param_groups) == 2


def test_compiled_code_that_reads_parameters_is_compiled_once() -> None:
    model, counter = nn.Linear(2, 2), CompileCounter()

    @torch.compile(backend=counter, fullgraph=True)
    def norm(x: torch.Tensor) -> torch.Tensor:
        return x + sum(parameter.sum() for parameter in model.parameters())

    def run_twice() -> None:
        norm(torch.ones(2))
        norm(torch.ones(2))

    heard(run_twice)
    run_twice()
    heard(run_twice)
    assert counter.frame_count == 1


def test_parameters_are_heard_to_be_read_after_compiled_code_has_run() -> None:
    model = nn.Linear(2, 2)

    @torch.compile(backend="eager")
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    def step() -> None:
        double(torch.ones(2))
        model.requires_grad_(False)

    assert heard(step).read[0] is model


def test_wrappers_are_put_back_only_while_somebody_wants_them() -> None:
    hooks, bare = ParameterReadHooks(), nn.Module.named_parameters
    hooks.resume()
    assert nn.Module.named_parameters is bare
    hooks.install()
    assert nn.Module.named_parameters is not bare
    hooks.suspend()
    assert nn.Module.named_parameters is bare
    hooks.resume()
    assert nn.Module.named_parameters is not bare
    hooks.remove()
    hooks.resume()
    assert nn.Module.named_parameters is bare
