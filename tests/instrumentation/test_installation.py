"""Torch is listened to without being disturbed, whatever else is put around it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._dynamo.callback import callback_handler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from pytest_bninvariants import FrozenStateChanged, frozen, frozen_bn
from pytest_bninvariants.instrumentation import installation, observer_api
from pytest_bninvariants.instrumentation.observer_api import ForwardKind, Observer
from pytest_bninvariants.torch_internals import dynamo


class Ear(Observer):
    """Write down what is heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object]] = []

    def ignores(self, module: nn.Module) -> bool:
        return False

    def saw_forward(self, module: nn.Module) -> None:
        self.heard.append(("forward", module))

    def before_layer(self, layer: nn.Module, x: Tensor | None) -> Callable[[bool], None]:
        self.heard.append(("layer", x))
        return lambda failed: self.heard.append(("raised" if failed else "ended", layer))

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        self.heard.append((kind, layer))
        self.heard.append(("values", values))

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        self.heard.append(("training" if training else "eval", module))

    def before_step(
        self, optimizer: Optimizer, frame: object, *, closure: bool
    ) -> Callable[[], None]:
        return lambda: self.heard.append(("closure" if closure else "optimizer", optimizer))

    def before_load(self, module: nn.Module, frame: object) -> Callable[[], None]:
        return lambda: self.heard.append(("load", module))

    def before_collective(
        self, name: str, tensors: list[Tensor], frame: object
    ) -> Callable[[], None]:
        return lambda: self.heard.append((name, tensors))

    def saw_compiled_code(self) -> None:
        self.heard.append(("compilation", None))

    def of(self, kind: str) -> list[object]:
        return [what for heard, what in self.heard if heard == kind]


@contextmanager
def listening(ear: Ear | None = None) -> Iterator[Ear]:
    ear = Ear() if ear is None else ear
    installation.add(ear)
    try:
        yield ear
    finally:
        installation.discard(ear)


def test_forwards_are_heard_from_the_outside_in(net: Any, batch: Tensor) -> None:
    with listening() as ear:
        net(batch)
    inside = [net, net.backbone, net.backbone.conv, net.backbone.bn, net.neck, net.head]
    assert ear.of("forward") == inside


def test_nothing_is_heard_before_and_after(net: Any, batch: Tensor) -> None:
    net.train()(batch)
    with listening() as ear:
        pass
    net.train()(batch)
    torch.optim.SGD(net.parameters()).step()
    assert ear.heard == []


def test_steps_of_any_optimizer_are_heard(net: Any) -> None:
    class Own(Optimizer):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            pass

    made = [Own(net.parameters(), {}), torch.optim.Adam(net.parameters())]
    with listening() as ear:
        for optimizer in made:
            optimizer.step()
    assert ear.of("optimizer") == made


