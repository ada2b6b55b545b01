"""However a step ends: its own exception wins, and nothing is left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import (
    GateError,
    InvariantBroken,
    bn_updates,
    frozen,
    frozen_bn,
)
from pytest_bninvariants.guard_registry import Finding, open_guards
from pytest_bninvariants.instrumentation import observer_api
from tests.engine import Net, everything_wrapped
from tests.invariants.guard_steps import GUARDS, drift_and_raise, nothing
from tests.watching import watching


@GUARDS
def test_the_steps_own_exception_wins_and_carries_the_drift(
    net: Any, batch: Tensor, guard: Any, findings: list[Finding]
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
    (finding,) = findings
    assert finding.carrier is error
    assert finding.way == "ValueError ended its block, and was caught outside of the guard"
    findings.clear()


@pytest.mark.parametrize("training", [False, True])
def test_an_exception_without_drift_carries_no_note(net: Any, training: bool) -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine"), frozen(net.train(training)):
        raise error
    assert not hasattr(error, "__notes__")


def test_an_exception_group_carries_the_drift_too(
    net: Any, batch: Tensor, findings: list[Finding]
) -> None:
    error = ExceptionGroup("many", [ValueError("one"), KeyError("two")])
    with pytest.raises(ExceptionGroup) as caught, frozen(net):
        drift_and_raise(net, batch, error)
    assert caught.value is error
    assert len(error.__notes__) == 1
    findings.clear()


def test_a_generator_that_is_given_up_leaves_its_verdict_for_the_end(
    net: Any, batch: Tensor, findings: list[Finding]
) -> None:
    def losses(*, training: bool) -> Iterator[Tensor]:
        with frozen(net):
            while True:
                yield net.train(training)(batch)

    for training in (True, False):
        steps = losses(training=training)
        next(steps)
        steps.close()
        assert ["frozen layers changed" in str(each.failure) for each in findings] == (
            [True] * training
        )
        findings.clear()


def test_a_generator_that_is_given_up_before_anything_ran_says_so(
    net: Any, findings: list[Finding]
) -> None:
    def nothing() -> Iterator[None]:
        with frozen_bn(net):
            yield

    steps = nothing()
    next(steps)
    steps.close()
    (finding,) = findings
    assert isinstance(finding.failure, GateError)
    assert "nothing ran" in str(finding.failure)
    findings.clear()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit])
def test_what_is_no_failure_goes_through_untouched(
    net: Any, batch: Tensor, kind: type[BaseException], findings: list[Finding]
) -> None:
    error = kind()
    with pytest.raises(kind) as caught, frozen(net):
        drift_and_raise(net, batch, error)
    assert caught.value is error
    assert not hasattr(error, "__notes__")
    findings.clear()


def test_an_exit_carries_the_drift_too(net: Any, batch: Tensor, findings: list[Finding]) -> None:
    error = SystemExit(3)
    with pytest.raises(SystemExit) as caught, frozen(net):
        drift_and_raise(net, batch, error)
    assert caught.value is error
    assert len(error.__notes__) == 1
    findings.clear()


@pytest.mark.parametrize(("kind", "told"), [(ValueError, True), (SystemExit, False)])
def test_what_only_a_whole_step_can_break_is_kept_for_a_test_that_goes_on(
    net: Any, batch: Tensor, kind: type[BaseException], told: bool, findings: list[Finding]
) -> None:
    error = kind("mine")

    def step() -> None:
        net(batch)  # in eval: nothing is updated
        raise error

    with pytest.raises(kind), bn_updates(net, "neck"):
        step()
    assert not hasattr(error, "__notes__")
    assert [finding.carrier for finding in findings] == [error] * told
    assert all(isinstance(finding.failure, InvariantBroken) for finding in findings)
    findings.clear()


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
    with watching(frozen(net), layers=4, tensors=14):
        during = torch_state()
        net(batch)
    assert during["Module._call_impl"] is not before["Module._call_impl"]
    for name in ("__setattr__", "load_state_dict"):
        code = f"the code of Module.{name}"
        assert during[code] is not before[code]
    assert len(during["optimizer post hooks"]) == len(before["optimizer post hooks"]) + 1
    assert torch_state() == before


def test_the_traceback_ends_in_the_users_own_line(net: Any, batch: Tensor) -> None:
    with pytest.raises(ValueError, match="mine") as caught, frozen(net):
        raise ValueError("mine")
    assert [entry.path.name for entry in caught.traceback] == ["test_guard_endings.py"]


def test_frames_of_the_wrappers_are_not_in_a_steps_traceback(net: Any, batch: Tensor) -> None:
    with pytest.raises(RuntimeError) as caught, frozen(net):
        net(torch.ones(1, 7, 1))
    assert not any("pytest_bninvariants" in str(entry.path.parent) for entry in caught.traceback)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("training", [True, False])
def test_a_task_that_is_cancelled_leaves_its_verdict_for_the_end(
    net: Any, batch: Tensor, findings: list[Finding], anyio_backend: str, *, training: bool
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
    assert [(each.way, str(each.failure).partition(" changed")[0]) for each in findings] == [
        ("its block ended with a task that was not run to its end", "2 of 2 frozen BN layers")
    ] * training
    findings.clear()


def test_a_guard_whose_companion_cannot_begin_leaves_torch_as_it_was(
    net: Any, torch_state: Callable[[], dict[str, Any]]
) -> None:
    before = torch_state()
    with pytest.raises(GateError, match="'hed'"), frozen(net, "backbone", trains="hed"):
        pass
    assert torch_state() == before
    assert open_guards == {}
    assert observer_api.active_observers == ()


def test_the_companion_of_a_guard_that_is_never_left_stops_with_it() -> None:
    before = everything_wrapped()
    guard = frozen_bn(Net(), "backbone", trains="head")
    guard.start()
    assert everything_wrapped() != before
    guard.stop()
    assert everything_wrapped() == before
