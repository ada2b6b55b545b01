"""Guards judge models that DDP and FSDP wrap: no false alarm, and no violation that is missed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ranks.runs import run_checks
from tests.ranks.warm_python import WarmPython

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
Told = list[dict[str, dict[str, Any]]]
WRAPPERS = [
    *("DDP", "DDP, no broadcast", "DDP, static", "DDP, unused", "DDP, views"),
    *("fully_shard", "fully_shard, resharded", "fully_shard, not resharded"),
    *("fully_shard, nested", "fully_shard, mixed"),
    *("FSDP, original", "FSDP, gradients sharded", "FSDP, flat"),
]


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def told(request: pytest.FixtureRequest, warm_python: WarmPython) -> Told:
    return run_checks(warm_python, "tests.invariants.sharded.wrapped_ranks", request.param)


@pytest.fixture(params=WRAPPERS)
def wrapper(told: Told, request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if f"{name}, 0, frozen" not in told[0]:
        pytest.skip("this torch has no torch.distributed.fsdp.fully_shard")
    return name


@pytest.mark.parametrize("steps", [0, 1], ids=["fresh", "trained"])
@pytest.mark.parametrize(
    "step",
    [
        *("frozen", "frozen_bn", "trains", "bn_updates", "frozen and trains"),
        *("only a forward", "same_output", "as without"),
    ],
)
def test_what_stays_as_it_is_meant_to_holds(
    told: Told, wrapper: str, step: str, steps: int
) -> None:
    for rank in told:
        said = rank[f"{wrapper}, {steps}, {step}"]
        assert (said["kind"], said["hazards"]) == ("held", []), said["text"]


@pytest.mark.parametrize("steps", [0, 1], ids=["fresh", "trained"])
@pytest.mark.parametrize(
    ("step", "cause"),
    [
        ("eval forgotten", "mode-flip"),
        ("BN eval forgotten", "mode-flip"),
        ("the student moved", "gradient-step"),
        ("not trained", "not-in-optimizer"),
        ("another output", "gradient-step"),
    ],
)
def test_a_real_change_is_found_with_its_cause(
    told: Told, wrapper: str, step: str, cause: str, steps: int
) -> None:
    for rank in told:
        said = rank[f"{wrapper}, {steps}, {step}"]
        assert said["kind"] == "broken", said["text"]
        assert cause in said["causes"]
