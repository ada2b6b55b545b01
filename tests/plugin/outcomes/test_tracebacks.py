"""What a failure shows: the test and the news, and nothing of ours."""

from __future__ import annotations

import re

import pytest

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

WAYS = """
import unittest

import pytest_bninvariants
from hypothesis import Phase, given, settings, strategies as st

calm = settings(
    database=None,
    derandomize=True,
    deadline=None,
    phases=[phase for phase in Phase if phase != Phase.explain],
)


@pytest.mark.frozen_bn
def test_marker(model):
    drift(model)


def test_fixture(model, frozen_bn):
    with frozen_bn(model):
        drift(model)


def test_plain(model):
    with pytest_bninvariants.frozen_bn(model):
        drift(model)


def step(model):
    with pytest_bninvariants.frozen_bn(model):
        drift(model)


def test_plain_in_a_function(model):
    step(model)


class TestOfUnittest(unittest.TestCase):
    def setUp(self):
        self.model = Net()

    @pytest.mark.frozen_bn
    def test_marker(self):
        drift(self.model)

    def test_plain(self):
        with pytest_bninvariants.frozen_bn(self.model):
            drift(self.model)


class TestOfAsyncio(unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        self.model = Net()

    @pytest.mark.frozen_bn
    async def test_marker(self):
        drift(self.model)


@pytest.mark.asyncio
@pytest.mark.frozen_bn
async def test_asyncio(model):
    drift(model)


@pytest.mark.asyncio
async def test_asyncio_plain(model):
    with pytest_bninvariants.frozen_bn(model):
        drift(model)


@pytest.mark.frozen_bn
@calm
@given(size=st.integers(2, 9))
def test_given(kept, size):
    (drift if size > 5 else hold)(kept, size)


@calm
@given(size=st.integers(2, 9))
def test_given_plain(size):
    model = Net()
    with pytest_bninvariants.frozen_bn(model):
        (drift if size > 5 else hold)(model, size)


class TestOfUnittestWithExamples(unittest.TestCase):
    def setUp(self):
        self.model = Net()

    @pytest.mark.frozen_bn
    @calm
    @given(size=st.integers(2, 9))
    def test_given(self, size):
        (drift if size > 5 else hold)(self.model, size)
"""

FAILURES = """
import unittest

import pytest_bninvariants


@pytest.mark.frozen_bn("bn9")
def test_gate_at_the_start(model):
    pass


@pytest.mark.frozen_bn
def test_gate_at_the_end(model):
    pass


def test_gate_in_a_block(model):
    with pytest_bninvariants.frozen_bn(model, "bn9"):
        pass


def test_gate_at_the_end_of_a_block(model, frozen):
    with frozen(model):
        pass


def test_never_entered(model, frozen):
    frozen(model)


def test_no_model(frozen):
    with frozen("bn1"):
        pass


@pytest.mark.frozen_bn
def test_own(model):
    drift(model)
    raise ValueError("own")


def test_own_in_a_block(model, frozen):
    with frozen(model):
        drift(model)
        raise ValueError("own")


@pytest.mark.frozen_bn
def test_own_under_a_module(model):
    model.register_forward_hook(lambda *_: 1 / 0)
    drift(model)


@pytest.mark.frozen_bn
def test_own_of_torch(model):
    model(batch()[:, :2])


@pytest.mark.frozen_bn
def test_own_of_a_batch_of_one(model):
    drift(model, 1)


@pytest.mark.frozen_bn
def test_own_with_a_cause(model):
    try:
        drift(model, 1)
    except ValueError as error:
        raise RuntimeError("own") from error


class TestOfUnittest(unittest.TestCase):
    def setUp(self):
        self.model = Net()

    @pytest.mark.frozen_bn
    def test_own(self):
        drift(self.model)
        self.assertEqual(1, 2)

    @pytest.mark.frozen_bn("bn9")
    def test_gate(self):
        drift(self.model)
"""


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


def test_the_headline_comes_first_and_without_the_exceptions_name(sessions: Sessions) -> None:
    session = sessions.run(WAYS)
    for name in session.texts:
        assert session.first_line(name).startswith("2 of 2 frozen BN layers changed: bn1, bn2 (")
    assert "errors.FrozenStateChanged" not in session.output


def test_the_message_of_a_gate_comes_first_and_without_the_exceptions_name(
    sessions: Sessions,
) -> None:
    session = sessions.run(FAILURES)
    starts = {
        "test_gate_at_the_start": "'bn9' matches nothing",
        "test_gate_at_the_end": "nothing ran inside",
        "test_gate_in_a_block": "'bn9' matches nothing",
        "test_gate_at_the_end_of_a_block": "nothing ran inside",
        "test_never_entered": "frozen()",
        "test_no_model": "frozen(model, *modules) takes the model",
        "TestOfUnittest::test_gate": "'bn9' matches nothing",
    }
    for name, start in starts.items():
        assert session.first_line(name).startswith(start)
        assert session.summaries[name].startswith(start[:20])


