"""What a model holds beside its tensors is told as it was and as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pytest_bninvariants.snapshot.extra_state.compare import ExtraValue, extra_changes
from pytest_bninvariants.snapshot.kept_tensor import TensorCopy


def kept(value: str | Tensor) -> ExtraValue:
    held = TensorCopy.from_tensor(value) if isinstance(value, Tensor) else value
    return ExtraValue("layer", held)


def text(old: str | Tensor, new: str | Tensor) -> str | None:
    """Return how a change is told; None if there is none."""
    changes = [*extra_changes({"x": kept(old)}, {"x": kept(new)})]
    return changes[0].text if changes else None


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("1", "1", None),
        ("a" * 40, "b" * 41, f"{'a' * 40} -> {'b' * 37}..."),
        ("1", torch.zeros(2), "1 -> float32 (2,)"),
        (torch.zeros(2), torch.zeros(2), None),
        (torch.zeros(2), torch.zeros(3), "float32 (2,) -> float32 (3,)"),
        (torch.zeros(2), torch.zeros(2).half(), "float32 (2,) -> float16 (2,)"),
        (torch.zeros(2).to_sparse(), torch.ones(2).to_sparse(), "content differs"),
    ],
    ids=str,
)
def test_a_value_is_told_as_it_was_and_as_it_is(
    old: str | Tensor, new: str | Tensor, told: str | None
) -> None:
    assert text(old, new) == told


def test_what_is_gone_or_new_is_no_change() -> None:
    assert [*extra_changes({"x": kept("1")}, {"y": kept("2")})] == []
