"""Steps and guards that the tests of guards share."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from pytest_bninvariants import frozen, frozen_bn

GUARDS = pytest.mark.parametrize("guard", [frozen, frozen_bn])


def nothing(net: Any, batch: Tensor) -> None:
    pass


def drift_and_raise(net: Any, batch: Tensor, error: BaseException) -> None:
    net.train()(batch)
    raise error


def started(net: Any, *modules: str) -> Any:
    guard = frozen(net, *modules)
    guard.start()
    return guard
