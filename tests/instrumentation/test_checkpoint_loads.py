"""A load of `torch.distributed.checkpoint` is heard, however the state is passed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch import Tensor

from pytest_bninvariants import FrozenStateChanged, frozen
from tests.watching import watching


@pytest.fixture
def saved(net: Any, tmp_path: Path) -> str:
    """Save the model, and return the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for a process group
        dcp.save({"model": net.state_dict()}, checkpoint_id=tmp_path)
    return str(tmp_path)


LOADS: dict[str, Callable[[dict[str, Any], str], object]] = {
    "by position": lambda state, folder: dcp.load(state, checkpoint_id=folder),
    "by keyword": lambda state, folder: dcp.load(state_dict=state, checkpoint_id=folder),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_load_that_changes_values_is_told_as_that(
    net: Any, batch: Tensor, saved: str, load: Callable[[dict[str, Any], str], object]
) -> None:
    net.neck.weight.data.add_(1)
    bare = dcp.load
    with pytest.raises(FrozenStateChanged) as caught, frozen(net):
        load({"model": net.state_dict()}, saved)
    assert dcp.load is bare
    verdict = caught.value.verdict
    assert verdict.changed_tensors == ("neck.weight",)
    (cause,) = verdict.causes
    assert cause.name == "loaded"
    assert cause.place is not None
    assert cause.place.file == __file__
    with watching(frozen(net), layers=4, tensors=14):
        net(batch)
        load({"model": net.state_dict()}, saved)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_load_without_a_state_fails_as_it_would_without_a_guard(net: Any) -> None:
    with pytest.raises(TypeError, match="state_dict"), frozen(net):
        dcp.load()
