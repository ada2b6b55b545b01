"""The benchmarks of what a guard costs run, and measure what they say, in little."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("torchvision")

from torchvision.models import resnet18

from tests.benchmarks.speed import cost, endurance, startup
from tests.benchmarks.speed.steps import finetuning
from tests.benchmarks.speed.workloads import WORKLOADS, small

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_workload_is_measured_in_every_way() -> None:
    row = cost.measure("W2", small(), rounds=1)
    assert min(row.hand, row.first, row.later, row.fingerprint, row.plain) > 0
    assert (row.count, row.size) == (8, 3 * (80 * 80 + 80) * 4 + 6 * 4)
    assert cost.text([row]).splitlines()[-1].startswith(f"| W2 | {WORKLOADS['W2'].what} | 8 |")


def test_a_guard_around_a_workload_judges_all_of_it() -> None:
    workload = WORKLOADS["W1"]()
    with workload.guard(workload) as guard:
        workload.step()
    assert guard.verdict is not None
    assert guard.verdict.tensors == workload.count == 270


def test_every_way_to_judge_a_step_is_timed_beside_a_bare_one() -> None:
    training = finetuning.FineTuning(resnet18(), 32)
    timed = {name: bare for name, bare, _ in finetuning.rows(training, rounds=1)}
    assert [*timed][:3] == [
        "frozen(model, exclude='fc')",
        "deepcopy and torch.equal",
        "one copy, one comparison",
    ]
    assert min(timed.values()) > 0


def test_many_steps_are_guarded_and_a_guard_is_put_around_many() -> None:
    grown = endurance.grown(small(), steps=20)
    assert sys.platform != "linux" or abs(grown) < 2**26
    assert endurance.overhead(small(), steps=5, rounds=1) > 0


def test_the_start_is_timed_with_the_plugin_and_without() -> None:
    bare, more = startup.measured(rounds=1)
    assert bare > 0
    assert more != 0
