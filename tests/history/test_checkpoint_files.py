"""Which statistics a checkpoint has, wherever its dicts nest them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError
from pytest_bninvariants.history.checkpoint_files import read_statistics


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "0.pt")
    return folder / "0.pt"


def both(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}running_mean": torch.zeros(2), f"{prefix}running_var": torch.ones(2)}


def test_only_names_that_are_those_of_statistics_count(tmp_path: Path) -> None:
    sample = read_statistics(saved(tmp_path, {**both("bn."), **both("bn.old_")}))
    assert list(sample) == ["bn"]


@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
def test_a_layer_with_one_statistic_is_left_out(tmp_path: Path, missing: str) -> None:
    state = {**both("whole."), **both("half.")}
    del state[f"half.{missing}"]
    assert list(read_statistics(saved(tmp_path, state))) == ["whole"]


@pytest.mark.parametrize(("depth", "is_read"), [(0, True), (1, True), (3, True), (4, False)])
def test_dicts_are_searched_to_a_depth(tmp_path: Path, depth: int, is_read: bool) -> None:
    content: dict[str, object] = dict(nn.BatchNorm1d(2).state_dict(prefix="bn."))
    for _ in range(depth):
        content = {"state": content}
    file = saved(tmp_path, content)
    if is_read:
        assert list(read_statistics(file)) == ["bn"]
        return
    with pytest.raises(GateError, match="no BN layer has running_mean and running_var"):
        read_statistics(file)


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_one_statistic_on_the_meta_device_is_refused(tmp_path: Path, name: str) -> None:
    state = both("bn.")
    state[f"bn.{name}"] = torch.empty(2, device="meta")
    with pytest.raises(GateError, match="the statistics of bn are on the meta device"):
        read_statistics(saved(tmp_path, state))