def test_a_step_inside_anothers_ends_first_and_both_are_heard_to_end(net: Any) -> None:
    plain = torch.optim.SGD(net.parameters())

    class Outer(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            plain.step()
            return super().step(closure)

    outer = Outer(net.parameters())
    with listening() as ear:
        outer.step()
    assert ear.of("optimizer") == [plain, outer, outer]


def test_an_optimizer_whose_step_raises_does_not_keep_its_model_alive() -> None:
    net = nn.Linear(2, 2)
    optimizer, weight = torch.optim.LBFGS(net.parameters()), weakref.ref(net.weight)

    def fails() -> float:
        raise ValueError

    with suppress(ValueError), frozen(net):
        net(torch.ones(1, 2))
        optimizer.step(fails)
    del net, optimizer
    gc.collect()
    assert weight() is None


def test_modes_that_are_set_and_cleared_are_heard(net: Any) -> None:
    with listening() as ear:
        net.neck.train()
        net.neck.eval()
        net.neck.training = True
        net.neck.train(False)
    assert ear.of("training") == [net.neck, net.neck]
    assert ear.of("eval") == [net.neck, net.neck]


def test_a_layers_forward_is_heard_with_its_input_what_it_normalises_and_its_end(net: Any) -> None:
    x = torch.ones(2, 3, 1)
    with listening() as ear:
        net.neck.train()(x)
        with pytest.raises(RuntimeError):
            net.neck(torch.ones(2, 4, 1))
    assert [each is x for each in ear.of("layer")] == [True, False]
    assert ear.of("values")[0] is x
    assert ear.of("ended") == [net.neck]
    assert ear.of("raised") == [net.neck]


def test_every_observer_hears_until_it_leaves(net: Any, batch: Tensor) -> None:
    with listening() as outer:
        with listening() as inner:
            net.neck(torch.ones(1, 3, 1))
        net.head(torch.ones(1, 3))
    assert inner.of("forward") == [net.neck]
    assert outer.of("forward") == [net.neck, net.head]


def test_what_all_ignore_nobody_hears_of(net: Any, batch: Tensor) -> None:
    class Deaf(Ear):
        def ignores(self, module: nn.Module) -> bool:
            return module is not net.neck

    with listening(Deaf()) as deaf:
        net(batch)
        assert deaf.of("forward") == [net.neck]
        with listening() as ear:
            net(batch)
    assert ear.of("forward")[0] is net


def test_a_bn_layer_that_nobody_heeds_is_not_listened_to(net: Any, batch: Tensor) -> None:
    class Heedless(Ear):
        def observes_layer(self, layer: nn.Module) -> bool:
            return layer is net.neck

    with listening(Heedless()) as ear:
        net.train()(batch)
    assert ear.of("ended") == [net.neck]
    assert ear.of("forward")[1:3] == [net.backbone, net.backbone.conv]


def test_an_observer_that_leaves_twice_or_never_came_is_harmless(
    torch_state: Callable[[], dict[str, Any]],
) -> None:
    before = torch_state()
    with listening() as ear:
        installation.discard(Ear())
        installation.discard(ear)
        assert torch_state() == before
    installation.discard(ear)
    assert torch_state() == before


# What a BN layer normalises with.


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
    "layer norm": lambda m, x: F.layer_norm(x, x.shape[1:]),
    "torch's forward in eval": lambda m, x: nn.BatchNorm1d.forward(m, x),
}


@pytest.mark.parametrize("call", TRUE.values(), ids=TRUE)
def test_batch_statistics_are_heard_of_in_an_own_forward(
    call: Callable[[Any, Tensor], Tensor],
) -> None:
    layer = calling(call)
    with listening() as ear:
        layer(torch.randn(4, 2))
    assert ear.of("batches") == [layer]


@pytest.mark.parametrize("call", FALSE.values(), ids=FALSE)
def test_stored_statistics_in_an_own_forward_are_not_taken_for_batch_statistics(
    call: Callable[[Any, Tensor], Tensor],
) -> None:
    layer = calling(call).train()
    if "eval" in next(name for name, other in FALSE.items() if other is call):
        layer.eval()
    with listening() as ear:
        layer(torch.randn(4, 2))
    assert ear.of("batches") == []


def test_an_instance_norms_own_forward_is_heard_too() -> None:
    class Own(nn.InstanceNorm1d):
        def forward(self, batch: Tensor) -> Tensor:
            return F.instance_norm(batch, use_input_stats=True)

    layer = Own(2, track_running_stats=True).eval()
    with listening() as ear:
        layer(torch.randn(4, 2, 3))
    assert ear.of("batches") == [layer]


def test_a_forward_that_raises_is_told_apart() -> None:
    layer = nn.BatchNorm1d(2).train()
    with listening() as ear, pytest.raises(ValueError, match="expected 2D or 3D"):
        layer(torch.randn(4))
    assert ear.of("batches") == []
    assert ear.of("failed") == [layer]


def test_an_own_forward_in_training_mode_that_calls_nothing_of_torchs_is_told_apart() -> None:
    layer = calling(FALSE["nothing"])
    with listening() as ear:
        layer.eval()(torch.randn(4, 2))
        assert ear.of("own_forwards") == []
        layer.train()(torch.randn(4, 2))
    assert ear.of("batches") == []
    assert ear.of("own_forwards") == [layer]


