"""Measure what watching adds to a training step of a resnet18 with frozen BN layers, on the CPU.

Run as `python -m tests.benchmarks.speed.steps.watching`; docs/causes/evidence.md and docs/audit.md
say how much it is.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torchvision.models import resnet18

from pytest_bninvariants import frozen_bn
from pytest_bninvariants.audit.auditor import Auditor
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.state_change.witness import Witness

ROUNDS = 40


class Training:
    """Train all of a network but its BN layers."""

    def __init__(self) -> None:
        self.model = resnet18(num_classes=10)
        for layer in self.model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval().requires_grad_(False)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)
        self._batch = torch.randn(8, 3, 64, 64)

    def time(self, around: AbstractContextManager[object]) -> float:
        """Return the processor's seconds for a step inside of something."""
        start = time.process_time()
        with around:
            self._optimizer.zero_grad()
            F.cross_entropy(self.model(self._batch), torch.arange(8)).backward()
            self._optimizer.step()
        return time.process_time() - start


@contextmanager
def witnessed(witness: Witness) -> Iterator[None]:
    """Watch a step without a snapshot."""
    witness.start()
    try:
        yield
    finally:
        witness.stop()


@contextmanager
def audited() -> Iterator[None]:
    """Audit a step."""
    auditor = Auditor()
    auditor.start()
    try:
        yield
    finally:
        auditor.stop()


def rows(rounds: int = ROUNDS) -> Iterator[tuple[str, float, float]]:
    """Yield for each way to watch the seconds of a bare step, and what it adds."""
    training = Training()
    model = training.model
    ways = {
        "bare": lambda: nullcontext(),
        "the audit": audited,
        "the witness": lambda: witnessed(Witness(model, select(model, Scope(bn_only=True)))),
        "frozen_bn": lambda: frozen_bn(model),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(rounds):
            for name, way in ways.items():
                times[name].append(training.time(way()))
    bare = median(times.pop("bare"))
    for name, seconds in times.items():
        yield name, bare, median(seconds) - bare


def main() -> None:
    """Print the table."""
    for name, bare, added in rows():
        print(f"{name}: a step takes {bare * 1e3:.0f} ms, watching adds {added / bare:.1%}")


if __name__ == "__main__":
    main()
