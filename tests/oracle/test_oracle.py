"""Guards agree with a slow and obvious judgement, whatever people do inside of them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.oracle.machines import CauseMachine

FEW = settings(
    max_examples=14,
    stateful_step_count=30,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],  # python -m tests.oracle --shrink shrinks
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.filterwarnings("ignore")
def test_guards_say_what_happened_and_why_and_leave_no_trace() -> None:
    run_state_machine_as_test(CauseMachine, settings=FEW)
