"""same_output: in eval the same inputs give the same outputs, before and after."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError, InvariantBroken, assert_same_output, frozen, same_output


def said(caught: pytest.ExceptionInfo[BaseException]) -> str:
    return " ".join(str(caught.value).split())


def train_forward(module: nn.Module, batch: Tensor) -> None:
    module.train()
    module(batch)


def test_a_step_in_eval_keeps_the_output(net: Any, batch: Tensor) -> None:
    with same_output(net, batch) as guard:
        net(batch)
    assert guard.verdict.holds


def test_a_forward_in_training_mode_changes_it_and_is_named_with_its_line(
    net: Any, batch: Tensor
) -> None:
    with pytest.raises(InvariantBroken) as caught, same_output(net, batch):
        train_forward(net, batch + 1)
    told = said(caught)
    assert told.startswith("1 of 1 output changed: output (mode-flip)")
    assert "put in training mode by Net.train(True) at" in told
    assert "of its state 6 differ: backbone.bn.running_mean" in told


def test_an_optimizers_step_changes_it_and_is_named(net: Any, batch: Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(batch).sum().backward()
    with pytest.raises(InvariantBroken, match=r"\(gradient-step\)"), same_output(net, batch):
        optimizer.step()


def test_only_the_submodule_that_is_named_counts_even_if_another_object_holds_its_name(
    net: Any, batch: Tensor
) -> None:
    with same_output(net, batch, modules="backbone"):
        net.neck.train()
        net(batch)
    with (
        pytest.raises(InvariantBroken, match="output changed: backbone"),
        same_output(net, batch, modules="backbone"),
    ):
        net.backbone = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))


def test_the_inputs_are_kept_as_they_were(net: Any, batch: Tensor) -> None:
    with same_output(net, batch):
        net(batch)
        batch.zero_()


# What is told of outputs.


class Returns(nn.Module):
    """Return whatever a test wants, made from a parameter."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.make = make

    def forward(self, x: Tensor) -> object:
        return self.make(x * self.weight)


def swap(module: Returns, make: Callable[[Tensor], object]) -> None:
    module.make = make
    module(torch.ones(2, 3))


def other(module: Returns, make: Callable[[Tensor], object]) -> str:
    with pytest.raises(InvariantBroken) as caught, same_output(module, torch.ones(2, 3)):
        swap(module, make)
    return said(caught)


def test_each_output_has_its_path_and_how_far_it_is_off() -> None:
    module = Returns(lambda y: {"logits": y, "deep": [y, (y.sum(), "text")]})
    told = other(module, lambda y: {"logits": y + 0.5, "deep": [y, (y.sum(), "other")]})
    assert told.startswith("2 of 4 outputs changed: output['logits'], output['deep'][1][1]")
    assert "6 of 6 values, max |d| 5.0e-01 at [0, 0]: 1.0 -> 1.5" in told
    assert "'text' (str) -> 'other' (str)" in told
    assert "no parameter, buffer or eps of it changed" in told


@pytest.mark.parametrize(
    ("make", "after", "text"),
    [
        (lambda y: [y], lambda y: [y, y], "new: output, float32 (2, 3)"),
        (lambda y: [y, y], lambda y: [y], "output[1] gone"),
        (lambda y: y, lambda y: y.double(), "float32 -> float64"),
        (lambda y: y, lambda y: y[:1], "shape (2, 3) -> (1, 3)"),
        (lambda y: {"a": y}, lambda y: {"a": None}, "float32 (2, 3) -> None (NoneType)"),
        (lambda y: {"a": y, "n": 1}, lambda y: {"a": y}, "output['n'] 1 (int) -> gone"),
        (lambda y: {"a": y}, lambda y: {"a": y, "n": 1}, "1 (int)"),
        (lambda y: y * 0, lambda y: y * -0.0, "0.0 -> -0.0"),
    ],
)
def test_dtypes_shapes_and_missing_outputs_are_told(
    make: Callable[[Tensor], object], after: Callable[[Tensor], object], text: str
) -> None:
    assert text in other(Returns(make), after)


def test_nan_equals_the_same_nan() -> None:
    module = Returns(lambda y: (y / 0 * 0, float("nan")))
    with same_output(module, torch.ones(2, 3)):
        module(torch.ones(2, 3))


def test_a_tolerance_allows_what_it_says_and_no_more(net: Any, batch: Tensor) -> None:
    def step(move: float) -> None:
        with torch.no_grad():
            net.head.bias += move

    with same_output(net, batch, atol=1e-3):
        step(5e-4)
    with (
        pytest.raises(InvariantBroken, match=r"2.0e-03 at .*; 4"),
        same_output(net, batch, atol=1e-3),
    ):
        step(2e-3)


# Silence is never a pass.


class Noisy(nn.Module):
    def __init__(self, draw: Callable[[], object]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * float(self.draw())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "module",
    [
        Noisy(lambda: torch.rand(())),
        Noisy(random.random),
        Noisy(lambda: numpy.random.rand()),
    ],
    ids=["torch", "random", "numpy"],
)
def test_an_output_that_differs_from_run_to_run_cannot_be_judged(module: nn.Module) -> None:
    with (
        pytest.raises(GateError, match="two runs in eval in a row, on the same inputs, differ"),
        same_output(module, torch.ones(3)),
    ):
        pass


def test_dropout_that_is_not_told_the_mode_is_named() -> None:
    class Forgetful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x)

    with (
        pytest.raises(GateError, match=r"F.dropout does where it is not told"),
        same_output(Forgetful(), torch.ones(64)),
    ):
        pass


