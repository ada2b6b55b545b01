"""The benchmark of detection runs: flips are found, and nothing else is an alarm."""

from __future__ import annotations

import pytest

from tests.benchmarks.accuracy import detection

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("how", detection.KEEPING)
def test_flips_are_found_and_untouched_steps_are_no_alarm(how: str) -> None:
    if how == "xxhash":
        pytest.importorskip("xxhash")
    assert detection.flips(how, times=50) == []
    assert detection.alarms(how, times=20) == 0
