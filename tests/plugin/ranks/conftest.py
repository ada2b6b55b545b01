from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.plugin.sessions import Session, Sessions

BEFORE = """
import os
import time

from torch import distributed

ranks = pytest.mark.ranks(2)

def rank():
    return distributed.get_rank()

def meet():
    distributed.all_reduce(torch.ones(1))
"""


@pytest.fixture
def run(sessions: Sessions) -> Callable[..., Session]:
    """Run tests that have `ranks`, a marker for two, and `rank()` and `meet()` at hand."""

    def run(source: str, *args: str, **options: object) -> Session:
        return sessions.run(source, *args, before=BEFORE, **options)  # type: ignore[arg-type]

    return run
