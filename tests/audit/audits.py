"""Audit a step, and models whose backbone is frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pytest_bninvariants.audit.auditor import Auditor
from pytest_bninvariants.verdict import Verdict
from tests.engine import Net


class Audited:
    """What an audit said."""

    layers: int = -1
    frozen: int = -1
    verdicts: tuple[Verdict, ...] = ()
    rules: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()


@contextmanager
def audited() -> Iterator[Audited]:
    auditor, said = Auditor(), Audited()
    auditor.start()
    try:
        yield said
    finally:
        found = auditor.stop()
        said.verdicts = tuple(each.verdict for each in found)
        said.rules = tuple(each.rule for each in found)
        said.markers = tuple(each.marker for each in found)
        said.layers, said.frozen = auditor.layers, auditor.frozen


def leaks_of(step: Callable[[], object]) -> list[tuple[str, ...]]:
    """Return the names of the layers that leak in a step, by model."""
    with audited() as said:
        step()
    return [verdict.changed_layers for verdict in said.verdicts]


def frozen_backbone() -> Net:
    model = Net()
    model.backbone.requires_grad_(False)
    return model


def train(model: nn.Module, batch: Tensor) -> None:
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model(batch).square().mean().backward()
    torch.optim.SGD(trained, lr=0.1).step()
