"""What a BN layer normalises with is heard, from what it calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_bninvariants import frozen_bn
from tests.instrumentation.recorder import Recorder, outcome_of, recording


class Functional(nn.BatchNorm1d):
    """Call what it is given to normalise."""

    call: Callable[[nn.Module, Tensor], Tensor]

    def forward(self, batch: Tensor) -> Tensor:
        return type(self).call(self, batch)


def calling(call: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return type("Calling", (Functional,), {"call": staticmethod(call)})(2).eval()  # type: ignore[no-any-return]


TRUE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "functional": lambda m, x: F.batch_norm(x, None, None, training=True),
    "positional": lambda m, x: F.batch_norm(x, None, None, None, None, True),
    "torch.batch_norm": lambda m, x: torch.batch_norm(
        x, None, None, None, None, True, 0.0, 1e-5, False
    ),
    "torch's forward in training mode": lambda m, x: m.train() and nn.BatchNorm1d.forward(m, x),
    "by keyword": lambda m, x: F.batch_norm(
        input=x, running_mean=None, running_var=None, training=True
    ),
}


FALSE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "functional": lambda m, x: F.batch_norm(x, m.running_mean, m.running_var),
    "by keyword": lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, training=False),
    "nothing": lambda m, x: x,
    "its own weight": lambda m, x: (
        x * F.batch_norm(m.weight.view(1, 1, 2), None, None, training=True).view(2)
    ),
    "layer norm": lambda m, x: F.layer_norm(x, x.shape[1:]),
    "torch's forward in eval": lambda m, x: nn.BatchNorm1d.forward(m, x),
}


@pytest.mark.parametrize("call", TRUE.values(), ids=TRUE)
def test_batch_statistics_are_heard_of_in_an_own_forward(
    call: Callable[[Any, Tensor], Tensor],
) -> None:
    layer = calling(call)
    with recording() as recorder:
        layer(torch.randn(4, 2))
    assert recorder.events("batches") == [layer]


@pytest.mark.parametrize("call", FALSE.values(), ids=FALSE)
def test_stored_statistics_in_an_own_forward_are_not_taken_for_batch_statistics(
    call: Callable[[Any, Tensor], Tensor],
) -> None:
    layer = calling(call).train()
    if "eval" in next(name for name, other in FALSE.items() if other is call):
        layer.eval()
    with recording() as recorder:
        layer(torch.randn(4, 2))
    assert recorder.events("batches") == []


def test_an_instance_norms_own_forward_is_heard_too() -> None:
    class Own(nn.InstanceNorm1d):
        def forward(self, batch: Tensor) -> Tensor:
            return F.instance_norm(batch, use_input_stats=True)

    layer = Own(2, track_running_stats=True).eval()
    with recording() as recorder:
        layer(torch.randn(4, 2, 3))
    assert recorder.events("batches") == [layer]


def test_a_forward_that_raises_is_told_apart() -> None:
    layer = nn.BatchNorm1d(2).train()
    with recording() as recorder, pytest.raises(ValueError, match="expected 2D or 3D"):
        layer(torch.randn(4))
    assert recorder.events("batches") == []
    assert recorder.events("failed") == [layer]


@pytest.mark.parametrize("of_all_modules", [True, False])
def test_a_hook_that_raises_before_a_forward_is_told_apart(of_all_modules: bool) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("mine")

    layer = nn.BatchNorm1d(2).train()
    register = torch_module.register_module_forward_pre_hook
    hook = register(fail) if of_all_modules else layer.register_forward_pre_hook(fail)
    try:
        with recording() as recorder, pytest.raises(RuntimeError, match="mine"):
            layer(torch.randn(4, 2))
    finally:
        hook.remove()
    assert recorder.events("batches") == []
    assert recorder.events("failed") == [layer]


class RaisesAfterNormalising(TorchDispatchMode):
    """Run out of memory once a batch is normalised."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "batch_norm" in str(func):
            raise RuntimeError("out of memory")
        return result


def test_a_forward_that_raises_after_it_normalised_has_normalised() -> None:
    layer = nn.BatchNorm1d(2).train()
    raises = pytest.raises(RuntimeError, match="out of memory")
    with recording() as recorder, raises, RaisesAfterNormalising():
        layer(torch.randn(4, 2))
    assert recorder.events("batches") == [layer]
    assert recorder.events("failed") == []


