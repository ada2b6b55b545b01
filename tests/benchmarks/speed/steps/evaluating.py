"""Measure the guards that run a model aside, or copy it twice, beside the least that they need.

Run as `python -m tests.benchmarks.speed.steps.evaluating`; docs/performance.md has the table. The
least is what nobody can do without: the runs of the model, the copies and the comparisons.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models import resnet18

from pytest_bninvariants import accumulates, batch_invariant, in_sync, same_output
from tests.benchmarks.markdown import table

ROUNDS = 5
DECAY = 0.99
EXAMPLES = 20
MICRO_BATCHES = 4


class Row(NamedTuple):
    """What one guard took.

    Args:
        name: how its user writes it.
        needs: what it cannot do without.
        least: the processor's seconds for that.
        ratio: the guard's own seconds to those, by pairs.
    """

    name: str
    needs: str
    least: float
    ratio: float


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean loss of a batch of images and labels."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


class Evaluated:
    """A network in eval, with its average and a batch.

    Args:
        model: the network.
        size: height and width of its images.
        examples: how many batches `batch_invariant` draws.
    """

    def __init__(self, model: nn.Module, size: int = 64, examples: int = EXAMPLES) -> None:
        self.model, self.examples = model.eval(), examples
        self.average = copy.deepcopy(model)
        self.batch = torch.randn(8, 3, size, size), torch.arange(8)

    def update(self) -> None:
        """Move the model a little, and its average after it."""
        with torch.no_grad():
            for one, other in zip(self.model.parameters(), self.average.parameters(), strict=True):
                one.mul_(1.001)
                other.mul_(DECAY).add_(one, alpha=1 - DECAY)

    def guard_output(self) -> None:
        """Guard a step that runs the network."""
        with same_output(self.model, self.batch[0]), torch.no_grad():
            self.model(self.batch[0])

    def run_thrice(self) -> None:
        """Run the network before the step, in it and after it, and compare."""
        with torch.no_grad():
            before, _, after = (self.model(self.batch[0]) for _ in range(3))
        assert torch.equal(before, after)

    def guard_average(self) -> None:
        """Guard an update of the average."""
        with in_sync(self.model, self.average, decay=DECAY):
            self.update()

    def average_by_hand(self) -> None:
        """Copy the average, update it, and compute what it must be."""
        before = [each.detach().clone() for each in self.average.parameters()]
        self.update()
        for old, one, now in zip(
            before, self.model.parameters(), self.average.parameters(), strict=True
        ):
            assert torch.allclose(now, old * DECAY + one * (1 - DECAY))

    def check_batches(self) -> None:
        """Check that samples do not depend on each other."""
        batch_invariant(self.model, self.batch[0], examples=self.examples)

    def run_batches(self) -> None:
        """Run the whole batch in both dtypes, and as many samples as the examples have at most."""
        images = self.batch[0]
        with torch.no_grad():
            self.model(images)
            copy.deepcopy(self.model).double()(images.double())
            for _ in range(self.examples):
                self.model(images)

    def check_gradients(self) -> None:
        """Check that micro-batches add up."""
        accumulates(self.model, self.batch, MICRO_BATCHES, loss=loss)

    def add_gradients(self) -> None:
        """Differentiate the whole batch and its parts, in both dtypes."""
        for dtype in (torch.float32, torch.float64):
            model = copy.deepcopy(self.model).to(dtype)
            images, labels = self.batch[0].to(dtype), self.batch[1]
            loss(model, (images, labels)).backward()
            parts = zip(images.chunk(MICRO_BATCHES), labels.chunk(MICRO_BATCHES), strict=True)
            for part in parts:
                (loss(model, part) / MICRO_BATCHES).backward()


def rows(work: Evaluated, rounds: int = ROUNDS) -> Iterator[Row]:
    """Time each guard and the least that it needs in turns."""
    pairs = {
        ("same_output(model, x)", "two forwards beside the step's"): (
            work.guard_output,
            work.run_thrice,
        ),
        ("in_sync(model, average, decay=0.99)", "a copy, the update, a comparison"): (
            work.guard_average,
            work.average_by_hand,
        ),
        (
            f"batch_invariant(model, x, examples={work.examples})",
            f"{work.examples + 2} forwards, one in float64",
        ): (
            work.check_batches,
            work.run_batches,
        ),
        (f"accumulates(model, batch, {MICRO_BATCHES}, loss=loss)", "10 backward passes"): (
            work.check_gradients,
            work.add_gradients,
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for (name, needs), (guarded, bare) in pairs.items():
            guarded()
            both = [(_seconds(bare), _seconds(guarded)) for _ in range(rounds)]
            ratio = median(mine / least for least, mine in both)
            yield Row(name, needs, median(least for least, _ in both), ratio)


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    head = ["guard", "needs at least", "which takes, ms", "the guard takes, times that"]
    found = rows(Evaluated(resnet18(num_classes=10)))
    lines = [[f"`{r.name}`", r.needs, f"{r.least * 1e3:.0f}", f"{r.ratio:.2f}"] for r in found]
    print(table(head, lines))


if __name__ == "__main__":
    main()
