"""Bugs that were reported in public threads change an output, and their fixes do not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import InvariantBroken, assert_same_output, same_output
from tests.invariants.same_output.steps import message


class FrozenNorm(nn.Module):
    """Take eps off a loaded variance where the checkpoint says that it is old, or does not."""

    _version = 3

    def __init__(self, channels: int, *, mended: bool) -> None:
        super().__init__()
        self.eps, self.mended = 1e-5, mended
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()  # type: ignore[operator]
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if not self.mended and (metadata.get("version") or 0) < self._version:
            state[f"{prefix}running_var"] = state[f"{prefix}running_var"] - self.eps
        state.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state, prefix, metadata, *rest)


@pytest.mark.parametrize("mended", [False, True])
def test_a_layer_that_takes_eps_off_a_loaded_variance(mended: bool) -> None:
    layer = nn.BatchNorm2d(4)
    layer.running_var.copy_(torch.tensor([1.0, 1e-6, 0.0, 2.0]))
    loaded = FrozenNorm(4, mended=mended)
    loaded.load_state_dict(layer.state_dict())
    images = torch.randn(2, 4, 3, 3)
    if mended:
        assert assert_same_output(layer, loaded, images, rtol=1e-5, atol=1e-5).layers == 1
    else:
        with pytest.raises(InvariantBroken, match="running_var 4 of 4 values"):
            assert_same_output(layer, loaded, images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mended", [False, True])
def test_an_adapters_checkpoint_that_leaves_out_the_statistics_of_the_base(mended: bool) -> None:
    base = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    base[:2].requires_grad_(False)
    reloaded = copy.deepcopy(base)
    optimizer = torch.optim.SGD(base[2].parameters(), lr=0.1)
    base.train()
    if mended:
        base[1].eval()
    base(torch.randn(8, 4) + 2).square().mean().backward()
    optimizer.step()
    saved = {name: p for name, p in base.named_parameters() if p.requires_grad}
    reloaded.load_state_dict(saved, strict=False)
    if mended:
        assert assert_same_output(base, reloaded, torch.randn(3, 4)).layers == 1
    else:
        with pytest.raises(InvariantBroken, match=r"3 of 9 tensors differ: 1.running_mean"):
            assert_same_output(base, reloaded, torch.randn(3, 4))


@pytest.mark.parametrize("mended", [False, True])
def test_a_tool_that_switches_modes_and_resets_eps(mended: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.03))
    images = torch.randn(2, 3, 8, 8)

    def switch() -> None:
        old = net[1]
        settings = {"eps": old.eps, "momentum": old.momentum} if mended else {}
        net[1] = nn.BatchNorm2d(4, **settings)
        net[1].load_state_dict(old.state_dict())

    if mended:
        with same_output(net, images) as guard:
            switch()
        assert guard.verdict.layers == 1
    else:
        with pytest.raises(InvariantBroken) as caught, same_output(net, images):
            switch()
        assert "eps 0.001 -> 1e-05" in message(caught)


class ChannelsLast(nn.Module):
    """Give a module the same values in another memory format."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images.contiguous(memory_format=torch.channels_last))


class Misreading(nn.BatchNorm2d):
    """Read memory as if it were contiguous."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.as_strided(images.shape, torch.empty(images.shape).stride()))


@pytest.mark.parametrize("layer", [Misreading, nn.BatchNorm2d])
def test_a_kernel_that_misreads_channels_last(layer: type[nn.BatchNorm2d]) -> None:
    norm = layer(4)
    norm.running_mean.copy_(torch.arange(4.0))
    images = torch.randn(2, 4, 5, 5)
    if layer is Misreading:
        with pytest.raises(InvariantBroken):
            assert_same_output(norm, ChannelsLast(norm), images, atol=1e-5)
    else:
        assert assert_same_output(norm, ChannelsLast(norm), images, atol=1e-5).layers == 1


@pytest.mark.parametrize("mended", [False, True])
def test_a_teacher_inside_of_a_student_that_follows_its_mode(mended: bool) -> None:
    class Distilling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
            self.student = copy.deepcopy(self.teacher)

        def train(self, mode: bool = True) -> Distilling:
            super().train(mode)
            if mended:
                self.teacher.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                target = self.teacher(x)
            return (self.student(x) - target).square().mean()

    model, batch = Distilling(), torch.randn(8, 4)

    def step() -> None:
        model.train()
        model(batch).backward()

    if mended:
        with same_output(model, batch, modules="teacher") as guard:
            step()
        assert guard.verdict.layers == 1
    else:
        with (
            pytest.raises(InvariantBroken, match=r"output changed: teacher \(training-mode\)"),
            same_output(model, batch, modules="teacher"),
        ):
            step()
