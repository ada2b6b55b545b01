"""Tests under @given that drift above some size."""

from __future__ import annotations

import re

from tests.plugin.sessions import Session

HYPOTHESIS = """
from hypothesis import HealthCheck, Phase, example, given, settings, strategies as st

calm = settings(
    database=None,
    derandomize=True,
    deadline=None,
    max_examples=40,
    phases=[phase for phase in Phase if phase != Phase.explain],  # it is slow, and has its own test
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

def drift_above(limit, model, size):
    (drift if size > limit else hold)(model, size)

sizes = st.integers(2, 40)
"""


def smallest(session: Session, name: str) -> int:
    """Return the size in the one example that a failure shows, which must not be several errors."""
    assert "laky" not in session.output
    assert "Group" not in session.texts[name]
    _, shown = re.split(r"(?:Falsifying|Failing) .*?(?:example|test case): ", session.says(name))
    (size,) = re.findall(r"\bsize=(\d+)", shown)
    return int(size)