@pytest.mark.parametrize("ci", [False, True], ids=["at home", "on CI"])
def test_the_short_summary_has_the_headline_alone(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, ci: bool
) -> None:
    if ci:
        monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("COLUMNS", "300")
    session = sessions.run("""
        @pytest.mark.frozen_bn
        def test_drifts(model):
            drift(model)

        def test_drifts_in_a_block(model, frozen):
            with frozen(model):
                drift(model)

        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen_bn("bn2")
        def test_drifts_twice(model):
            drift(model)

        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen_bn("bn2")
        def test_never_runs(model):
            pass
    """)
    headline = "2 of 2 frozen BN layers changed: bn1, bn2 (mode-flip)"
    assert session.summaries["test_drifts"] == headline
    block = "2 of 3 frozen layers changed: bn1, bn2 (mode-flip)"
    assert session.summaries["test_drifts_in_a_block"] == block
    twice = "frozen_bn('bn1'): 1 of 1 frozen BN layer changed: bn1 (mode-flip)"
    assert session.summaries["test_drifts_twice"] == twice
    assert session.summaries["test_never_runs"].startswith("nothing ran inside frozen_bn('bn")
    summary = session.lines[session.lines.index(_rule("short test summary info", 300)) + 1 :]
    assert len(summary) == len(session.outcomes) + 1, summary


def _rule(title: str, width: int) -> str:
    return f" {title} ".center(width, "=")


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


def test_verbose_unfolds_a_big_model(sessions: Sessions) -> None:
    source = """
        class Big(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(30)))
                self.eval()

            def forward(self, x):
                return self.layers(x)

        big = Big()

        @pytest.mark.frozen_bn(model="net")
        @pytest.mark.parametrize("net", [big])
        def test_it(net):
            drift(net)

        @pytest.mark.frozen_bn(parameters=False)
        @pytest.mark.parametrize("net", [Big()])
        def test_again(net):
            drift(net)

        def test_block(frozen_bn):
            net = Big()
            with frozen_bn(net):
                drift(net)
    """
    folded = sessions.run(source)
    unfolded = sessions.again("-v")
    assert len(folded.texts) == 3
    for name, text in folded.texts.items():
        assert "layers.29.num_batches_tracked" not in text
        assert "layers.0.num_batches_tracked and 29 like it" in folded.says(name)
        for number in range(30):
            assert f"layers.{number}.num_batches_tracked" in unfolded.texts[name]
        assert "like it" not in unfolded.texts[name]
        assert unfolded.first_line(name) == folded.first_line(name)
        assert folded.first_line(name).startswith(
            "30 of 30 frozen BN layers changed: layers.0, layers.1 and 28 more (mode-flip)"
        )


def test_verbose_unfolds_every_guards_verdict(sessions: Sessions) -> None:
    source = """
        @pytest.mark.frozen_bn(model="a")
        @pytest.mark.frozen(model="b")
        def test_it(a, b):
            drift(a)
            drift(b)

        @pytest.fixture
        def a():
            return nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(30)))

        @pytest.fixture
        def b():
            return nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(30)))
    """
    folded = sessions.run(source)
    unfolded = sessions.again("-v")
    assert folded.texts["test_it"].count("29.num_batches_tracked") == 0
    assert unfolded.texts["test_it"].count("29.num_batches_tracked") == 2


def test_the_text_fits_80_columns_and_needs_no_colour(sessions: Sessions) -> None:
    source = """
        class Deep(nn.Module):
            def __init__(self):
                super().__init__()
                self.a_backbone_with_a_rather_long_name = nn.ModuleDict(
                    {"stage_number_three": nn.Sequential(nn.Identity(), nn.BatchNorm1d(4))}
                )

            def forward(self, x):
                for part in self.a_backbone_with_a_rather_long_name.values():
                    x = part(x[:, :, None]).squeeze(2)
                return x

        @pytest.fixture
        def deep():
            return Deep().eval()

        @pytest.mark.frozen_bn
        def test_it(deep):
            drift(deep)

        @pytest.mark.frozen_bn("backbone")
        def test_gate(deep):
            drift(deep)
    """
    session = sessions.run(source, "--color=no")
    assert "\x1b" not in session.output
    told = [line for line in session.texts["test_it"].splitlines() if line.startswith("E ")]
    long = [line for line in told[1:] if len(line) > 80]  # the headline is one line, always
    assert [line for line in long if "a_backbone_with_a_rather_long_name" not in line] == []
    said = session.says("test_it")
    assert "a_backbone_with_a_rather_long_name.stage_number_three.1.running_mean" in said
    assert "why mode-flip: " in said
    assert "fix call .eval() on " in said
    coloured = sessions.bare("--color=yes").stdout.str()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    for line in session.texts["test_it"].splitlines():
        assert line.strip() in plain


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
