"""How much a snapshot may take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pytest_bninvariants import run_config
from pytest_bninvariants.snapshot import budget

CPU = torch.device("cpu")


def test_a_limit_that_is_given_counts() -> None:
    with run_config.override(snapshot_budget=1000):
        assert budget.allows(1000, CPU)
        assert not budget.allows(1001, CPU, idle=5000)
    assert run_config.current.snapshot_budget is None


def test_without_a_limit_a_quarter_of_what_is_free_may_be_taken() -> None:
    assert budget.allows(2**20, CPU)
    assert not budget.allows(2**60, CPU)


def test_what_is_ours_already_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_free_on", lambda device: 2**30)
    assert budget.allows(2**28, CPU)
    assert not budget.allows(2**28 + 1, CPU)
    assert budget.allows(2**29, CPU, idle=2**30)


def test_a_device_that_does_not_tell_has_no_limit() -> None:
    assert budget.allows(2**60, torch.device("mps"))


@pytest.mark.parametrize(("most", "free"), [("1000", 400), ("500", 0), ("max", None)])
def test_a_containers_limit_is_known(
    most: str, free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "_CGROUP", tmp_path)
    assert budget._free_in_group() is None
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text("600\n")
    assert budget._free_in_group() == free
