"""A guard is never silent, never in the way, and leaves nothing behind."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import (
    FrozenStateChanged,
    GateError,
    frozen,
    frozen_bn,
    same_output,
)
from pytest_bninvariants.errors import describe
from pytest_bninvariants.guard_registry import entered
from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.invariants.conclude import conclude
from pytest_bninvariants.invariants.guard import GuardNeverEntered

GUARDS = pytest.mark.parametrize("guard", [frozen, frozen_bn])


def test_a_step_that_changes_nothing_holds(net: Any, batch: Tensor) -> None:
    with frozen(net) as guard:
        net(batch)
    assert guard.verdict is not None
    assert guard.verdict.holds
    assert guard.verdict.changes == guard.verdict.causes == guard.verdict.hazards == ()


@GUARDS
def test_a_step_that_changes_something_is_named_in_the_first_line(
    net: Any, batch: Tensor, guard: Any
) -> None:
    net.neck.train()
    with pytest.raises(FrozenStateChanged) as caught, guard(net):
        net(batch)
    headline = str(caught.value).splitlines()[0]
    assert headline.endswith("changed: neck (training-mode)")
    assert caught.value.verdict.changed_layers == ("neck",)


def test_the_guard_holds_its_verdict_also_when_it_raises(net: Any, batch: Tensor) -> None:
    guard = frozen_bn(net.train())
    with pytest.raises(FrozenStateChanged) as caught, guard:
        net(batch)
    assert guard.verdict is caught.value.verdict
    assert caught.value.verdicts == (guard.verdict,)


@pytest.mark.parametrize(
    ("make", "spelled"),
    [
        (lambda net: frozen_bn(net), "frozen_bn()"),
        (lambda net: frozen(net, "neck", "head"), "frozen('neck', 'head')"),
        (lambda net: frozen(net, parameters=False), "frozen(parameters=False)"),
        (lambda net: frozen_bn(net, "neck", buffers=False), "frozen_bn('neck', buffers=False)"),
        (lambda net: frozen(net, allow_batch_stats=True), "frozen(allow_batch_stats=True)"),
        (lambda net: frozen(net, exclude="neck"), "frozen(exclude='neck')"),
        (lambda net: frozen(net, exclude=["neck"]), "frozen(exclude='neck')"),
        (lambda net: frozen(net, exclude=("neck", "head")), "frozen(exclude=['neck', 'head'])"),
    ],
)
def test_a_guard_is_spelled_as_its_user_wrote_it(
    net: Any, batch: Tensor, make: Callable[[Any], Any], spelled: str
) -> None:
    with make(net) as guard:
        net(batch)
    assert guard.spelled == guard.verdict.guard == spelled


# Silence is never a pass.


def nothing(net: Any, batch: Tensor) -> None:
    pass


def only_the_mode(net: Any, batch: Tensor) -> None:
    net.train().eval()


def another_model(net: Any, batch: Tensor) -> None:
    type(net)().train()(batch)


def another_models_optimizer(net: Any, batch: Tensor) -> None:
    other = type(net)()
    other(batch).sum().backward()
    torch.optim.SGD(other.parameters(), lr=1.0).step()


def only_reading(net: Any, batch: Tensor) -> None:
    net.state_dict()
    list(net.parameters())
    [p.sum() for p in net.parameters()]
    net.zero_grad()
    net.requires_grad_(False).requires_grad_(True)
    repr(net)


def a_copy(net: Any, batch: Tensor) -> None:
    pickle.loads(pickle.dumps(net))(batch)


NOTHING = [
    nothing,
    only_the_mode,
    another_model,
    another_models_optimizer,
    only_reading,
    a_copy,
]


@GUARDS
@pytest.mark.parametrize("step", NOTHING)
def test_a_step_in_which_nothing_ran_is_a_gate_error(
    net: Any, batch: Tensor, guard: Any, step: Callable[[Any, Tensor], None]
) -> None:
    with pytest.raises(GateError, match="nothing ran inside frozen") as caught, guard(net):
        step(net, batch)
    assert "\n" not in str(caught.value)


@GUARDS
@pytest.mark.parametrize("watched", ["neck", "backbone"])
def test_a_forward_of_an_unwatched_part_does_not_count(
    net: Any, batch: Tensor, guard: Any, watched: str
) -> None:
    with pytest.raises(GateError, match="nothing ran"), guard(net, watched):
        net.head(torch.ones(1, 3))


def test_a_forward_of_a_layer_without_bn_does_not_count_for_frozen_bn(
    net: Any, batch: Tensor
) -> None:
    with pytest.raises(GateError, match="nothing ran"), frozen_bn(net, "backbone"):
        net.backbone.conv(batch)
    with frozen(net, "backbone"):
        net.backbone.conv(batch)


def test_an_excluded_layers_forward_does_not_count(net: Any, batch: Tensor) -> None:
    with pytest.raises(GateError, match="nothing ran"), frozen_bn(net, exclude="neck"):
        net.neck(torch.ones(2, 3, 1))


def an_optimizers_step(net: Any, batch: Tensor) -> None:
    net.head(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.0).step()


def an_optimizer_without_gradients(net: Any, batch: Tensor) -> None:
    torch.optim.SGD(net.head.parameters(), lr=1.0).step()


def a_write_elsewhere(net: Any, batch: Tensor) -> None:
    with torch.no_grad():
        net.head.weight += 1


def a_load(net: Any, batch: Tensor) -> None:
    net.load_state_dict(net.state_dict())


def a_new_module(net: Any, batch: Tensor) -> None:
    net.extra = nn.Linear(1, 1)


def a_forward_under_no_grad(net: Any, batch: Tensor) -> None:
    with torch.no_grad():
        net(batch)


def a_forward_in_inference_mode(net: Any, batch: Tensor) -> None:
    with torch.inference_mode():
        net(batch)


def a_forward_in_a_thread(net: Any, batch: Tensor) -> None:
    thread = threading.Thread(target=net, args=(batch,))
    thread.start()
    thread.join()


def a_functional_call(net: Any, batch: Tensor) -> None:
    torch.func.functional_call(net, dict(net.named_parameters()), (batch,))


def a_data_parallel_forward(net: Any, batch: Tensor) -> None:
    nn.DataParallel(net)(batch)


def one_layers_forward(net: Any, batch: Tensor) -> None:
    net.neck(torch.ones(2, 3, 1))


SOMETHING = [
    an_optimizers_step,
    an_optimizer_without_gradients,
    a_write_elsewhere,
    a_load,
    a_new_module,
    a_forward_under_no_grad,
    a_forward_in_inference_mode,
    a_forward_in_a_thread,
    a_functional_call,
    a_data_parallel_forward,
    one_layers_forward,
]


@pytest.mark.parametrize("step", SOMETHING)
def test_a_step_in_which_something_ran_holds(
    net: Any, batch: Tensor, step: Callable[[Any, Tensor], None]
) -> None:
    with frozen_bn(net):
        step(net, batch)


@pytest.mark.parametrize("compiled", ["module", "in place", "function"])
def test_unknown_is_not_nothing_in_compiled_code(net: Any, batch: Tensor, compiled: str) -> None:
    forward: Callable[[Tensor], Tensor] = net
    if compiled == "module":
        forward = torch.compile(net, backend="eager")
    elif compiled == "in place":
        net.compile(backend="eager")
    else:
        forward = torch.compile(lambda batch: net(batch), backend="eager")
    forward(batch)
    with frozen_bn(net):
        forward(batch)


def test_a_guard_that_is_used_twice_is_a_gate_error(net: Any, batch: Tensor) -> None:
    guard = frozen(net)
    with guard:
        net(batch)
    with pytest.raises(GateError, match=r"frozen\(\) is for one step"), guard:
        net(batch)


def test_a_guard_that_is_entered_within_itself_is_a_gate_error(net: Any, batch: Tensor) -> None:
    guard = frozen(net)
    with guard:
        net(batch)
        with pytest.raises(GateError, match="is for one step"), guard:
            net(batch)
    assert guard.verdict is not None


def test_a_guard_that_was_never_started_cannot_finish(net: Any) -> None:
    guard = frozen(net)
    with pytest.raises(GateError, match="was never started"):
        guard.finish()


@GUARDS
def test_a_guard_that_is_never_entered_warns_and_is_noted(
    net: Any, guard: Any, unreported: dict[int, str]
) -> None:
    line = sys._getframe().f_lineno + 2
    with pytest.warns(GuardNeverEntered, match=r"'neck'\), made at .*, was never entered"):
        guard(net, "neck")  # whose only reference this is
    noted = list(unreported.values())
    unreported.clear()  # else the plugin fails this test, as it should any other
    assert len(noted) == 1
    assert noted[0].startswith(f"{guard.__name__}('neck'), made at ")
    assert f"test_guard.py:{line}, was never entered" in noted[0]


def test_a_guard_that_is_kept_and_never_entered_is_noted(
    net: Any, unreported: dict[int, str]
) -> None:
    kept = [frozen(net), frozen(net, "neck")]
    noted = len(unreported)
    for each in kept:
        each.stop()
    assert (noted, len(unreported)) == (2, 0)


def test_a_guard_that_was_entered_is_not_noted(
    net: Any, batch: Tensor, unreported: dict[int, str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with frozen(net):
            net(batch)
        with pytest.raises(GateError), frozen(net, "typo"):
            pass
        with pytest.raises(GateError):
            frozen(net, parameters=3)  # type: ignore[arg-type]
        gc.collect()
    assert unreported == {}


def test_a_guard_that_held_keeps_no_model_alive(net: Any, batch: Tensor) -> None:
    model = type(net)().eval()
    with frozen(model):
        model(batch)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


# The step's own exception wins.


def drift_and_raise(net: Any, batch: Tensor, error: BaseException) -> None:
    net.train()(batch)
    raise error


@GUARDS
def test_the_steps_own_exception_wins_and_carries_the_drift(
    net: Any, batch: Tensor, guard: Any
) -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught, guard(net):
        drift_and_raise(net, batch, error)
    assert caught.value is error
    (note,) = error.__notes__
    assert "when this was raised, frozen state had changed" in note
    assert "backbone.bn.running_mean" in note
    assert error.__context__ is None
    assert error.__cause__ is None


@pytest.mark.parametrize("training", [False, True])
def test_an_exception_without_drift_carries_no_note(net: Any, training: bool) -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine"), frozen(net.train(training)):
        raise error
    assert not hasattr(error, "__notes__")


def test_an_exception_group_carries_the_drift_too(net: Any, batch: Tensor) -> None:
    error = ExceptionGroup("many", [ValueError("one"), KeyError("two")])
    with pytest.raises(ExceptionGroup) as caught, frozen(net):
        drift_and_raise(net, batch, error)
    assert caught.value is error
    assert len(error.__notes__) == 1


def test_a_generator_that_is_given_up_leaves_its_verdict_for_the_end(
    net: Any, batch: Tensor, unreported: dict[int, str]
) -> None:
    def losses(*, training: bool) -> Iterator[Tensor]:
        with frozen(net):
            while True:
                yield net.train(training)(batch)

    for training, found in ((True, "frozen layers changed"), (False, "")):
        steps = losses(training=training)
        next(steps)
        steps.close()
        assert [found in text for text in unreported.values()] == ([True] if found else [])
        unreported.clear()


def test_a_generator_that_is_given_up_before_anything_ran_says_so(
    net: Any, unreported: dict[int, str]
) -> None:
    def nothing() -> Iterator[None]:
        with frozen_bn(net):
            yield

    steps = nothing()
    next(steps)
    steps.close()
    (told,) = unreported.values()
    assert "nothing ran" in told
    unreported.clear()


def test_a_guard_that_is_entered_is_known_until_it_is_left(net: Any, batch: Tensor) -> None:
    guard = frozen(net)
    with guard:
        assert list(entered.values()) == [guard]
        assert "was entered and never left" in guard.left_open
        net(batch)
    assert entered == {}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit])
def test_what_is_no_failure_goes_through_untouched(
    net: Any, batch: Tensor, kind: type[BaseException], unreported: dict[int, str]
) -> None:
    error = kind()
    with pytest.raises(kind) as caught, frozen(net):
        drift_and_raise(net, batch, error)
    assert caught.value is error
    assert not hasattr(error, "__notes__")
    unreported.clear()


def test_an_exit_carries_the_drift_too(net: Any, batch: Tensor) -> None:
    error = SystemExit(3)
    with pytest.raises(SystemExit) as caught, frozen(net):
        drift_and_raise(net, batch, error)
    assert caught.value is error
    assert len(error.__notes__) == 1


def test_nested_guards_note_the_drift_once_each(net: Any, batch: Tensor) -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine"), frozen(net, "neck"), frozen(net, "backbone"):
        drift_and_raise(net, batch, error)
    inner, outer = error.__notes__
    assert "frozen('backbone')" in inner
    assert "frozen('neck')" in outer


# Nothing is left behind.


def ends_well(net: Any, batch: Tensor) -> None:
    net(batch)


def breaks_the_invariant(net: Any, batch: Tensor) -> None:
    net.train()(batch)


def raises(net: Any, batch: Tensor) -> None:
    raise ValueError("mine")


def is_interrupted(net: Any, batch: Tensor) -> None:
    raise KeyboardInterrupt


def is_interrupted_in_forward(net: Any, batch: Tensor) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = net.neck.register_forward_hook(interrupt)
    try:
        net(batch)
    finally:
        handle.remove()


def compiles(net: Any, batch: Tensor) -> None:
    torch.compile(net, backend="eager")(batch)


def fails_to_compile(net: Any, batch: Tensor) -> None:
    def backend(*_: object) -> Any:
        raise RuntimeError("no backend")

    torch.compile(net, backend=backend)(batch)


def is_interrupted_in_compilation(net: Any, batch: Tensor) -> None:
    def backend(*_: object) -> Any:
        raise KeyboardInterrupt

    torch.compile(net, backend=backend)(batch)


def exits_early(net: Any, batch: Tensor) -> None:
    sys.exit(3)


EXITS = [
    ends_well,
    breaks_the_invariant,
    raises,
    is_interrupted,
    is_interrupted_in_forward,
    compiles,
    fails_to_compile,
    is_interrupted_in_compilation,
    exits_early,
    nothing,
]


class LateForward(nn.BatchNorm1d):
    """Have a forward of its own, so that torch.batch_norm is watched while it runs."""

    def forward(self, batch: Tensor) -> Tensor:
        return super().forward(batch)


@GUARDS
@pytest.mark.parametrize("step", EXITS)
@pytest.mark.parametrize("own", [False, True], ids=["torch's forward", "own forward"])
def test_whatever_way_a_step_ends_nothing_is_left_behind(
    net: Any,
    batch: Tensor,
    guard: Any,
    step: Callable[[Any, Tensor], None],
    own: bool,
    torch_state: Callable[[], dict[str, Any]],
) -> None:
    if own:
        net.neck = LateForward(3).eval()
    before = torch_state()
    keys = {name: set(vars(module)) for name, module in net.named_modules()}
    ended: BaseException | None = None
    try:
        with guard(net):
            step(net, batch)
    except BaseException as error:
        ended = error
    assert (ended is None) == (step in (ends_well, compiles))
    after = torch_state()
    assert after == before
    for name, module in net.named_modules():
        compilers = {
            "_is_torch_compile",
            "_compile_kwargs",
        }  # set by dynamo and, once imported, lightning
        assert set(vars(module)) - keys[name] <= compilers
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_wrappers_are_in_place_only_while_a_guard_is(
    net: Any, batch: Tensor, torch_state: Callable[[], dict[str, Any]]
) -> None:
    before = torch_state()
    with frozen(net):
        during = torch_state()
        net(batch)
    assert during["Module._call_impl"] is not before["Module._call_impl"]
    for name in ("__setattr__", "load_state_dict"):
        code = f"the code of Module.{name}"
        assert during[code] is not before[code]
    assert len(during["optimizer post hooks"]) == len(before["optimizer post hooks"]) + 1
    assert torch_state() == before


def test_a_broken_inner_guard_does_not_blind_the_outer_one(net: Any, batch: Tensor) -> None:
    inner, outer = frozen(net, "neck"), frozen(net, "backbone")
    with (
        pytest.raises(FrozenStateChanged) as caught,
        outer,
        pytest.raises(FrozenStateChanged),
        inner,
    ):
        net.train()(batch)
    assert inner.verdict is not None
    assert inner.verdict.changed_layers == ("neck",)
    assert caught.value.verdict.changed_layers == ("backbone.bn",)


def test_the_inner_guards_failure_is_the_outer_ones_exception(net: Any, batch: Tensor) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen(net, "backbone"), frozen(net, "neck"):
        net.train()(batch)
    assert caught.value.verdict.guard == "frozen('neck')"
    (note,) = caught.value.__notes__
    assert "frozen('backbone')" in note


def test_overlapping_guards_each_see_their_own_step(
    net: Any, batch: Tensor, torch_state: Callable[[], dict[str, Any]]
) -> None:
    before = torch_state()
    first, second = frozen(net), frozen_bn(net)
    first.start()
    net(batch)
    second.start()
    assert first.finish().holds
    net.train()(batch)
    assert torch_state() != before
    assert not second.finish().holds
    assert torch_state() == before


def test_guards_around_several_models_see_their_own(net: Any, batch: Tensor) -> None:
    other = type(net)().eval()
    quiet = frozen(other)
    with pytest.raises(FrozenStateChanged) as caught, quiet, frozen(net):
        net.train()(other(batch).new_zeros(4, 2, 5) + batch)
    assert caught.value.verdict.changed_layers == ("backbone.bn", "neck")
    assert not hasattr(caught.value, "__notes__")
    assert quiet.verdict is not None
    assert quiet.verdict.holds


def test_guards_in_threads_do_not_mix(net: Any) -> None:
    nets = [type(net)().train(number % 2 == 0) for number in range(8)]
    ended: dict[int, bool] = {}

    def work(number: int) -> None:
        try:
            with frozen_bn(nets[number]):
                for _ in range(5):
                    nets[number](torch.randn(4, 2, 5))
        except FrozenStateChanged:
            ended[number] = False
        else:
            ended[number] = True

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == {number: number % 2 == 1 for number in range(8)}


def test_a_guard_in_a_thread_ends_in_another(
    net: Any, batch: Tensor, torch_state: Callable[[], dict[str, Any]]
) -> None:
    before = torch_state()
    guard = frozen(net)
    thread = threading.Thread(target=guard.start)
    thread.start()
    thread.join()
    net(batch)
    assert guard.finish().holds
    assert torch_state() == before


# Several guards that end together, as a test's markers do.


def started(net: Any, *modules: str) -> Any:
    guard = frozen(net, *modules)
    guard.start()
    return guard


def test_guards_that_end_together_are_told_apart(net: Any, batch: Tensor) -> None:
    guard = [started(net, "neck"), started(net, "backbone"), started(net, "head")]
    net.train()(batch)
    with pytest.raises(FrozenStateChanged) as caught:
        conclude(guard, None)
    assert [verdict.guard for verdict in caught.value.verdicts] == [
        "frozen('neck')",
        "frozen('backbone')",
    ]
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("frozen('neck'): 1 of 1 frozen layer changed: neck")
    second = "frozen('backbone'): 1 of 2 frozen layers changed: backbone.bn"
    assert sum(second in line for line in lines) == 1


def test_a_gate_error_wins_over_a_violation_and_carries_it(net: Any, batch: Tensor) -> None:
    guard = [started(net, "neck"), started(net, "head")]
    net.neck.train()(torch.randn(2, 3, 4))
    guards_of_another = started(type(net)())
    with pytest.raises(GateError, match="nothing ran") as caught:
        conclude([*guard, guards_of_another], None)
    assert any("neck" in note for note in caught.value.__notes__)


def test_every_guard_that_saw_nothing_is_named(net: Any) -> None:
    with pytest.raises(GateError) as caught:
        conclude([started(net, "neck"), started(net, "head")], None)
    assert "frozen('neck')" in str(caught.value)
    assert "frozen('head')" in str(caught.value)


# Errors.


def test_a_violation_is_an_assertion_error_and_a_gate_error_is_none() -> None:
    assert issubclass(FrozenStateChanged, AssertionError)
    assert not issubclass(GateError, AssertionError)


def test_a_violation_pickles(net: Any, batch: Tensor) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(net.train()):
        net(batch)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is FrozenStateChanged
    assert str(copy) == str(caught.value)
    assert copy.verdicts == caught.value.verdicts
    assert copy.verdict.changes == caught.value.verdict.changes


def test_a_gate_error_pickles(net: Any) -> None:
    with pytest.raises(GateError) as caught, frozen_bn(net, "typo"):
        pass
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is GateError
    assert str(copy) == str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1 (int)"),
        ("a", "'a' (str)"),
        (nn.Linear(1, 1), "Linear(in_features=1, out_features=1, bias=True) (Linear)"),
        ("x" * 99, "'" + "x" * 56 + "... (str)"),
        (
            nn.Sequential(nn.Linear(1, 1)),
            "Sequential( (0): Linear(in_features=1, out_features=1, bi... (Sequential)",
        ),
    ],
)
def test_a_value_is_shown_on_one_short_line(value: object, text: str) -> None:
    assert describe(value) == text


class SilentRepr:
    def __repr__(self) -> str:
        return ""


def test_a_value_with_an_empty_repr_is_shown_by_its_type() -> None:
    assert "SilentRepr" in describe(SilentRepr())


def test_the_traceback_ends_in_the_users_own_line(net: Any, batch: Tensor) -> None:
    with pytest.raises(ValueError, match="mine") as caught, frozen(net):
        raise ValueError("mine")
    assert [entry.path.name for entry in caught.traceback] == ["test_guard.py"]


def test_frames_of_the_wrappers_are_not_in_a_steps_traceback(net: Any, batch: Tensor) -> None:
    with pytest.raises(RuntimeError) as caught, frozen(net):
        net(torch.ones(1, 7, 1))
    assert not any("pytest_bninvariants" in str(entry.path.parent) for entry in caught.traceback)


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pytest", "_pytest", "pluggy"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
import torch
from torch import nn
import pytest_bninvariants.invariants.guard
from pytest_bninvariants import FrozenStateChanged, frozen_bn
model = nn.Sequential(nn.BatchNorm1d(2)).train()
try:
    with frozen_bn(model):
        model(torch.ones(4, 2))
except FrozenStateChanged as failure:
    print(str(failure).splitlines()[0])
assert not {"pytest", "_pytest", "pluggy"} & sys.modules.keys()
"""


