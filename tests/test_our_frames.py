"""A user's failure shows a user's code."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

import pytest
import torch
import torch.distributed
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_bninvariants import frames, frozen
from pytest_bninvariants.frames import drop_our_frames, is_our_frame
from pytest_bninvariants.instrumentation import installation
from pytest_bninvariants.instrumentation.observer_api import Observer

PACKAGE = Path(frames.PACKAGE)
OURS = str(PACKAGE / "invariants" / "guard.py")
USERS = "/home/me/train.py"


def in_file(file: str, body: str) -> CodeType:
    return compile(f"def run(inner):\n    {body}\n", file, "exec")


def through(*files: str, body: str = "inner()") -> BaseException:
    """Return an exception that was raised through frames of these files, outermost first."""

    def fail() -> None:
        raise ValueError("mine")

    run: Any = fail
    for file in reversed(files):
        space: dict[str, Any] = {}
        exec(in_file(file, body), space)
        run = (lambda function, inner: lambda: function(inner))(space["run"], run)
    try:
        run()
    except BaseException as error:
        return error
    raise AssertionError("it raises")


def shown(error: BaseException) -> list[str]:
    """Return the files of a traceback, but for this one's."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return [file for file in files if file != __file__]


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ((), []),
        ((USERS,), [USERS]),
        ((OURS,), []),
        ((OURS, USERS), [USERS]),
        ((USERS, OURS), [USERS]),
        ((USERS, OURS, OURS, USERS), [USERS, USERS]),
        ((OURS, OURS, USERS, OURS, OURS), [USERS]),
    ],
)
def test_our_frames_are_unlinked_wherever_they_are(files: tuple[str, ...], left: list[str]) -> None:
    error = through(*files)
    drop_our_frames(error)
    assert shown(error) == left
    assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_frames_of_causes_are_unlinked_too(link: str) -> None:
    error, other = through(USERS, OURS), through(OURS, USERS)
    setattr(error, link, other)
    drop_our_frames(error)
    assert shown(error) == shown(other) == [USERS]


def test_frames_in_a_group_are_unlinked_too() -> None:
    inner = [through(OURS, USERS), through(USERS, OURS)]
    group = ExceptionGroup("many", [ExceptionGroup("some", inner)])  # type: ignore[type-var]
    drop_our_frames(group)
    assert [shown(error) for error in inner] == [[USERS], [USERS]]


def test_a_circle_of_causes_ends() -> None:
    first, second = through(OURS, USERS), through(OURS, USERS)
    first.__context__, second.__context__ = second, first
    drop_our_frames(first)
    assert shown(first) == shown(second) == [USERS]


def test_an_exception_that_was_never_raised_is_left_alone() -> None:
    drop_our_frames(ValueError("mine"))


def last(error: BaseException) -> TracebackType:
    found = error.__traceback__
    assert found is not None
    while found.tb_next is not None and found.tb_next.tb_frame.f_code.co_name != "fail":
        found = found.tb_next
    return found


@pytest.mark.parametrize(
    ("file", "ours"),
    [
        (OURS, True),
        (str(PACKAGE / "plugin" / "hooks.py"), True),
        (str(PACKAGE / "conformance" / "test_laws.py"), False),
        (f"{PACKAGE}_of_mine/train.py", False),
        (f"{PACKAGE}.py", False),
        (USERS, False),
        (__file__, False),
        (torch.__file__, False),
    ],
)
def test_a_frame_is_ours_or_not(file: str, ours: bool) -> None:
    assert is_our_frame(last(through(file))) == ours


def test_a_guarded_failure_shows_what_a_bare_one_shows(net: Any) -> None:
    class Own(nn.BatchNorm1d):
        def forward(self, batch: Tensor) -> Tensor:
            raise ValueError("mine")

    net.neck = Own(3)
    batch = torch.randn(4, 2, 5)

    def frames(guarded: bool) -> list[tuple[str, str]]:
        try:
            if guarded:
                with frozen(net):
                    net(batch)
            else:
                net(batch)
        except ValueError as error:
            return [(f.filename, f.name) for f in traceback.extract_tb(error.__traceback__)]
        raise AssertionError("it raises")

    assert frames(guarded=True) == frames(guarded=False)


class Everything(Observer):
    """It overrides what makes wrappers go on."""

    def ignores(self, module: nn.Module) -> bool:
        return False

    def saw_requires_grad_set(self, *_: object) -> None:
        pass

    def saw_parameters_read(self, module: nn.Module) -> None:
        pass

    def saw_call(self, *_: object, **__: object) -> None:
        pass


class Calling(nn.Module):
    """A module that calls a function of torch outside of any BN layer."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True)


LINEAR = nn.Linear(2, 2)
WEIGHT = nn.Parameter(torch.ones(2))
SGD = torch.optim.SGD(nn.Linear(1, 1).parameters())
INTEGERS = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
FAILING: dict[str, Callable[[], Any]] = {
    "a forward": lambda: LINEAR(torch.ones(3)),
    "a batch_norm": lambda: Calling()(torch.ones(1, 3)),
    "a load": lambda: LINEAR.load_state_dict({}),
    "a backward": lambda: torch.autograd.grad(WEIGHT.sum(), [LINEAR.weight]),
    "a collective": lambda: torch.distributed.broadcast(torch.ones(1), 0),
    "a state_dict": lambda: LINEAR.state_dict(unknown=1),
    "a group": lambda: SGD.add_param_group({"params": SGD.param_groups[0]["params"]}),
    "a switch": lambda: INTEGERS.requires_grad_(True),
}


@pytest.mark.parametrize("fail", FAILING.values(), ids=FAILING)
def test_a_failure_below_a_wrapper_shows_no_frame_of_it(fail: Callable[[], Any]) -> None:
    observer = Everything()
    installation.add(observer)
    try:
        with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
            fail()
    finally:
        installation.discard(observer)
    ours = [
        frame
        for frame, _ in traceback.walk_tb(caught.value.__traceback__)
        if Path(frame.f_code.co_filename).is_relative_to(frames.PACKAGE)
    ]
    assert ours
    assert all(frame.f_locals.get("__tracebackhide__") for frame in ours)
