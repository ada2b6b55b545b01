"""The fixtures: the guards, and the devices to run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pytest_bninvariants.options import SETTINGS

if TYPE_CHECKING:
    import torch

    from pytest_bninvariants.invariants.guards import Guard


@pytest.fixture(scope="session")
def frozen_bn() -> Callable[..., Guard]:
    """Guard BN layers: `with frozen_bn(model, "backbone"): train_step(model, batch)`."""
    from pytest_bninvariants.invariants.guards import frozen_bn

    return frozen_bn


@pytest.fixture(scope="session")
def frozen() -> Callable[..., Guard]:
    """Guard parameters and buffers: `with frozen(model, "backbone"): train_step(model, batch)`."""
    from pytest_bninvariants.invariants.guards import frozen

    return frozen


@pytest.fixture(scope="session")
def bn_device(request: pytest.FixtureRequest) -> torch.device:
    """Take on each device of --bn-device in turn, as a torch.device."""
    import torch

    return torch.device(getattr(request, "param", request.config.stash[SETTINGS].devices[0]))
