"""What a rank keeps of its model, and what of that it sends to the others."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from pytest_bninvariants import GateError
from pytest_bninvariants.invariants.in_sync.across_ranks.guard import RankState
from pytest_bninvariants.selection.scope import Scope


def state(**buffers: torch.Tensor) -> RankState:
    model = nn.Module()
    for name, each in buffers.items():
        model.register_buffer(name, each)
    return RankState.of(model, Scope())


def test_the_bytes_of_a_tensor_are_told_unless_they_are_many() -> None:
    kept = state(
        mean=torch.tensor([1.0, 2.0]),
        none=torch.ones(0),
        most=torch.zeros(2**20, dtype=torch.uint8),
        more=torch.zeros(2**20 + 1, dtype=torch.uint8),
    )
    assert kept.content("mean") == torch.tensor([1.0, 2.0]).numpy().tobytes()
    assert kept.content("most") == bytes(2**20)
    assert [kept.content(name) for name in ("none", "more", "unknown")] == [b"", b"", b""]


def test_a_rank_sends_what_it_tells_and_keeps_its_bytes() -> None:
    kept = state(mean=torch.ones(2))
    sent = pickle.loads(pickle.dumps(kept))
    assert sent.tensors == kept.tensors
    assert (sent.kept, sent.content("mean")) == (None, b"")


def test_a_model_without_such_tensors_is_refused() -> None:
    with pytest.raises(GateError, match="no buffer"):
        RankState.of(nn.Linear(2, 2), Scope(parameters=False))
