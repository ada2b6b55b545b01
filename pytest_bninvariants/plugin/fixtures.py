"""The fixtures: the invariants of the catalogue, the kit's, and the devices to run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import pytest_bninvariants
from pytest_bninvariants.catalogue import INVARIANTS
from pytest_bninvariants.plugin.options import SETTINGS

if TYPE_CHECKING:
    import torch

    from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm


def _make_fixture(name: str, doc: str) -> Any:
    """Return a fixture that hands out an invariant."""

    def fixture() -> Callable[..., Any]:
        invariant: Callable[..., Any] = getattr(pytest_bninvariants, name)
        return invariant

    fixture.__name__, fixture.__doc__ = name, doc
    return pytest.fixture(scope="session")(fixture)


for _name, _invariant in INVARIANTS.items():
    # pytest looks for fixtures among the names of a module
    globals()[_name] = _make_fixture(_name, _invariant.fixture)


@pytest.fixture(scope="session")
def bn_conforms(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Check a layer against the laws of BatchNorm: `bn_conforms(MyBatchNorm2d, laws="eval*")`.

    It runs on each device of --bn-device, and as many examples as --bn-examples says.
    """
    from pytest_bninvariants.batchnorm.laws.conform import assert_bn_conforms

    settings = request.config.stash[SETTINGS]

    def conforms(factory: Callable[..., Any], **options: Any) -> None:
        __tracebackhide__ = True
        devices = [options.pop("device")] if "device" in options else settings.run.devices
        for device in devices:
            arguments = {"examples": settings.bn_examples} | options
            assert_bn_conforms(factory, device=device, **arguments)

    return conforms


@pytest.fixture(scope="session")
def reference_bn() -> type[ReferenceBatchNorm]:
    """Return the class of the reference: `reference_bn(3, eps=1e-5)(x)`, in float64."""
    from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm

    return ReferenceBatchNorm


@pytest.fixture(scope="session")
def bn_device(request: pytest.FixtureRequest) -> torch.device:
    """Run the test on each device of --bn-device in turn, with the torch.device as the value."""
    import torch

    return torch.device(getattr(request, "param", request.config.stash[SETTINGS].run.devices[0]))