def test_an_own_forward_in_training_mode_that_calls_nothing_of_torchs_is_told_apart() -> None:
    layer = calling(FALSE["nothing"])
    with recording() as recorder:
        layer.eval()(torch.randn(4, 2))
        assert recorder.events("own_forwards") == []
        layer.train()(torch.randn(4, 2))
    assert recorder.events("batches") == []
    assert recorder.events("own_forwards") == [layer]


def test_a_call_outside_of_any_bn_layer_is_nobodys() -> None:
    class Bare(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            return F.batch_norm(batch, None, None, training=True)

    with recording() as recorder:
        Bare()(torch.randn(4, 2))
    assert recorder.events("batches") == []


class Bare(nn.Module):
    """A module that calls a function of torch by its name."""

    def forward(self, name: str, first: list[Any], rest: dict[str, Any]) -> Tensor:
        result: Tensor = getattr(torch, name)(*first, **rest)
        return result


NORMS = {"batch_norm": "training", "instance_norm": "use_input_stats"}


@pytest.mark.parametrize("positional", range(10))
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_a_call_is_told_in_the_same_way_however_its_arguments_are_passed(
    name: str, positional: int, *, batch: bool
) -> None:
    class Listener(Recorder):
        def saw_call(
            self, name: str, state: Any, values: Any, frame: FrameType, *, batch: bool
        ) -> None:
            self.recorded.append((name, ([id(each) for each in state], id(values), batch)))

    flag = NORMS[name]
    values, weight, bias = torch.randn(4, 2, 3), torch.ones(2), torch.zeros(2)
    mean, var = torch.zeros(2), torch.ones(2)
    for stored in ((mean, var), (None, None)) if batch else ((mean, var),):
        arguments = {"input": values, "weight": weight, "bias": bias, "running_mean": stored[0]}
        arguments |= {"running_var": stored[1], flag: batch, "momentum": 0.1, "eps": 1e-5}
        arguments |= {"cudnn_enabled": False}
        names = [*arguments]
        first = [arguments[each] for each in names[:positional]]
        rest = {each: arguments[each] for each in names[positional:]}
        with recording(Listener()) as recorder:
            Bare()(name, first, rest)
        state = [id(weight)] if stored[0] is None else [id(mean), id(var)]
        assert recorder.events(name) == [(state, id(values), batch)]


def test_a_bn_layer_inside_a_bn_layer_is_heard_as_itself() -> None:
    class Outer(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(2)
            self.inner = nn.BatchNorm1d(2)

        def forward(self, batch: Tensor) -> Tensor:
            return F.batch_norm(self.inner(batch), self.running_mean, self.running_var)

    layer = Outer()
    with recording() as recorder:
        layer(torch.randn(4, 2))
    assert recorder.events("batches") == [layer.inner]


def test_a_layer_around_a_layer_around_a_layer_does_nothing_by_itself() -> None:
    class Around(nn.BatchNorm1d):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__(2)
            self.inner = inner

        def forward(self, batch: Tensor) -> Tensor:
            return self.inner(batch)

    class Listener(Recorder):
        def saw_own_forward(self, layer: nn.Module, x: Any, output: object) -> None:
            self.recorded.append(("own", layer))

    other = calling(FALSE["nothing"])
    with recording(Listener()) as recorder:
        Around(Around(nn.BatchNorm1d(2))).eval()(torch.randn(4, 2))
        Around(Around(other)).eval()(torch.randn(4, 2))
    assert recorder.events("own") == [other]


def test_a_call_with_a_copy_of_a_mean_is_the_innermost_layers() -> None:
    class Outer(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(2)
            self.inner = calling(
                lambda m, x: F.batch_norm(
                    x, m.running_mean.clone(), m.running_var.clone(), training=True
                )
            )

        def forward(self, batch: Tensor) -> Tensor:
            return F.batch_norm(self.inner(batch), self.running_mean, self.running_var)

    layer = Outer().eval()
    with recording() as recorder:
        layer(torch.randn(4, 2))
    assert recorder.events("batches") == [layer.inner]


def test_a_bn_layer_is_listened_to_again_after_the_one_inside_it() -> None:
    class Outer(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(2)
            self.inner = calling(FALSE["functional"])

        def forward(self, batch: Tensor) -> Tensor:
            return F.batch_norm(self.inner(batch), None, None, training=True)

    layer = Outer()
    with recording() as recorder:
        layer(torch.randn(4, 2))
    assert recorder.events("batches") == [layer]


def test_a_bn_layer_that_raises_is_no_longer_listened_to() -> None:
    def fail(layer: nn.Module, batch: Tensor) -> Tensor:
        raise ValueError("mine")

    real = torch.batch_norm
    with recording() as recorder:
        with pytest.raises(ValueError, match="mine"):
            calling(fail)(torch.randn(4, 2))
        assert torch.batch_norm is real
        F.batch_norm(torch.randn(4, 2), None, None, training=True)
    assert recorder.events("batches") == []


def test_torchs_functions_are_wrapped_only_while_an_own_forward_runs() -> None:
    real = torch.batch_norm, torch.instance_norm
    during = []

    def look(layer: nn.Module, batch: Tensor) -> Tensor:
        during.append((torch.batch_norm, torch.instance_norm))
        return batch

    with recording():
        calling(look)(torch.randn(4, 2))
        assert (torch.batch_norm, torch.instance_norm) == real
    assert during[0][0] is not real[0]
    assert during[0][1] is not real[1]


def test_nothing_is_wrapped_for_a_forward_of_torchs_own_unless_a_hook_may_flip_its_mode() -> None:
    real, during = torch.batch_norm, []

    class Looking(nn.BatchNorm1d):
        def _check_input_dim(self, input: Tensor) -> None:
            during.append(torch.batch_norm)

    layer = Looking(2).eval()
    with recording() as recorder:
        layer(torch.randn(4, 2))
        hook = layer.register_forward_pre_hook(lambda layer, _: layer.train() and None)
        layer(torch.randn(4, 2))
        hook.remove()
    assert during[0] is real
    assert during[1] is not real
    assert recorder.events("batches") == [layer]


def test_a_global_hook_may_flip_the_mode_before_a_forward() -> None:
    layer = nn.BatchNorm1d(2).eval()
    hook = torch_module.register_module_forward_pre_hook(lambda module, _: module.train() and None)
    try:
        with recording() as recorder:
            layer(torch.randn(4, 2))
    finally:
        hook.remove()
    assert recorder.events("batches") == [layer]


@pytest.mark.parametrize("training", [True, False])
def test_a_global_hook_that_flips_the_mode_after_a_forward_changes_nothing_of_it(
    training: bool,
) -> None:
    layer = nn.BatchNorm1d(2).train(training)
    hook = torch_module.register_module_forward_hook(
        lambda module, _, output: module.train(not training) and None
    )
    try:
        with recording() as recorder:
            layer(torch.randn(4, 2))
    finally:
        hook.remove()
    assert recorder.events("batches") == ([layer] if training else [])


def test_threads_hear_each_of_their_own_layers() -> None:
    layers = [calling((TRUE if number % 2 else FALSE)["functional"]) for number in range(8)]
    real = torch.batch_norm
    barrier = threading.Barrier(len(layers))

    def work(layer: nn.Module) -> None:
        barrier.wait()
        for _ in range(50):
            layer(torch.randn(4, 2))

    with recording() as recorder:
        threads = [threading.Thread(target=work, args=(layer,)) for layer in layers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.batch_norm is real
    heard = recorder.events("batches")
    assert [heard.count(layer) for layer in layers] == [0, 50] * 4


@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_a_tracers_forward_normalises_nothing(kind: str) -> None:
    layer = nn.BatchNorm1d(2)
    with recording() as recorder:
        if kind == "meta":
            layer.to("meta")(torch.randn(4, 2, device="meta"))
        else:
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            with mode:
                layer(mode.from_tensor(torch.randn(4, 2)))
    assert recorder.events("batches") == []


def test_a_wrapper_that_is_on_and_off_all_the_time_is_made_once(batch: Tensor) -> None:
    made = set()

    class Layer(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            made.add(torch.batch_norm)
            return super().forward(x)

    layer = Layer(2).eval()
    for _ in range(3):
        with frozen_bn(layer) as guard:
            layer(batch)
            layer(batch)
        assert outcome_of(guard) == (True, 1, 5)
    assert len(made) == 1
    assert torch.batch_norm not in made
