"""Many guarded steps, and a guard around many steps, hold no more than one does."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants import frozen, frozen_bn
from pytest_bninvariants.audit.auditor import Auditor

_COUNTED = ("torch.Tensor", "torch.nn.parameter.", "pytest_bninvariants.")
pytestmark = pytest.mark.filterwarnings("ignore")


def living() -> Counter[str]:
    """Count the tensors, and the objects of ours, that are alive."""
    gc.collect()
    names = (f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    return Counter(name for name in names if name.startswith(_COUNTED))


class Trainer:
    """Train the head of a model whose rest is frozen."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(90, 90), nn.BatchNorm1d(90), nn.Linear(90, 2)).eval()
        self.model[:2].requires_grad_(False)
        self.optimizer = torch.optim.SGD(self.model[2].parameters(), lr=0.1, momentum=0.9)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(3, 90)).sum().backward()
        self.optimizer.step()


GUARDS: dict[str, Callable[[nn.Module], Any]] = {
    "frozen": lambda model: frozen(model, "0", "1"),
    "frozen_bn": frozen_bn,
}


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
def test_many_guarded_steps_leave_no_object_behind(guard: Callable[[nn.Module], Any]) -> None:
    trainer = Trainer()

    def guarded(steps: int) -> Counter[str]:
        for _ in range(steps):
            with guard(trainer.model):
                trainer.step()
        return living()

    few = guarded(3)
    assert not guarded(50) - few


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
def test_a_guard_around_many_steps_holds_what_one_around_one_does(
    guard: Callable[[nn.Module], Any],
) -> None:
    trainer = Trainer()
    trainer.step()

    def around(steps: int) -> Counter[str]:
        with guard(trainer.model):
            for _ in range(steps):
                trainer.step()
            return living()

    around(1)  # its verdict is handed out when the test ends
    few = around(2)
    assert not around(50) - few


def test_an_audit_of_many_steps_holds_what_one_of_one_does() -> None:
    trainer = Trainer()
    trainer.model.train()

    def audited(steps: int) -> Counter[str]:
        auditor = Auditor()
        auditor.start()
        for _ in range(steps):
            trainer.step()
        held = living()
        auditor.stop()
        return held

    audited(1)
    few = audited(2)
    assert not audited(50) - few