def test_a_block_in_which_nothing_runs_is_an_error(net: Any, batch: Tensor) -> None:
    with pytest.raises(GateError, match="nothing ran"), same_output(net, batch):
        pass


def test_a_guard_around_it_does_not_take_its_runs_for_the_step(net: Any, batch: Tensor) -> None:
    with pytest.raises(GateError, match="nothing ran inside frozen"), frozen(net):
        assert_same_output(net, net, batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net, x: same_output(net), "needs the inputs"),
        (lambda net, x: same_output(x, x), "takes the model, a torch.nn.Module, first"),
        (lambda net, x: same_output(net, x, rtol=-1), "rtol= takes a number from 0; got -1"),
        (lambda net, x: same_output(net, x, modules="bakbone"), "did you mean 'backbone'"),
        (lambda net, x: same_output(net, x, modules=[3]), "qualified name; got 3"),
        (lambda net, x: same_output(net, x[:, :1]), "Net in eval raised on these inputs"),
        (lambda net, x: same_output(nn.LazyLinear(3), x), "lazy parameters without values"),
    ],
)
def test_what_cannot_be_judged_is_named(
    net: Any, batch: Tensor, make: Callable[..., Any], message: str
) -> None:
    with pytest.raises(GateError, match=message), make(net, batch):
        net(batch)


# Everything is left as it was.


def test_modes_gradients_buffers_and_generators_are_left_as_they_were(
    net: Any, batch: Tensor
) -> None:
    class Counting(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            self.num_batches_tracked += 1
            return super().forward(x)

    net.neck = Counting(3)
    net.backbone.train()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    modes = [module.training for module in net.modules()]
    state = copy.deepcopy(net.state_dict())
    generators = torch.get_rng_state(), random.getstate(), str(numpy.random.get_state())
    guard = same_output(net, batch)
    guard.start()
    guard.stop()
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), str(numpy.random.get_state())) == generators[1:]


# Two modules.


def test_a_copy_gives_the_same_and_a_changed_one_is_said_to_differ(net: Any, batch: Tensor) -> None:
    twin = copy.deepcopy(net)
    assert assert_same_output(net, twin, batch).holds
    twin.neck.eps = 1e-3
    twin.backbone.bn = nn.InstanceNorm1d(3)
    with torch.no_grad():
        twin.head.bias += 1
    with pytest.raises(InvariantBroken) as caught:
        assert_same_output(net, twin, batch)
    told = said(caught)
    assert told.startswith("1 of 1 output differs: output")
    assert "backbone.bn: BatchNorm1d -> InstanceNorm1d" in told
    assert "neck: eps 1e-05 -> 0.001" in told
    assert "6 of 14 tensors differ: backbone.bn.weight gone" in told


def resnet18() -> tuple[nn.Module, Tensor]:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return model, torch.randn(2, 3, 32, 32)


def test_timms_conversion_of_a_resnet_keeps_the_output_up_to_rounding() -> None:
    layers = pytest.importorskip("timm.layers")
    model, images = resnet18()
    with same_output(model, images, rtol=1e-4, atol=1e-4):
        layers.freeze_batch_norm_2d(model)


def test_a_conversion_that_drops_eps_is_told() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    model, images = resnet18()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            frozen_layer = FrozenBatchNorm2d(layer.num_features, eps=0.1)
            frozen_layer.load_state_dict(layer.state_dict())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, frozen_layer)
    original, _ = resnet18()
    with pytest.raises(InvariantBroken) as caught:
        assert_same_output(original, model, images, rtol=1e-4, atol=1e-4)
    told = said(caught)
    assert "bn1, layer1.0.bn1 and 18 more: BatchNorm2d -> FrozenBatchNorm2d" in told
    assert "eps 1e-05 -> 0.1" in told


def test_fusing_conv_and_bn_keeps_the_output_up_to_rounding() -> None:
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    model, images = resnet18()
    fused = copy.deepcopy(model).eval()
    fused.conv1, fused.bn1 = fuse_conv_bn_eval(fused.conv1, fused.bn1), nn.Identity()
    assert_same_output(model, fused, images, rtol=1e-4, atol=1e-4)


def test_transformers_outputs_are_compared_by_name() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    model = transformers.ResNetModel(config)
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(InvariantBroken) as caught, same_output(model, pixel_values=images):
        train_forward(model, images)
    headline, _, cause = str(caught.value).splitlines()[0].partition(" (")
    outputs = "output['last_hidden_state'], output['pooler_output']"
    assert (headline, cause) == (f"2 of 2 outputs changed: {outputs}", "training-mode)")


def test_transformers_frozen_layers_keep_the_output_up_to_rounding() -> None:
    detr = pytest.importorskip("transformers.models.detr.modeling_detr")
    model, images = resnet18()
    with same_output(model, images, rtol=1e-4, atol=1e-4):
        detr.replace_batch_norm(model)


# Bugs of public threads.


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
        assert_same_output(layer, loaded, images, rtol=1e-5, atol=1e-5)
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
        assert_same_output(base, reloaded, torch.randn(3, 4))
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
        with same_output(net, images):
            switch()
    else:
        with pytest.raises(InvariantBroken) as caught, same_output(net, images):
            switch()
        assert "eps 0.001 -> 1e-05" in said(caught)


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
        assert_same_output(norm, ChannelsLast(norm), images, atol=1e-5)


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
        with same_output(model, batch, modules="teacher"):
            step()
    else:
        with (
            pytest.raises(InvariantBroken, match=r"output changed: teacher \(training-mode\)"),
            same_output(model, batch, modules="teacher"),
        ):
            step()
