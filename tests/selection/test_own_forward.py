"""What a layer's own forward may have written is read off its class and its hooks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from pytest_bninvariants.selection.own_forward import OwnForward, own_forward_of


def nothing(*_: object) -> None:
    pass


def hooked(register: Callable[[nn.Module], object]) -> nn.Module:
    layer = nn.Linear(2, 2)
    register(layer)
    return layer


def on_the_instance() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.forward = lambda batch: batch  # type: ignore[method-assign]
    return layer


class Own(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return batch


class ReadsModeInAFunction(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        def scaled() -> Tensor:
            return batch * 2 if self.training else batch

        return scaled()


def found(layer: nn.Module, *, in_training: bool = True) -> OwnForward:
    own = own_forward_of(layer, in_training=in_training)
    assert own is not None
    return own


@pytest.mark.parametrize(
    ("layer", "writes"),
    [
        (nn.Linear(2, 2), False),
        (hooked(lambda layer: layer.register_forward_hook(nothing)), True),
        (hooked(lambda layer: layer.register_forward_pre_hook(nothing)), True),
        (on_the_instance(), True),
        (nn.Embedding(3, 2), False),
        (nn.Embedding(3, 2, max_norm=1.0), True),
        (Own(), True),
    ],
)
def test_a_users_code_may_write_parameters_and_torchs_may_not(
    layer: nn.Module, writes: bool
) -> None:
    assert found(layer).writes_parameters == writes


def test_max_norm_is_that_of_torchs_own_forward_alone() -> None:
    own = Own()
    own.max_norm = 1.0
    assert found(nn.Embedding(3, 2, max_norm=1.0)).max_norm == 1.0
    assert found(own).max_norm is None


@pytest.mark.parametrize("in_training", [True, False])
def test_eval_may_stop_only_what_reads_the_mode_and_ran_in_training(in_training: bool) -> None:
    assert found(ReadsModeInAFunction(), in_training=in_training).stops_in_eval == in_training
    assert not found(Own(), in_training=in_training).stops_in_eval


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), nn.InstanceNorm1d(2)])
def test_torchs_own_forward_of_a_norm_writes_nothing_unseen(layer: nn.Module) -> None:
    assert own_forward_of(layer, in_training=True) is None
