"""A model's state is put back so that the next run starts equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import frozen
from pytest_bninvariants.snapshot.model_state.restore import ModelState
from tests.watching import watched


def look(model: nn.Module) -> dict[str, object]:
    """Return what putting back is to put back, by bytes and by object."""
    found: dict[str, object] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found[f"{name} mode"] = module.training
        for own, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                found[f"{name}.{own}"] = None
                continue
            values = tensor.detach().clone()
            raw = values.contiguous().view(-1).view(torch.uint8).tolist()
            found[f"{name}.{own}"] = (id(tensor), tensor.dtype, tensor.shape, raw)
    return found


def cast_there(net: Any, batch: Tensor) -> None:
    net.half()


def gone(net: Any, batch: Tensor) -> None:
    del net.neck.running_mean
    del net.neck.weight
    net.backbone.bn.bias = None


def new_buffer(net: Any, batch: Tensor) -> None:
    net.neck.register_buffer("more", torch.ones(1))
    net.register_parameter("scale", nn.Parameter(torch.ones(1)))


def new_module(net: Any, batch: Tensor) -> None:
    net.neck = nn.BatchNorm1d(3)


STEPS: dict[str, Callable[[Any, Tensor], object]] = {
    "nothing": lambda net, batch: None,
    "training": lambda net, batch: net.train()(batch),
    "modes": lambda net, batch: net.neck.train(),
    "in place": lambda net, batch: net.neck.running_mean.add_(1),
    "data": lambda net, batch: setattr(net.neck.weight, "data", torch.full((3,), 7.0)),
    "data of another shape": lambda net, batch: setattr(net.neck.weight, "data", torch.ones(5)),
    "nan": lambda net, batch: net.neck.running_var.fill_(float("nan")),
    "replaced": lambda net, batch: setattr(net.neck, "weight", nn.Parameter(torch.ones(3))),
    "rebound": lambda net, batch: setattr(net.neck, "running_mean", torch.ones(3)),
    "cast": cast_there,
    "gone": gone,
    "new": new_buffer,
    "new module": new_module,
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_everything_is_put_back(
    net: Any, batch: Tensor, step: Callable[[Any, Tensor], object]
) -> None:
    before = look(net)
    state = ModelState(net)
    step(net, batch)
    state.restore()
    assert look(net) == before
    with frozen(net) as guard:
        net.eval()(batch)
    assert watched(guard) == (4, 14)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_it_can_be_put_back_again_and_again(
    net: Any, batch: Tensor, step: Callable[[Any, Tensor], object]
) -> None:
    before = look(net)
    state = ModelState(net)
    for _ in range(3):
        step(net, batch)
        state.restore()
    assert look(net) == before


def test_the_output_is_the_same_after_putting_back(net: Any, batch: Tensor) -> None:
    with torch.no_grad():
        expected = net(batch)
    state = ModelState(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    net.train()(batch).sum().backward()
    optimizer.step()
    state.restore()
    with torch.no_grad():
        assert torch.equal(net(batch), expected)


def test_modules_that_share_a_tensor_still_share_it() -> None:
    model = nn.Module()
    model.first, model.second = nn.Linear(2, 2), nn.Linear(2, 2)
    model.second.weight = model.first.weight
    state = ModelState(model)
    model.first.weight.data.add_(1)
    model.second.weight = nn.Parameter(torch.zeros(2, 2))
    state.restore()
    assert model.second.weight is model.first.weight


@pytest.mark.parametrize(
    "write",
    [
        lambda model: model.flat.add_(1),
        lambda model: setattr(model.flat, "data", torch.full((4,), 9.0)),
    ],
)
def test_views_of_one_memory_stay_views_of_it(write: Callable[[Any], object]) -> None:
    model = nn.Module()
    model.register_buffer("flat", torch.arange(4.0))
    model.register_buffer("head", model.flat[:2])
    state = ModelState(model)
    write(model)
    state.restore()
    assert model.flat.tolist() == [0, 1, 2, 3]
    assert model.head.tolist() == [0, 1]
    if model.flat.data_ptr() == model.head.data_ptr():
        model.flat[0] = 5.0
        assert model.head[0] == 5.0


def test_a_numpy_array_of_a_buffer_still_is_one(net: Any) -> None:
    alias = net.neck.running_mean.numpy()
    state = ModelState(net)
    net.neck.running_mean += 1
    state.restore()
    net.neck.running_mean[0] = 42.0
    assert alias[0] == 42.0


def in_inference() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(2)


TENSORS: dict[str, Callable[[], Tensor]] = {
    "expanded": lambda: torch.zeros(1).expand(3),
    "transposed": lambda: torch.zeros(2, 3).t(),
    "channels last": lambda: torch.zeros(1, 2, 3, 3).to(memory_format=torch.channels_last),
    "empty": lambda: torch.zeros(0, 3),
    "0-d": lambda: torch.tensor(0.0),
    "bool": lambda: torch.zeros(3, dtype=torch.bool),
    "half": lambda: torch.zeros(3).half(),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "inference": in_inference,
}


@pytest.mark.parametrize("build", TENSORS.values(), ids=TENSORS)
def test_tensors_of_every_sort_are_put_back(build: Callable[[], Tensor]) -> None:
    model = nn.Module()
    model.register_buffer("x", build())
    before = model.x
    values = before.to_dense().clone()
    strides = before.stride() if before.layout == torch.strided else None
    state = ModelState(model)
    with torch.inference_mode(before.is_inference()):
        before.data = torch.ones_like(before.to_dense()).to(before.dtype) if strides else -before
    state.restore()
    assert model.x is before
    assert torch.equal(before.to_dense(), values)


def test_a_lazy_model_can_be_kept() -> None:
    model = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    ModelState(model).restore()
    assert model(torch.ones(2, 3)).shape == (2, 2)


def test_gradients_are_left_alone(net: Any, batch: Tensor) -> None:
    net(batch).sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    state = ModelState(net)
    net.head.weight.data.add_(1)
    state.restore()
    assert all(p.grad is gradients[name] for name, p in net.named_parameters())


def test_keeping_a_state_draws_no_random_numbers_and_leaves_no_graph(net: Any) -> None:
    rng = torch.get_rng_state()
    state = ModelState(net)
    net.neck.running_mean += 1
    state.restore()
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad_fn is None and p.is_leaf for p in net.parameters())
    assert all(p.requires_grad for p in net.parameters())
