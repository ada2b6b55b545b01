"""The runs of same_output and batch_invariant leave nothing behind, and conversions are judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError, InvariantBroken, batch_invariant, same_output
from tests.invariants.same_output.steps import message

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) + 3


class ActNorm(nn.Module):
    """A layer that takes its shift from the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.ready, self.seen = False, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if not self.ready:
            self.shift.data = -x.mean(0).detach()
            self.ready = True
        return x + self.shift


@pytest.fixture
def flow() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(ActNorm(), nn.Linear(4, 2))


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()


def test_the_steps_first_forward_is_the_first_forward(flow: Any) -> None:
    with same_output(flow, X):
        flow(X)
    assert flow[0].ready
    assert flow[0].seen == [8]
    assert torch.equal(flow[0].shift, -X.mean(0))


def test_a_check_at_once_leaves_a_first_forward_to_come(flow: Any) -> None:
    batch_invariant(flow, X)
    assert not flow[0].ready
    assert flow[0].seen == []
    assert torch.equal(flow[0].shift, torch.zeros(4))


def test_a_layer_that_the_step_initialises_otherwise_is_no_equal_output(flow: Any) -> None:
    with pytest.raises(InvariantBroken, match=r"1 of 1 output changed"), same_output(flow, X):
        flow(X + 1)


def patch(net: Any) -> None:
    old = net.forward
    net.forward = lambda x: old(x)


def patch_layer(net: Any) -> None:
    old = net[0].forward
    net[0].forward = lambda x: old(x)


def change_class(net: Any) -> None:
    class Faster(nn.BatchNorm1d):
        pass

    net[1].__class__ = Faster


def hook(net: Any) -> None:
    net[0].register_forward_hook(lambda module, args, output: output.clone())


def set_precision(net: Any) -> None:
    torch.set_float32_matmul_precision("high")


@pytest.mark.parametrize(
    "convert",
    [patch, patch_layer, change_class, hook, set_precision, lambda net: setattr(net, "fast", True)],
)
def test_a_conversion_that_changes_no_tensor_is_judged(
    net: nn.Module, convert: Callable[[Any], object]
) -> None:
    precision = torch.get_float32_matmul_precision()
    try:
        with same_output(net, X) as guard:
            convert(net)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert guard.verdict is not None
    assert guard.verdict.holds


def test_a_forward_that_is_patched_on_the_class_is_judged(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = nn.Sequential.forward
    with same_output(net, X) as guard:
        monkeypatch.setattr(nn.Sequential, "forward", lambda self, x: forward(self, x))
    assert guard.verdict is not None
    assert guard.verdict.holds


def test_a_patched_forward_that_gives_another_output_is_named(net: Any) -> None:
    old = net.forward

    def step() -> None:
        with same_output(net, X):
            net.forward = lambda x: old(x) * 2

    with pytest.raises(InvariantBroken) as caught:
        step()
    told = message(caught)
    assert "none of its parameters, buffers and eps values changed, but forward did" in told


def test_a_step_that_changes_nothing_is_still_no_step(net: nn.Module) -> None:
    with (
        pytest.raises(GateError, match=r"nothing ran.*assert_same_output\(one, other"),
        same_output(net, X),
    ):
        nn.Sequential(nn.Linear(4, 3)).forward = lambda x: x  # type: ignore[method-assign]


class Boxes:
    """An output with slots, and no __eq__."""

    __slots__ = ("corners",)

    def __init__(self, corners: Tensor) -> None:
        self.corners = corners


class Cyclic(dict[str, Any]):
    """An output that holds itself."""


class Detector(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(4, 2), wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.layer(x))


def cyclic(output: Tensor) -> object:
    made = Cyclic(corners=output)
    made["self"] = [made]
    return made


@pytest.mark.parametrize(("wrap", "path"), [(Boxes, ".corners"), (cyclic, "['corners']")])
def test_outputs_with_slots_and_cycles_are_compared_by_their_tensors(
    wrap: Callable[[Tensor], object], path: str
) -> None:
    net = Detector(wrap)
    with same_output(net, X):
        net(X)

    def step() -> None:
        with same_output(net, X):
            net.layer.bias.data += 1

    with pytest.raises(InvariantBroken) as caught:
        step()
    assert f"output{path} 16 of 16 values" in message(caught)
