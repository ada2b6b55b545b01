"""What the tests of the reference compare with: seeded numbers, a used layer, its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor, nn

U = 2.0**-53
CLOSE = 128 * U  # for values near 1 and sums of at most 60 of them
calm = settings(database=None, derandomize=True, deadline=None, max_examples=200)


def gamma(k: int) -> float:
    """Return the relative error of k roundings in a row."""
    return k * U / (1 - k * U)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=CLOSE, atol=CLOSE)


def assert_within(actual: Tensor, expected: Sequence[float], bounds: Sequence[float]) -> None:
    for got, truth, bound in zip(actual.flatten().tolist(), expected, bounds, strict=True):
        assert abs(got - truth) <= bound + 1e-300, f"{got} is {got - truth} off, bound {bound}"


def state(bn: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in bn.state_dict().items()}


def assert_same_state(bn: nn.Module, expected: dict[str, Tensor], *but: str) -> None:
    found = bn.state_dict()
    assert found.keys() == expected.keys()
    for name in expected.keys() - set(but):
        assert torch.equal(found[name], expected[name]), name


def used(bn: Any) -> Any:
    """Return a layer of three channels, none of whose numbers are the initial ones."""
    with torch.no_grad():
        for seed, name in enumerate(("weight", "bias", "running_mean", "running_var")):
            if getattr(bn, name) is not None:
                getattr(bn, name).copy_(numbers(3, seed=seed).abs() + 0.5)
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.fill_(3)
    return bn


SHAPES = [(7, 3), (4, 3, 5), (2, 3, 4, 3), (2, 3, 2, 3, 4)]
MODES = [(True, True), (False, True), (False, False)]  # training, and whether there are statistics


def assert_close_state(bn: nn.Module, layer: nn.Module) -> None:
    found, expected = bn.state_dict(), layer.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_close(found[name], value)
