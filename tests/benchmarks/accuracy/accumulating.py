"""Measure how far from the bound of `accumulates` gradients are, with BN layers in eval and not.

Run as `python -m tests.benchmarks.accuracy.accumulating`; docs/invariants/accumulates.md has the
result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pytest_bninvariants.evaluation.batches import samples_in
from pytest_bninvariants.invariants.accumulates.gradient_comparison import compare_gradients
from pytest_bninvariants.selection.bn_layers import is_bn_layer

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10, dropout=0.0),
    "efficientnet_b0": lambda: timm.create_model("efficientnet_b0", num_classes=10),
    "vit_tiny": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10),
    "convnext_atto": lambda: timm.create_model("convnext_atto", num_classes=10),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12288, 6), nn.BatchNorm1d(6), nn.Tanh()),
    "scalar": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12288, 1), nn.BatchNorm1d(1)),
}


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Any:
    y = model(batch[0])
    return F.cross_entropy(F.pad(y, (0, 10 - y.shape[1])), batch[1])


def rows(names: tuple[str, ...] = tuple(MODELS), seeds: int = 5) -> Iterator[tuple[Any, ...]]:
    """Yield model, seed, whether BN trains, and the median and largest distance in bounds."""
    for name in names:
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = MODELS[name]()
            batch = torch.randn(8, 3, 64, 64), torch.randint(10, (8,))
            has_bn = any(is_bn_layer(module) for module in model.modules())
            for training in (False, True):
                compared = compare_gradients(model.train(training), batch, 3, loss, samples_in)
                beyond = [compared.excess(name) for name in compared.bounds]
                yield name, seed, training and has_bn, median(beyond), max(beyond)


def main() -> None:
    """Print each row, and the ends of both distributions."""
    adding, mixing = [], []
    for name, seed, mixes, middle, most in rows():
        print(f"{name} {seed} {'mixes' if mixes else 'adds up'}: {middle:.1e}, at most {most:.1e}")
        (mixing if mixes else adding).append(middle if mixes else most)
    print(f"{len(adding)} that add up are off by {max(adding):.1e} of the bound at most")
    print(f"{len(mixing)} that do not are off by {min(mixing):.1e} bounds at least, in the median")


if __name__ == "__main__":
    main()
