"""Tracing finds the first write to each tensor that changed, and says what it cannot see."""

from __future__ import annotations

import linecache
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

from pytest_bninvariants import FrozenStateChanged, Guard, Verdict, frozen, frozen_bn
from pytest_bninvariants.run_config import Trace, replaced
from pytest_bninvariants.trace import assignments
from pytest_bninvariants.verdict import Place, Write

Step = Callable[[Any], object]
ALL = Trace()


@pytest.fixture(autouse=True)
def _assignments_are_left_alone() -> Iterator[None]:
    yield
    assert assignments._listeners == []
    assert "data" not in vars(torch.Tensor)


def traced(model: nn.Module, step: Step, *, names: frozenset[str] | None = None) -> Verdict:
    def whole() -> None:
        model(torch.ones(2, 3))
        step(model)

    return broken(frozen(model), whole, Trace(names=names)).verdict


def broken(
    guard: Guard, step: Callable[[], object], trace: Trace | None = ALL
) -> FrozenStateChanged:
    with replaced(trace=trace), pytest.raises(FrozenStateChanged) as caught, guard:
        step()
    return caught.value


def line_of(write: Write) -> str:
    return line_at(write.place)


def line_at(place: Place | None) -> str:
    assert place is not None
    assert place.file == __file__
    return linecache.getline(place.file, place.line).strip()


class Loud(Tensor):
    pass


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3, 2)
        self.register_buffer("mean", torch.arange(3.0))
        self.loud = self.mean.as_subclass(Loud)
        self.eval()

    def forward(self, batch: Tensor) -> Tensor:
        return self.fc(batch)


def add(model: Any) -> None:
    with torch.no_grad():
        model.fc.weight.add_(1)


def copy(model: Any) -> None:
    model.mean.copy_(torch.ones(3))


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
    source = list(linecache.getlines(__file__)[step.__code__.co_firstlineno :])  # type: ignore[attr-defined]
    last = source[: source.index("\n")][-1].strip()
    assert (write.operator, line_of(write)) == (operator, last)
    assert write.name in ("fc.weight", "mean")
    assert not write.in_backward
    assert write.replaced == (way in REPLACED)


def test_only_the_first_write_counts() -> None:
    def step(model: Any) -> None:
        model.mean.mul_(2)
        model.mean.zero_()

    (write,) = traced(Small(), step).writes
    assert line_of(write) == "model.mean.mul_(2)"


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
    assert {line_of(write) for write in writes} == {"optimizer.step()"}
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
    assert all(line_of(write).startswith(wanted) for write in writes.values())
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
    assert {line_of(write) for write in writes} == {"return self.bn(batch)"}


UNSEEN: dict[str, Step] = {
    "NumPy": lambda model: model.mean.numpy().fill(7),
    "another thread": lambda model: in_a_thread(lambda: model.mean.zero_()),
    "a registry": lambda model: model._buffers.update(mean=torch.ones(3)),
}


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize("way", UNSEEN)
def test_what_no_operator_wrote_is_said_to_be_unseen(way: str) -> None:
    (write,) = traced(Small(), UNSEEN[way]).writes or ()
    assert (write.name, write.operator, write.place, write.between) == (
        "mean",
        None,
        None,
        (None, None),
    )
    assert write.replaced == (way == "a registry")


def test_an_unseen_write_is_put_between_two_operators_where_its_name_is_known() -> None:
    def step(model: Any) -> None:
        torch.ones(1)
        torch.ones(1)
        model.mean.numpy().fill(7)
        torch.zeros(1)
        torch.zeros(1)

    (write,) = traced(Small(), step, names=frozenset({"mean"})).writes
    assert write.operator is None
    before, after = map(line_at, write.between)
    assert before in ("torch.ones(1)", "model.mean.numpy().fill(7)")  # torch 2.4 detaches there
    assert after == "torch.zeros(1)"


def test_the_last_operator_is_told_where_an_unseen_write_comes_after_it() -> None:
    (write,) = traced(Small(), UNSEEN["NumPy"], names=frozenset({"mean"})).writes
    before, after = write.between
    assert before is not None
    assert after is None


def test_only_names_that_are_asked_for_are_traced() -> None:
    def step(model: Any) -> None:
        add(model)
        copy(model)

    writes = traced(Small(), step, names=frozenset({"mean", "no.such"})).writes
    assert [write.name for write in writes] == ["mean"]


def test_without_tracing_a_verdict_has_no_writes() -> None:
    model = Small()
    failure = broken(frozen(model), lambda: add(model), None)
    assert failure.verdict.writes == ()
    assert "who  " not in str(failure)


