"""Measure what tracing adds to a training step of a resnet18, on the CPU.

Run as `python -m tests.benchmarks.speed.steps.tracing`; docs/tracing.md says how much it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torchvision.models import resnet18

from pytest_bninvariants import frozen, frozen_bn
from pytest_bninvariants.run_config import Trace, override

ROUNDS = 25
Around = Callable[[nn.Module], AbstractContextManager[object]]
GUARDS: dict[str, Around] = {
    "frozen_bn": lambda model: frozen_bn(model, parameters=False),
    "frozen": lambda model: frozen(model, exclude="fc"),
}
CLOSELY = Trace(names=frozenset({"bn1.running_mean"}))


class Training:
    """Train the head of a network whose rest is frozen, so that nothing that is watched changes."""

    def __init__(self) -> None:
        self.model = resnet18(num_classes=10).eval()
        self._optimizer = torch.optim.SGD(self.model.fc.parameters(), lr=0.1, momentum=0.9)
        self._batch = torch.randn(8, 3, 64, 64)

    def step(self) -> None:
        """Make one step."""
        self._optimizer.zero_grad()
        F.cross_entropy(self.model(self._batch), torch.arange(8)).backward()
        self._optimizer.step()

    def time(self, around: Around, trace: Trace | None = None) -> float:
        """Return the processor's seconds for a step, and for what a guard does around it."""
        with override(trace=trace):
            start = time.process_time()
            with around(self.model):
                self.step()
            return time.process_time() - start


def rows(rounds: int = ROUNDS) -> Iterator[tuple[str, float, float]]:
    """Yield for each guard, and way to trace, the seconds of a bare step and what tracing adds."""
    training = Training()
    for name, guard in GUARDS.items():
        for way, trace in (("all of it", Trace()), ("one tensor closely", CLOSELY)):
            bare, guarded, traced = [], [], []
            for _ in range(rounds):
                bare.append(training.time(nullcontext))
                guarded.append(training.time(guard))
                traced.append(training.time(guard, trace))
            yield f"{name}, {way}", median(bare), median(traced) - median(guarded)


def main() -> None:
    """Print the table."""
    for name, bare, added in rows():
        print(f"{name}: a step takes {bare * 1e3:.0f} ms, tracing adds {added / bare:.0%}")


if __name__ == "__main__":
    main()
