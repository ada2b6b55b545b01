"""Calls that leave a model in eval, so that statistics stand still in later training."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.found.nets import IMAGES, Net, found_in, train_step


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().train()


@pytest.mark.bn_updates
def test_the_step_alone_updates(net: Net) -> None:
    train_step(net)


@found_in("ptflops", "0.7.5")
@pytest.mark.bn_updates
def test_ptflops(net: Net) -> None:
    from ptflops import get_model_complexity_info

    get_model_complexity_info(net, (3, 8, 8), ost=io.StringIO())
    train_step(net)


@found_in("torch-pruning", "1.6.1")
@pytest.mark.bn_updates
def test_torch_pruning(net: Net) -> None:
    import torch_pruning

    torch_pruning.DependencyGraph().build_dependency(net, IMAGES)
    train_step(net)


@found_in("monai", "1.6.1")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.bn_updates
def test_monai_convert_to_torchscript(net: Net) -> None:
    from monai.networks.utils import convert_to_torchscript

    convert_to_torchscript(net)
    train_step(net)


@found_in("avalanche-lib", "0.6.0")
def test_avalanche_lfl(bn_updates: Any) -> None:
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.models import BaseModel
    from avalanche.training.plugins import LFLPlugin
    from avalanche.training.supervised import Naive

    class Features(nn.Module, BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
            self.classifier = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.stem(x))

        def get_features(self, x: Tensor) -> Tensor:
            return self.stem(x)

    model = Features()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        plugins=[LFLPlugin(lambda_e=0.1)],
        evaluator=None,
        train_mb_size=4,
    )
    task = torch.randn(12, 3), torch.arange(12) % 2
    benchmark = tensors_benchmark(
        train_tensors=[task, task],
        test_tensors=[task],
        task_labels=[0, 0],
        complete_test_set_only=True,
    )
    strategy.train(benchmark.train_stream[0])
    with bn_updates(model, times=3):
        strategy.train(benchmark.train_stream[1])
