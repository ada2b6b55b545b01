"""Measure what `bn_updates` and `trains` add to a training step of a resnet18, on the CPU.

Run as `python -m tests.benchmarks.speed.steps.training`; docs/performance.md has the table.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torchvision.models import resnet18

from pytest_bninvariants import bn_updates, trains

ROUNDS = 20


class WholeTraining:
    """Train all of a network.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        self._batch = torch.randn(8, 3, 64, 64), torch.arange(8)

    def time(self, around: AbstractContextManager[object]) -> float:
        """Return the processor's seconds for a step inside of something."""
        images, labels = self._batch
        start = time.process_time()
        with around:
            self._optimizer.zero_grad()
            F.cross_entropy(self.model(images), labels).backward()
            self._optimizer.step()
        return time.process_time() - start


def rows(training: WholeTraining, rounds: int = ROUNDS) -> Iterator[tuple[str, float, float]]:
    """Yield for each guard the seconds of a bare step, and the part that it adds, by pairs."""
    guards = {
        "bn_updates(model)": lambda: bn_updates(training.model),
        "trains(model)": lambda: trains(training.model),
        "trains(model, buffers=False)": lambda: trains(training.model, buffers=False),
    }
    bare: list[float] = []
    parts: dict[str, list[float]] = {name: [] for name in guards}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for guard in guards.values():
            training.time(guard())
        for _ in range(rounds):
            for name, guard in guards.items():
                bare.append(training.time(nullcontext()))
                parts[name].append(training.time(guard()) / bare[-1] - 1)
    for name, found in parts.items():
        yield name, median(bare), median(found)


def main() -> None:
    """Print the table."""
    for name, bare, part in rows(WholeTraining(resnet18(num_classes=10))):
        print(f"{name}: a step takes {bare * 1e3:.0f} ms of a processor, this adds {part:.1%}")


if __name__ == "__main__":
    main()
