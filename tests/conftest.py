"""What the tests share: whole pytest sessions, run in this process."""

from __future__ import annotations

# pytester forgets modules that a session inside this process imported first. These must live on:
# most keep state, or cannot be imported twice.
import hypothesis.extra.numpy  # noqa: F401
import torch._dynamo  # noqa: F401
from hypothesis import settings

import pytest_bninvariants.failures
import pytest_bninvariants.invariants.guards
import pytest_bninvariants.invariants.observers
import pytest_bninvariants.steps  # noqa: F401

pytest_plugins = ["pytester"]
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")
