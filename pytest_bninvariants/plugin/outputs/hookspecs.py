"""The hooks that other plugins, and a `conftest.py`, may implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_bninvariants.verdict import Verdict


def pytest_bninvariants_verdict(item: pytest.Item, verdict: Verdict) -> None:
    """Receive the verdict of a guard that ended within a test, whether the invariant holds or not.

    It is called once for each guard, when the phase of the test has ended in which the guard did:
    its setup, its call or its teardown. Under xdist it is called in the worker, and in a test on
    ranks in the process of each rank, where `RANK` in the environment tells which it is. An
    exception that it raises is reported as an error in the test's teardown.

    Args:
        item: the test.
        verdict: what the guard found.
    """
