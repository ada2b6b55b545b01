"""Optimizer steps are heard."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pytest_bninvariants import frozen
from tests.instrumentation.recorder import recording


def test_steps_of_any_optimizer_are_heard(net: Any) -> None:
    class Own(Optimizer):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            pass

    made = [Own(net.parameters(), {}), torch.optim.Adam(net.parameters())]
    with recording() as recorder:
        for optimizer in made:
            optimizer.step()
    assert recorder.events("optimizer") == made


def test_a_step_inside_anothers_ends_first_and_both_are_heard_to_end(net: Any) -> None:
    plain = torch.optim.SGD(net.parameters())

    class Outer(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            plain.step()
            return super().step(closure)

    outer = Outer(net.parameters())
    with recording() as recorder:
        outer.step()
    assert recorder.events("optimizer") == [plain, outer, outer]


def test_an_optimizer_whose_step_raises_does_not_keep_its_model_alive() -> None:
    net = nn.Linear(2, 2)
    optimizer, weight = torch.optim.LBFGS(net.parameters()), weakref.ref(net.weight)

    def fails() -> float:
        raise ValueError

    with suppress(ValueError), frozen(net):
        net(torch.ones(1, 2))
        optimizer.step(fails)
    del net, optimizer
    gc.collect()
    assert weight() is None
