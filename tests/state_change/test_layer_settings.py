"""Settings of a BN layer are read as values that stay as they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants.state_change.layer_settings import read_settings


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (0.1, 0.1),
        (None, None),
        (True, True),
        (1, 1),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([0.5, 1.0]), [0.5, 1.0]),
        (nn.Parameter(torch.tensor(0.5)), 0.5),
        (math.nan, "nan"),
        (torch.tensor(math.nan), "nan"),
    ],
)
def test_a_setting_is_read_as_a_plain_value(given: Any, read: object) -> None:
    layer = nn.BatchNorm1d(1, track_running_stats=False)
    vars(layer)["momentum"] = given
    settings = read_settings(layer)
    assert settings == {"eps": 1e-5, "momentum": read, "track_running_stats": False}
    assert type(settings["momentum"]) is type(read)


def test_a_setting_that_a_layer_lacks_is_left_out() -> None:
    layer = nn.BatchNorm1d(1)
    del layer.momentum
    assert read_settings(layer) == {"eps": 1e-5, "track_running_stats": True}
    assert read_settings(nn.Linear(1, 1)) == {}
