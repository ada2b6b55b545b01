"""The fixtures: the guards, and the devices to run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_bninvariants.plugin.options import SETTINGS

if TYPE_CHECKING:
    import torch

    from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm
    from pytest_bninvariants.invariants.guard import Guard
    from pytest_bninvariants.verdict import Verdict


@pytest.fixture(scope="session")
def frozen_bn() -> Callable[..., Guard]:
    """Guard BN layers: `with frozen_bn(model, "backbone"): train_step(model, batch)`."""
    from pytest_bninvariants.invariants.frozen.guard import frozen_bn

    return frozen_bn


@pytest.fixture(scope="session")
def frozen() -> Callable[..., Guard]:
    """Guard parameters and buffers: `with frozen(model, "backbone"): train_step(model, batch)`."""
    from pytest_bninvariants.invariants.frozen.guard import frozen

    return frozen


@pytest.fixture(scope="session")
def bn_updates() -> Callable[..., Guard]:
    """Count updates of statistics: `with bn_updates(model, times=2): train_step(model, batch)`."""
    from pytest_bninvariants.invariants.bn_updates.guard import bn_updates

    return bn_updates


@pytest.fixture(scope="session")
def accumulates() -> Callable[..., Verdict]:
    """Hold that micro-batches' gradients add up: `accumulates(model, batch, 4, loss=loss)`."""
    from pytest_bninvariants.invariants.accumulates.check import accumulates

    return accumulates


@pytest.fixture(scope="session")
def trains() -> Callable[..., Guard]:
    """Hold that parameters move: `with trains(model, "head"): train_step(model, batch)`."""
    from pytest_bninvariants.invariants.trains.guard import trains

    return trains


@pytest.fixture(scope="session")
def same_output() -> Callable[..., Guard]:
    """Hold that eval outputs stay: `with same_output(model, images): convert(model)`."""
    from pytest_bninvariants.invariants.same_output.guard import same_output

    return same_output


@pytest.fixture(scope="session")
def batch_invariant() -> Callable[..., Verdict]:
    """Hold that samples do not depend on each other in eval: `batch_invariant(model, images)`."""
    from pytest_bninvariants.invariants.batch_invariant.guard import batch_invariant

    return batch_invariant


@pytest.fixture(scope="session")
def in_sync() -> Callable[..., Verdict | Guard]:
    """Hold that two models' buffers agree, or that one averages the other: `in_sync(model, ema)`.

    An average: `with in_sync(model, ema, decay=0.99): train_step(model, batch)`.
    """
    from pytest_bninvariants.invariants.in_sync.guard import in_sync

    return in_sync


@pytest.fixture(scope="session")
def bn_conforms(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Hold a layer against the laws of BatchNorm: `bn_conforms(MyBatchNorm2d, laws="eval*")`.

    It runs on each device of --bn-device, and as many examples as --bn-examples says.
    """
    from pytest_bninvariants.batchnorm.laws.conform import assert_bn_conforms

    settings = request.config.stash[SETTINGS]

    def conforms(factory: Callable[..., Any], **options: Any) -> None:
        __tracebackhide__ = True
        devices = [options.pop("device")] if "device" in options else settings.devices
        for device in devices:
            given = {"examples": settings.bn_examples} | options
            assert_bn_conforms(factory, device=device, **given)

    return conforms


@pytest.fixture(scope="session")
def reference_bn() -> type[ReferenceBatchNorm]:
    """Return the class of the reference: `reference_bn(3, eps=1e-5)(x)`, in float64."""
    from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm

    return ReferenceBatchNorm


@pytest.fixture(scope="session")
def bn_device(request: pytest.FixtureRequest) -> torch.device:
    """Take on each device of --bn-device in turn, as a torch.device."""
    import torch

    return torch.device(getattr(request, "param", request.config.stash[SETTINGS].devices[0]))
