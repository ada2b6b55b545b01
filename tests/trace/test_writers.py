"""The first write to each tensor that changed is found, by operator and line."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_bninvariants import frozen_bn
from tests.trace.tracing import Small, Step, add, broken, copy, line_of, traced


def add_to_data(model: Any) -> None:
    model.fc.weight.data.add_(1)


def write_to_a_view(model: Any) -> None:
    model.fc.weight.detach().T[1:].flatten()
    model.fc.weight.detach()[1, 1:].mul_(3)


def write_by_index(model: Any) -> None:
    model.mean[torch.tensor([0, 2])] = 7


def write_by_slice(model: Any) -> None:
    model.mean[1:] = 7


def average(model: Any) -> None:
    model.mean.lerp_(torch.ones(3), 0.1)


def write_to_out(model: Any) -> None:
    torch.add(torch.ones(3), 1, out=model.mean)


def swap_memory(model: Any) -> None:
    model.mean.set_(torch.ones(3))


def write_to_swapped_memory(model: Any) -> None:
    model.mean.set_(model.mean.clone())
    model.mean.neg_()


def write_to_assigned_memory(model: Any) -> None:
    model.mean.data = model.mean.clone()
    model.mean.neg_()


def write_to_what_was_put_there(model: Any) -> None:
    model.mean = model.mean.clone()
    model.mean.neg_()


def write_through_numpys_alias(model: Any) -> None:
    torch.from_numpy(model.mean.numpy()[1:]).zero_()


TRAINED = Small().fc.requires_grad_(False)
TRAINED.weight.neg_()
OTHER_STATE = Small().state_dict() | {"mean": torch.ones(3)}


def load(model: Any) -> None:
    model.load_state_dict(OTHER_STATE)


def assign_data(model: Any) -> None:
    model.fc.weight.data = torch.ones(2, 3)


def assign_buffer(model: Any) -> None:
    model.mean = model.mean * 0.9


def register_another_buffer(model: Any) -> None:
    model.register_buffer("mean", torch.ones(3))


def register_another_parameter(model: Any) -> None:
    model.fc.register_parameter("weight", nn.Parameter(torch.ones(2, 3)))


def replace_by_a_trained_module(model: Any) -> None:
    model.fc = TRAINED


def swap_for_another(model: Any) -> None:
    torch.utils.swap_tensors(model.fc.weight, nn.Parameter(torch.ones(2, 3)))


def write_in_another_class_of_tensor(model: Any) -> None:
    model.loud.neg_()


def write_in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        model.mean.neg_()


def write_many(model: Any) -> None:
    torch._foreach_add_([torch.ones(2), model.mean], 1)


def write_by_a_custom_operator(model: Any) -> None:
    torch.ops.bninvariants_tests.lies(model.mean)


def overwritten(values: Tensor) -> Tensor:
    values.detach().numpy()[:] = 5
    return values.clone()


LIBRARY = torch.library.Library("bninvariants_tests", "DEF")
LIBRARY.define("lies(Tensor values) -> Tensor")
LIBRARY.impl("lies", overwritten, "CPU")


WRITES: dict[str, tuple[Step, str]] = {
    "add_": (add, "aten.add_.Tensor"),
    "copy_": (copy, "aten.copy_.default"),
    ".data.add_": (add_to_data, "aten.add_.Tensor"),
    "a view": (write_to_a_view, "aten.mul_.Tensor"),
    "an index": (write_by_index, "aten.index_put_.default"),
    "a slice": (write_by_slice, "aten.fill_.Tensor"),
    "lerp_": (average, "aten.lerp_.Scalar"),
    "out=": (write_to_out, "aten.add.out"),
    "set_": (swap_memory, "aten.set_.source_Tensor"),
    "after set_": (write_to_swapped_memory, "aten.neg_.default"),
    "after .data =": (write_to_assigned_memory, "aten.neg_.default"),
    "after an assignment": (write_to_what_was_put_there, "aten.neg_.default"),
    "an alias through NumPy": (write_through_numpys_alias, "aten.zero_.default"),
    "load_state_dict": (load, "aten.copy_.default"),
    ".data =": (assign_data, "Tensor.data = ..."),
    "an assignment": (assign_buffer, "Small.mean = ..."),
    "register_buffer": (register_another_buffer, "Small.register_buffer('mean')"),
    "register_parameter": (register_another_parameter, "Linear.register_parameter('weight')"),
    "another module": (replace_by_a_trained_module, "Small.fc = ..."),
    "swap_tensors": (swap_for_another, "torch.utils.swap_tensors()"),
    "a subclass": (write_in_another_class_of_tensor, "aten.neg_.default"),
    "inference mode": (write_in_inference_mode, "aten.neg_.default"),
    "foreach": (write_many, "aten._foreach_add_.Scalar"),
    "a custom operator that declares nothing": (
        write_by_a_custom_operator,
        "bninvariants_tests.lies.default",
    ),
}


REPLACED = ("an assignment", "register_buffer", "register_parameter", "another module")


@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("names", [None, frozenset({"fc.weight", "mean"})], ids=["all", "named"])
def test_a_write_is_found_by_operator_and_line(way: str, names: frozenset[str] | None) -> None:
    step, operator = WRITES[way]
    (write,) = traced(Small(), step, names=names).writes
    code = step.__code__  # type: ignore[attr-defined]
    source = list(linecache.getlines(code.co_filename)[code.co_firstlineno :])
    last = source[: source.index("\n")][-1].strip()
    assert (write.operator, line_of(write, code.co_filename)) == (operator, last)
    assert write.name in ("fc.weight", "mean")
    assert not write.in_backward
    assert write.replaced == (way in REPLACED)


def test_only_the_first_write_counts() -> None:
    def step(model: Any) -> None:
        model.mean.mul_(2)
        model.mean.zero_()

    (write,) = traced(Small(), step).writes
    assert line_of(write, __file__) == "model.mean.mul_(2)"


def test_an_operator_that_leaves_the_bytes_as_they_are_is_no_writer() -> None:
    def step(model: Any) -> None:
        model.mean.add_(0)
        model.mean.copy_(model.mean.clone())
        model.mean.mul_(2)

    (write,) = traced(Small(), step).writes
    assert write.operator == "aten.mul_.Tensor"


def test_a_tensor_that_has_changed_back_has_no_writer() -> None:
    def step(model: Any) -> None:
        kept = model.mean.clone()
        model.mean.zero_()
        model.mean.copy_(kept)
        add(model)

    assert [write.name for write in traced(Small(), step).writes] == ["fc.weight"]


def test_a_tensor_is_told_of_under_each_of_its_names() -> None:
    model = Small()
    model.tied = nn.Linear(3, 2)
    model.tied.weight = model.fc.weight
    writes = traced(model, add).writes
    assert [(w.name, w.operator) for w in writes] == [
        ("fc.weight", "aten.add_.Tensor"),
        ("tied.weight", "aten.add_.Tensor"),
    ]


OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, object], str]] = {
    "SGD": (torch.optim.SGD, {"foreach": False}, "aten.add_.Tensor"),
    "foreach SGD": (torch.optim.SGD, {"foreach": True}, "aten._foreach_add_.List"),
    "fused SGD": (torch.optim.SGD, {"fused": True}, "aten._fused_sgd_.default"),
    "Adam": (torch.optim.Adam, {"foreach": False}, "aten.addcdiv_.default"),
    "foreach Adam": (torch.optim.Adam, {"foreach": True}, "aten._foreach_addcdiv_.ScalarList"),
    "fused Adam": (torch.optim.Adam, {"fused": True}, "aten._fused_adam_.default"),
    "fused AdamW": (torch.optim.AdamW, {"fused": True}, "aten._fused_adamw_.default"),
    "fused Adagrad": (torch.optim.Adagrad, {"fused": True}, "aten._fused_adagrad_.default"),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizers_step_is_found(kind: str) -> None:
    make, options, operator = OPTIMIZERS[kind]
    model = Small()
    optimizer = make(model.parameters(), lr=0.1, **options)

    def step(model: Any) -> None:
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()

    writes = traced(model, step).writes
    assert [(w.name, w.operator) for w in writes] == [
        ("fc.weight", operator),
        ("fc.bias", operator),
    ]
    assert {line_of(write, __file__) for write in writes} == {"optimizer.step()"}
    assert all(w.place.tool.startswith("torch.optim.") for w in writes if w.place and w.place.tool)


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, batch: Tensor) -> Tensor:
        return self.norm(batch)


class Functional(nn.BatchNorm1d):
    def forward(self, batch: Tensor) -> Tensor:
        return F.batch_norm(batch, self.running_mean, self.running_var, training=True)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(3),
    "without affine": lambda: nn.BatchNorm1d(3, affine=False),
    "cumulative average": lambda: nn.BatchNorm1d(3, momentum=None),
    "F.batch_norm": lambda: Functional(3),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(3, track_running_stats=True),
    "bfloat16": lambda: nn.BatchNorm1d(3).bfloat16(),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_forward_in_training_mode_is_found(kind: str) -> None:
    model = Normed(NORMS[kind]())
    batch = torch.randn(4, 3, 5, dtype=next(model.buffers()).dtype)
    verdict = broken(frozen_bn(model), lambda: model(batch)).verdict
    writes = {write.name: write for write in verdict.writes}
    assert writes.keys() >= {"norm.running_mean", "norm.running_var"}
    assert verdict.changed_tensors == tuple(writes)
    wanted = "return F.batch_norm" if kind == "F.batch_norm" else "return self.norm(batch)"
    assert all(line_of(write, __file__).startswith(wanted) for write in writes.values())
    assert not any(write.in_backward for write in writes.values())
    if "Instance" not in kind:
        assert writes["norm.running_mean"].operator == "aten.native_batch_norm.default"


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(3)
        self.early = False

    def forward(self, batch: Tensor) -> Tensor:
        return checkpoint(self.inner, batch, use_reentrant=False, determinism_check="none")

    def inner(self, batch: Tensor) -> Tensor:
        self.bn.train(self.early)
        self.early = True
        return self.bn(batch)


def test_a_recomputation_in_backward_is_found_there() -> None:
    model = Recomputed()
    batch = torch.randn(4, 3, requires_grad=True)
    writes = broken(frozen_bn(model), lambda: model(batch).sum().backward()).verdict.writes
    assert len(writes) == 3
    assert all(write.in_backward for write in writes)
    assert {line_of(write, __file__) for write in writes} == {"return self.bn(batch)"}


def test_what_torch_compile_made_runs_and_is_traced() -> None:
    model = Normed(nn.BatchNorm1d(3))
    compiled = torch.compile(model, backend="eager")
    compiled(torch.randn(4, 3))
    failure = broken(frozen_bn(model), lambda: compiled(torch.randn(4, 3)))
    assert {write.operator is None for write in failure.verdict.writes} == {False}
    said = " ".join(str(failure).split())
    assert "traced in this run, in which code compiled by torch.compile ran eagerly" in said
