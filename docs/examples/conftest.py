"""A hazard is a warning in the examples, as it is for their users."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            rule = "default::pytest_bninvariants.InvariantHazard"
            item.add_marker(pytest.mark.filterwarnings(rule))
