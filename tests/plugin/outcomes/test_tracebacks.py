"""What a failure shows: the test and the news, and nothing of ours."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator

import pytest

from tests.plugin.outcomes.failing_tests import FAILURES, WAYS
from tests.plugin.sessions import HEADER, Sessions

STYLES = [
    ["--tb=auto"],
    ["--tb=long"],
    ["--tb=short"],
    ["--tb=line"],
    ["--tb=native"],
    ["--tb=no"],
    ["--full-trace"],
    ["--tb=short", "--full-trace"],
    ["--showlocals"],
    ["-vv"],
]


@pytest.fixture(autouse=True)
def _nothing_is_collected() -> Iterator[None]:
    """Keep finalizers out: one that parses fails the parse it interrupts, before Python 3.11.8.

    https://github.com/python/cpython/issues/106905
    """
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("style", STYLES, ids=" ".join)
def test_no_violation_shows_a_frame_of_ours(sessions: Sessions, style: list[str]) -> None:
    session = sessions.run(WAYS, *style)
    assert set(session.outcomes.values()) == {"failed"}
    for text in session.texts.values():
        assert style == ["--tb=no"] or "2 of 2 frozen BN layers changed: bn1, bn2 (mode-f" in text


@pytest.mark.parametrize("style", STYLES, ids=" ".join)
def test_no_other_failure_shows_a_frame_of_ours(sessions: Sessions, style: list[str]) -> None:
    session = sessions.run(FAILURES, *style)
    assert set(session.outcomes.values()) == {"failed"}


SHOWN = {
    "a plain test": ("@pytest.mark.frozen_bn", "def test_it(model):"),
    "decorators over several lines": (
        "@pytest.mark.frozen_bn(\n    'bn1',\n    parameters=False,\n)\n@pytest.mark.usefixtures()",
        "def test_it(model):",
    ),
    "a marker between others": (
        "@pytest.mark.parametrize('n', [1])\n@pytest.mark.frozen_bn\n@pytest.mark.usefixtures()",
        "def test_it(model, n):",
    ),
    "an async test": ("@pytest.mark.asyncio\n@pytest.mark.frozen_bn", "async def test_it(model):"),
    "a wrapped test": ("@pytest.mark.frozen_bn\n@wrapped", "def test_it(model):"),
    "a comment and a lambda in between": (
        "@pytest.mark.frozen_bn\n# def of a comment\n@(lambda f: f)",
        "def test_it(model):",
    ),
    "a signature over several lines": (
        "@pytest.mark.frozen_bn",
        "def test_it(\n    model,\n    tmp_path,\n):",
    ),
    "under @given": (
        "@pytest.mark.frozen_bn\n@settings(database=None, deadline=None)\n@given(n=st.just(1))",
        "def test_it(kept, n):",
    ),
}


@pytest.mark.parametrize("shape", SHOWN)
def test_the_line_shown_is_the_tests_own(sessions: Sessions, shape: str) -> None:
    decorators, signature = SHOWN[shape]
    model = "kept" if "kept" in signature else "model"
    source = "\n".join(
        [
            "import functools",
            "from hypothesis import given, settings, strategies as st",
            "def wrapped(function):",
            "    @functools.wraps(function)",
            "    def inner(*args, **kwargs):",
            "        return function(*args, **kwargs)",
            "    return inner",
            decorators,
            signature,
            f"    drift({model})",
        ]
    )
    session = sessions.run(source)
    (name,) = session.texts
    session.names_a_violation(name)
    first = signature.splitlines()[0]
    (shown,) = re.findall(r"(?m)^> +(.*)$", session.texts[name])
    assert shown == first
    assert decorators.splitlines()[0] in session.texts[name]
    written = (HEADER + source).lstrip().splitlines().index(first) + 1
    assert f"test_it.py:{written}: FrozenStateChanged" in session.texts[name]


def test_the_line_shown_of_a_block_is_its_with(sessions: Sessions) -> None:
    session = sessions.run("""
        def test_it(model, frozen_bn):
            hold(model)
            with frozen_bn(model, "bn1"):
                hold(model)
                drift(model)
            hold(model)
    """)
    assert '>       with frozen_bn(model, "bn1"):' in session.texts["test_it"]


def test_the_debuggers_values_are_shown_as_locals(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        @pytest.mark.parametrize("number", [3])
        def test_it(model, number):
            drift(model)
    """,
        "--showlocals",
    )
    assert re.search(r"(?m)^number += 3$", session.texts["test_it[3]"])
    assert "__failure__" not in session.texts["test_it[3]"]


def test_a_slow_coroutine_of_unittest_does_not_show_us_in_the_log(sessions: Sessions) -> None:
    session = sessions.run("""
        import time
        import unittest

        class TestStep(unittest.IsolatedAsyncioTestCase):
            def setUp(self):
                self.model = Net()

            @pytest.mark.frozen_bn
            async def test_drifts(self):
                time.sleep(0.15)
                drift(self.model)
    """)
    session.names_a_violation("TestStep::test_drifts")
    assert "Executing <Task" in session.output


def test_a_warning_about_a_guard_points_at_the_test(sessions: Sessions) -> None:
    session = sessions.run("""
        def test_it(model, frozen_bn):
            frozen_bn(model)
    """)
    assert session.outcomes == {"test_it": "failed"}
    assert re.search(r"test_it\.py:\d+: GuardNeverEntered", session.output)