def test_the_engine_runs_without_pytest() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCKED], capture_output=True, text=True, check=False
    )
    assert ran.stderr == ""
    assert ran.stdout.strip() == "1 of 1 frozen BN layer changed: 0 (training-mode)"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, pytest_bninvariants; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("training", [True, False])
def test_a_task_that_is_cancelled_leaves_its_verdict_for_the_end(
    net: Any, batch: Tensor, unreported: dict[int, str], anyio_backend: str, *, training: bool
) -> None:
    async def train_on() -> None:
        with frozen_bn(net):
            while True:
                net(batch)
                await anyio.sleep(0)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(train_on)
            await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    net.train(training)
    anyio.run(main, backend=anyio_backend)
    told = "ended with a task that was not run to its end, and found: 2 of 2 frozen BN layers"
    assert [told in text for text in unreported.values()] == [True] * training
    unreported.clear()


def test_a_guard_whose_companion_cannot_begin_leaves_torch_as_it_was(
    net: Any, torch_state: Callable[[], dict[str, Any]]
) -> None:
    before = torch_state()
    with pytest.raises(GateError, match="'hed'"), frozen(net, "backbone", trains="hed"):
        pass
    assert torch_state() == before
    assert entered == {}
    assert observer_api.active_observers == ()


def test_a_conversion_to_another_memory_format_counts_as_something_that_ran() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    with frozen(model):
        model.to(memory_format=torch.channels_last)
    with same_output(model, torch.randn(2, 3, 8, 8), atol=1e-4):
        model.to(memory_format=torch.contiguous_format)
