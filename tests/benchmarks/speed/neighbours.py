"""Measure what the frozen guards cost beside busy processes, as under xdist.

Run as `python -m tests.benchmarks.speed.neighbours`; docs/performance.md has the table. Torch has
as many threads here as it takes by itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.benchmarks.markdown import table
from tests.benchmarks.speed.cost import rows

WORKLOADS = ("W1", "W2", "W3", "W4")
_TRAINS = """
import torch
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.LazyLinear(10))
optimizer = torch.optim.SGD([*model.parameters()][:4], lr=0.01)
while True:
    optimizer.zero_grad()
    model(torch.randn(8, 3, 32, 32)).sum().backward()
    optimizer.step()
"""
NEIGHBOURS = {"nobody": "", "two loops": "while True: pass", "two that train": _TRAINS}


class Beside(NamedTuple):
    """What a later guard takes, as a ratio to the time by hand, beside some neighbours.

    Args:
        workload: the workload.
        neighbours: what ran besides.
        ratio: the ratio.
    """

    workload: str
    neighbours: str
    ratio: float


@contextmanager
def neighbours(code: str, count: int = 2) -> Iterator[None]:
    """Run a program in so many processes meanwhile; none if there is no code."""
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count if code else 0)]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def beside(workloads: Iterable[str] = WORKLOADS) -> Iterator[Beside]:
    """Measure workloads beside each kind of neighbours."""
    for name, code in NEIGHBOURS.items():
        with neighbours(code):
            for row in rows(workloads):
                yield Beside(row.name, name, row.later)


def main() -> None:
    """Print the table."""
    found = {(each.workload, each.neighbours): each.ratio for each in beside()}
    lines = [[name, *(f"{found[name, each]:.2f}" for each in NEIGHBOURS)] for name in WORKLOADS]
    print(table(["beside", *NEIGHBOURS], lines))


if __name__ == "__main__":
    main()
