"""A user's failure shows a user's code."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import frames, frozen
from pytest_bninvariants.frames import drop_our_frames, is_our_frame

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
