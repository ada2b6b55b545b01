"""Measure what guarding all of a resnet50 but its head adds to a training step, beside others.

Run as `python -m tests.benchmarks.speed.steps.finetuning`; docs/performance.md has the table. Peers
take part where they are installed: pytest-torch and torchtest.
"""

from __future__ import annotations

import copy
import importlib
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from statistics import median
from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models import resnet50

from pytest_bninvariants import frozen

ROUNDS = 15


class FineTuning:
    """Train the head of a network whose rest is frozen.

    Args:
        model: the network; its head is `fc`.
        size: height and width of its images.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.model.fc.requires_grad_(True)
        self._optimizer = torch.optim.SGD(self.model.fc.parameters(), lr=1e-4)
        self._batch = torch.randn(8, 3, size, size), torch.arange(8)

    def step(self) -> None:
        """Make a step."""
        images, labels = self._batch
        self._optimizer.zero_grad()
        self.loss(self.model(images), labels).backward()
        self._optimizer.step()

    @staticmethod
    def loss(output: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of an output."""
        return F.cross_entropy(output, labels)

    def guarded(self) -> AbstractContextManager[object]:
        """Guard a step."""
        return frozen(self.model, exclude="fc")

    @contextmanager
    def by_hand(self) -> Iterator[None]:
        """Compare a step's state with a deep copy."""
        before = copy.deepcopy(self.model.state_dict())
        yield
        now = self.model.state_dict()
        assert all(torch.equal(before[n], now[n]) for n in before if not n.startswith("fc."))

    @contextmanager
    def copied(self) -> Iterator[None]:
        """Copy the bytes into memory that is there, and compare them: what cannot be done without.

        As int64, one tensor after the other, by whatever torch has.
        """
        rest = [t for n, t in self.model.state_dict().items() if not n.startswith("fc.")]
        live = [t.view(-1).view(torch.int32 if t.dim() else t.dtype) for t in rest]
        if not hasattr(self, "_room"):
            self._room = [torch.zeros_like(t) for t in live]
        for kept, now in zip(self._room, live, strict=True):
            kept.copy_(now)
        yield
        assert all(map(torch.equal, self._room, live))

    def time(self, around: Callable[[], AbstractContextManager[object]]) -> float:
        """Return the seconds of a step inside of something."""
        start = time.perf_counter()
        with around():
            self.step()
        return time.perf_counter() - start

    def of_peers(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield what peers have that makes a step and judges it."""
        pytest_torch, torchtest = map(_peer, ("pytest_torch", "torchtest"))
        rest = [n for n, _ in self.model.named_parameters() if not n.startswith("fc.")]
        model = copy.deepcopy(self.model)  # which they leave in training mode
        if pytest_torch is not None:
            names = [*rest, *(name for name, _ in self.model.named_buffers())]
            yield (
                "pytest-torch, assert_frozen",
                lambda: _judged(
                    pytest_torch.assert_frozen, model, self._batch[0], self._loss_of, names
                ),
            )
        if torchtest is not None:
            frozen_ = [(n, p) for n, p in model.named_parameters() if n in set(rest)]
            optimizer = torch.optim.SGD(model.fc.parameters(), lr=1e-4)
            yield (
                "torchtest, assert_vars_same",
                lambda: _judged(
                    torchtest.assert_vars_same,
                    *(model, self.loss, optimizer, self._batch, "cpu", frozen_),
                ),
            )

    def _loss_of(self, output: Tensor) -> Tensor:
        return self.loss(output, self._batch[1])


def _peer(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _judged(judge: Callable[..., object], *args: object) -> None:
    with suppress(Exception):  # what it comes to is not what is measured
        judge(*args)


def rows(training: FineTuning, rounds: int = ROUNDS) -> Iterator[tuple[str, float, float]]:
    """Yield for each way to judge a step the seconds of a bare one, and what it adds."""

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    ways: dict[str, Callable[[], float]] = {
        "bare": lambda: training.time(nullcontext),
        "frozen(model, exclude='fc')": lambda: training.time(training.guarded),
        "deepcopy and torch.equal": lambda: training.time(training.by_hand),
        "one copy, one comparison": lambda: training.time(training.copied),
        **{n: lambda judge=judge: seconds(judge) for n, judge in training.of_peers()},
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(rounds):
            for name, way in ways.items():
                times[name].append(way())
    bare = median(times.pop("bare"))
    for name, taken in times.items():
        yield name, bare, median(taken) - bare


def main() -> None:
    """Print the table."""
    for name, bare, added in rows(FineTuning(resnet50(), 128)):
        print(f"{name}: a step takes {bare * 1e3:.0f} ms, this adds {added / bare:.1%}")


if __name__ == "__main__":
    main()