def test_names_that_are_gone_or_new_have_no_writers() -> None:
    def step(model: Any) -> None:
        del model.mean
        model.register_buffer("other", torch.ones(1))

    verdict = traced(Small(), step)
    assert {change.kind for change in verdict.changes} == {"gone", "new"}
    assert verdict.writes == ()


def test_flattened_weights_of_a_recurrent_network_are_followed() -> None:
    model = nn.LSTM(3, 3).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()

    def step(model: Any) -> None:
        model.flatten_parameters()
        for _ in range(300):
            torch.ones(1)
        with torch.no_grad():
            model.bias_hh_l0.add_(1)

    (write,) = traced(model, step).writes
    assert (write.operator, line_of(write)) == ("aten.add_.Tensor", "model.bias_hh_l0.add_(1)")


def train_the_head(model: Any) -> None:
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
        optimizer.step()


def test_a_model_whose_head_trains_has_no_writes_but_those_to_the_head() -> None:
    model = resnet18(num_classes=10).eval()
    with replaced(trace=ALL), frozen(model, exclude="fc"):
        writes = broken(frozen(model), lambda: train_the_head(model)).verdict.writes
    assert [write.name for write in writes] == ["fc.weight", "fc.bias"]


def state_after(step: Step, *, trace: Trace | None) -> list[Tensor]:
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    with replaced(trace=trace), suppress(FrozenStateChanged), frozen(model):
        step(model)
    return [*model.state_dict().values(), torch.get_rng_state(), torch.randn(3)]


@pytest.mark.parametrize("trace", [ALL, Trace(names=frozenset({"bn1.running_mean"}))])
def test_traced_and_bare_runs_are_bit_identical(trace: Trace) -> None:
    def step(model: Any) -> None:
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            features = F.dropout(model(torch.randn(4, 3, 64, 64)), 0.2)
            F.cross_entropy(features, torch.arange(4)).backward()
            optimizer.step()

    pairs = zip(state_after(step, trace=None), state_after(step, trace=trace), strict=True)
    assert all(torch.equal(bare, traced) for bare, traced in pairs)


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class CountingFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [Counting, CountingFunctions])
@pytest.mark.parametrize("outside", [True, False])
def test_a_users_mode_sees_what_it_sees_without_tracing(
    kind: type[Counting | CountingFunctions], outside: bool
) -> None:
    def seen(trace: Trace | None) -> list[str]:
        model, mode = Small(), kind()
        guard = frozen(model)
        contexts = [mode, guard] if outside else [guard, mode]
        with replaced(trace=trace), suppress(FrozenStateChanged), contexts[0], contexts[1]:
            model(torch.ones(2, 3)).sum().backward()
            add(model)
            model.mean.add_(0)
        return [name for name in mode.seen if "detach" not in name]  # autograd may add or save one

    assert seen(ALL) == seen(Trace(names=frozenset({"mean"}))) == seen(None)


def test_a_mode_that_is_left_after_the_guard_stays() -> None:
    mode, model = Counting(), Small()
    with replaced(trace=ALL):
        guard = frozen(model)
        guard.start()
        mode.__enter__()
        model(torch.ones(2, 3))
        guard.stop()
        mode.seen.clear()
        torch.ones(1)
        mode.__exit__(None, None, None)
    assert mode.seen == ["aten.ones.default"]
    assert guard.finish().holds


def test_a_step_that_raises_leaves_no_mode_behind() -> None:
    def step(model: Any) -> None:
        with frozen(model):
            add(model)
            raise ValueError("own")

    with replaced(trace=ALL), pytest.raises(ValueError, match="own") as caught:
        step(Small())
    assert "who  aten.add_.Tensor wrote fc.weight" in caught.value.__notes__[0]


def test_sparse_and_fake_tensors_beside_the_model_do_no_harm() -> None:
    from torch._subclasses import FakeTensorMode

    def step(model: Any) -> None:
        torch.eye(3).to_sparse().mul_(2)
        torch.ones(2, device="meta").add_(1)
        with FakeTensorMode():
            torch.ones(2).add_(1)
        torch.func.vmap(torch.sin)(torch.ones(2, 3))
        copy(model)

    (write,) = traced(Small(), step).writes
    assert write.name == "mean"


def test_what_torch_compile_made_runs_and_is_traced() -> None:
    model = Normed(nn.BatchNorm1d(3))
    compiled = torch.compile(model, backend="eager")
    compiled(torch.randn(4, 3))
    failure = broken(frozen_bn(model), lambda: compiled(torch.randn(4, 3)))
    assert {write.operator is None for write in failure.verdict.writes} == {False}
    said = " ".join(str(failure).split())
    assert "traced in this run, in which what torch.compile had made ran eagerly" in said


def test_writes_are_plain_data() -> None:
    writes = traced(Small(), add).writes
    assert pickle.loads(pickle.dumps(writes)) == writes
