"""Tests that fail with the messages of docs/faq.md; they have no name that pytest collects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

X = torch.randn(8, 3)


class FaqNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.backbone(x))


@pytest.fixture
def net() -> FaqNet:
    return FaqNet()


@pytest.fixture
def other() -> FaqNet:
    return FaqNet()


class FaqTrainer:
    def __init__(self) -> None:
        self.net = FaqNet()


@pytest.fixture
def trainer() -> FaqTrainer:
    return FaqTrainer()


@pytest.mark.frozen_bn
def test_a_model_inside(trainer: FaqTrainer) -> None:
    trainer.net(X)


@pytest.mark.frozen_bn
def test_no_model() -> None:
    FaqNet()(X)


@pytest.mark.frozen_bn
def test_two_models(net: FaqNet, other: FaqNet) -> None:
    net(X)


@pytest.mark.frozen_bn("backbon")
def test_no_match(net: FaqNet) -> None:
    net(X)


@pytest.mark.frozen_bn("head")
def test_no_bn_layer(net: FaqNet) -> None:
    net(X)


@pytest.mark.frozen_bn(paramters=False)
def test_no_option(net: FaqNet) -> None:
    net(X)


@pytest.mark.frozenbn
def test_near_miss(net: FaqNet) -> None:
    net(X)


@pytest.mark.frozen_bn
def test_nothing_ran(net: FaqNet) -> None:
    pass


def test_never_entered(net: FaqNet, frozen_bn: Any) -> None:
    frozen_bn(net)


@pytest.mark.bn_updates
@given(st.integers(2, 3))
def test_no_example(net: FaqNet, number: int) -> None:
    net(X)


@pytest.mark.same_output(inputs="imgs")
def test_no_inputs(net: FaqNet) -> None:
    net(X)


def test_random(accumulates: Any) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(3, 1))
    accumulates(model, X, 2, loss=lambda model, batch: model(batch).mean())
