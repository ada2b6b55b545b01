"""A process learns from its environment which rank it is."""

from __future__ import annotations

import pytest

from pytest_bninvariants.ranks.environment import World, launched_world, rank_variables


def test_a_rank_sees_what_torchrun_would_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    variables = rank_variables(1, 3, 29500)
    assert variables["LOCAL_RANK"] == variables["RANK"] == "1"
    assert variables["WORLD_SIZE"] == variables["LOCAL_WORLD_SIZE"] == "3"
    assert variables["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert rank_variables(0, 3, 29500)["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize(
    ("rank", "size", "world"),
    [("1", "2", World(1, 2)), (None, "2", None), ("0", None, None), ("", "", None)],
)
def test_a_launcher_has_started_a_process_that_knows_its_rank_and_their_number(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, size: str | None, world: World | None
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert launched_world() == world