def test_a_call_outside_of_any_bn_layer_is_nobodys() -> None:
    class Bare(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            return F.batch_norm(batch, None, None, training=True)

    with listening() as ear:
        Bare()(torch.randn(4, 2))
    assert ear.of("batches") == []


def test_a_bn_layer_inside_a_bn_layer_is_heard_as_itself() -> None:
    class Outer(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(2)
            self.inner = nn.BatchNorm1d(2)

        def forward(self, batch: Tensor) -> Tensor:
            return F.batch_norm(self.inner(batch), self.running_mean, self.running_var)

    layer = Outer()
    with listening() as ear:
        layer(torch.randn(4, 2))
    assert ear.of("batches") == [layer.inner]


def test_a_bn_layer_is_listened_to_again_after_the_one_inside_it() -> None:
    class Outer(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(2)
            self.inner = calling(FALSE["functional"])

        def forward(self, batch: Tensor) -> Tensor:
            return F.batch_norm(self.inner(batch), None, None, training=True)

    layer = Outer()
    with listening() as ear:
        layer(torch.randn(4, 2))
    assert ear.of("batches") == [layer]


def test_a_bn_layer_that_raises_is_no_longer_listened_to() -> None:
    def fail(layer: nn.Module, batch: Tensor) -> Tensor:
        raise ValueError("mine")

    real = torch.batch_norm
    with listening() as ear:
        with pytest.raises(ValueError, match="mine"):
            calling(fail)(torch.randn(4, 2))
        assert torch.batch_norm is real
        F.batch_norm(torch.randn(4, 2), None, None, training=True)
    assert ear.of("batches") == []


def test_torchs_functions_are_wrapped_only_while_an_own_forward_runs() -> None:
    real = torch.batch_norm, torch.instance_norm
    during = []

    def look(layer: nn.Module, batch: Tensor) -> Tensor:
        during.append((torch.batch_norm, torch.instance_norm))
        return batch

    with listening():
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
    with listening() as ear:
        layer(torch.randn(4, 2))
        hook = layer.register_forward_pre_hook(lambda layer, _: layer.train() and None)
        layer(torch.randn(4, 2))
        hook.remove()
    assert during[0] is real
    assert during[1] is not real
    assert ear.of("batches") == [layer]


def test_who_comes_and_goes_while_others_are_heard_alone_leaves_nobody_behind() -> None:
    inside, go = threading.Barrier(3), threading.Barrier(3)

    def alone() -> None:
        with installation.observed_only_by(Ear()):
            inside.wait()
            go.wait()

    early, late = Ear(), Ear()
    installation.add(early)
    threads = [threading.Thread(target=alone) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait()
    installation.discard(early)
    installation.add(late)
    go.wait()
    for thread in threads:
        thread.join()
    assert observer_api.active_observers == (late,)
    installation.discard(late)
    assert observer_api.active_observers == ()


def test_threads_hear_each_of_their_own_layers() -> None:
    layers = [calling((TRUE if number % 2 else FALSE)["functional"]) for number in range(8)]
    real = torch.batch_norm
    barrier = threading.Barrier(len(layers))

    def work(layer: nn.Module) -> None:
        barrier.wait()
        for _ in range(50):
            layer(torch.randn(4, 2))

    with listening() as ear:
        threads = [threading.Thread(target=work, args=(layer,)) for layer in layers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.batch_norm is real
    heard = ear.of("batches")
    assert [heard.count(layer) for layer in layers] == [0, 50] * 4


@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_a_tracers_forward_normalises_nothing(kind: str) -> None:
    layer = nn.BatchNorm1d(2)
    with listening() as ear:
        if kind == "meta":
            layer.to("meta")(torch.randn(4, 2, device="meta"))
        else:
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            with mode:
                layer(mode.from_tensor(torch.randn(4, 2)))
    assert ear.of("batches") == []


# Others who wrap what we wrap.


def wrapper_of(original: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append("wrapped")
        return original(self, *args, **kwargs)

    return wrapped


@contextmanager
def wrapped(name: str, calls: list[str]) -> Iterator[None]:
    """Wrap one of Module's methods, whatever it is at the moment."""
    with mock.patch.object(nn.Module, name, wrapper_of(getattr(nn.Module, name), calls)):
        yield


@pytest.fixture
def put_back() -> Iterator[None]:
    names = "__call__", "_call_impl", "__setattr__"
    methods = {name: vars(nn.Module)[name] for name in names}
    yield
    for name, method in methods.items():
        setattr(nn.Module, name, method)


@pytest.mark.parametrize("name", ["__call__", "_call_impl", "__setattr__"])
def test_a_wrapper_around_ours_that_ends_within_the_step_is_seen_through(
    net: Any, batch: Tensor, name: str
) -> None:
    calls: list[str] = []
    with (
        pytest.raises(FrozenStateChanged),
        frozen_bn(net),
        wrapped(name, calls),
    ):
        net.train()(batch)
    assert calls


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("name", ["__call__", "_call_impl", "__setattr__"])
def test_a_wrapper_that_a_step_leaves_around_ours_does_not_break_the_next_guard(
    net: Any, batch: Tensor, name: str
) -> None:
    calls: list[str] = []
    with frozen_bn(net):
        setattr(nn.Module, name, wrapper_of(getattr(nn.Module, name), calls))
        net.eval()(batch)
    for _ in range(2):
        with frozen_bn(net):
            net.eval()(batch)
    with pytest.raises(FrozenStateChanged), frozen_bn(net):
        net.train()(batch)


def test_a_wrapper_around_ours_does_not_break_a_compilation_inside_it(
    net: Any, batch: Tensor
) -> None:
    calls: list[str] = []
    with frozen_bn(net):
        with wrapped("__setattr__", calls):
            torch.compile(net, backend="eager")(batch)
            net.neck.extra = 1
        net.eval()(batch)
    assert "wrapped" in calls


def test_a_wrapper_that_ends_while_ours_is_around_it_is_not_brought_back(
    net: Any, batch: Tensor
) -> None:
    real = nn.Module._call_impl
    patch = mock.patch.object(nn.Module, "_call_impl", wrapper_of(real, []))
    patch.start()
    guard = frozen(net)
    guard.start()
    patch.stop()
    net.head.weight.data.add_(1)
    guard.finish()
    assert nn.Module._call_impl is real


# Dynamo.


def test_a_compilation_is_heard_and_listening_goes_on_after_it(net: Any, batch: Tensor) -> None:
    with listening() as ear:
        torch.compile(net.neck, backend="eager")(torch.ones(2, 3, 1))
        net.head(torch.ones(1, 3))
    assert ear.of("compilation")
    assert net.head in ear.of("forward")


def test_ours_is_off_while_dynamo_compiles(net: Any, batch: Tensor) -> None:
    real = nn.Module._call_impl, nn.Module.__setattr__.__code__
    during: list[tuple[object, object]] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        during.append((nn.Module._call_impl, nn.Module.__setattr__.__code__))
        return graph.forward

    with listening():
        torch.compile(net, backend=backend)(batch)
        assert nn.Module._call_impl is not real[0]
        assert nn.Module.__setattr__.__code__ is not real[1]
    assert during
    assert set(during) == {real}


def test_a_failed_compilation_does_not_end_the_listening(net: Any, batch: Tensor) -> None:
    def backend(*_: object) -> Any:
        raise RuntimeError("no backend")

    with listening() as ear:
        with pytest.raises(Exception, match="no backend"):
            torch.compile(net, backend=backend)(batch)
        net.head(torch.ones(1, 3))
    assert net.head in ear.of("forward")


def test_a_step_that_clears_dynamos_callbacks_is_none_of_our_business(
    net: Any, batch: Tensor
) -> None:
    with frozen(net):
        callback_handler.clear()
        torch._dynamo.reset()
        net(batch)
    assert callback_handler.start_callbacks == callback_handler.end_callbacks == []


def test_code_that_was_compiled_before_is_heard_of_when_it_runs(net: Any, batch: Tensor) -> None:
    compiled = torch.compile(lambda x: net(x), backend="eager")
    compiled(batch)
    assert dynamo.sees_compiled_code()
    with listening() as ear:
        net.head(torch.ones(1, 3))
        assert not ear.of("compilation")
        compiled(batch)
        assert ear.of("compilation")


def test_code_that_was_not_compiled_is_not_taken_for_it(net: Any, batch: Tensor) -> None:
    torch.compile(net, backend="eager")(batch)
    with listening() as ear:
        net(batch)
        torch.compiler.disable(net)(batch)
    assert ear.of("compilation") == []


def test_a_wrapper_that_is_on_and_off_all_the_time_is_made_once(batch: Tensor) -> None:
    made = set()

    class Layer(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            made.add(torch.batch_norm)
            return super().forward(x)

    layer = Layer(2).eval()
    for _ in range(3):
        with frozen_bn(layer):
            layer(batch)
            layer(batch)
    assert len(made) == 1
    assert torch.batch_norm not in made
