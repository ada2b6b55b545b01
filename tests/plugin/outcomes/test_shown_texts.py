"""What a failure says: the headline first, the test's own line, every tensor under -v."""

from __future__ import annotations

import re

import pytest

from tests.plugin.outcomes.failing_tests import FAILURES, WAYS
from tests.plugin.sessions import Sessions


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
        assert session.first_line(name).startswith(f"cannot judge: {start}")
        shown = session.summaries[name].removesuffix("...")
        assert shown.startswith("cannot judge: ")
        assert session.first_line(name).startswith(shown)


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
    assert session.summaries["test_never_runs"].startswith(
        "cannot judge: nothing ran inside frozen_bn('bn"
    )
    summary = session.lines[session.lines.index(_rule("short test summary info", 300)) + 1 :]
    assert len(summary) == len(session.outcomes) + 1, summary


def _rule(title: str, width: int) -> str:
    return f" {title} ".center(width, "=")


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
    unbroken = ("a_backbone_with_a_rather_long_name", "more https://")
    assert [line for line in long if not any(each in line for each in unbroken)] == []
    said = session.says("test_it")
    assert "a_backbone_with_a_rather_long_name.stage_number_three.1.running_mean" in said
    assert "why mode-flip: " in said
    assert "fix call .eval() on " in said
    coloured = sessions.bare("--color=yes").stdout.str()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    for line in session.texts["test_it"].splitlines():
        assert line.strip() in plain


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "under xdist"])
def test_each_failure_is_one_line_with_tb_line(sessions: Sessions, workers: list[str]) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        def test_violation(model):
            drift(model)

        @pytest.mark.frozen_bn("bn9")
        def test_gate(model):
            drift(model)
    """,
        "--tb=line",
        *workers,
    )
    assert set(session.outcomes.values()) == {"failed"}
    assert "bn1.running_mean" in session.texts["test_violation"]
    failures = session.output.partition("= FAILURES =")[2].partition("\n")[2]
    lines = failures.partition("\n- generated")[0].splitlines()
    shown = [line for line in lines if line.strip() and not line.startswith("[gw0]")]
    assert [line.partition(": ")[2][:24] for line in shown] == [
        "2 of 2 frozen BN layers ",
        "cannot judge: 'bn9' matc",
    ], session.output


def test_control_characters_in_a_name_are_shown_escaped(sessions: Sessions) -> None:
    session = sessions.run(
        r"""
        class Odd(nn.Module):
            def __init__(self, name):
                super().__init__()
                self._modules[name] = nn.BatchNorm1d(4)

            def forward(self, x):
                (layer,) = self.children()
                return layer(x)

        @pytest.fixture
        def odd():
            return Odd("\x1b[31mred\r")

        @pytest.mark.frozen_bn
        def test_violation(odd):
            odd.train()(batch())

        @pytest.mark.frozen_bn
        def test_hazard(odd):
            odd.eval()(batch())
            odd._modules["\x1b[31mred\r"].momentum = 0.5

        @pytest.mark.frozen_bn("typo")
        def test_gate(odd):
            pass
    """,
        "--color=no",
    )
    assert session.outcomes == {
        "test_violation": "failed",
        "test_hazard": "passed",
        "test_gate": "failed",
    }
    assert "\x1b" not in session.output
    assert r"\x1b[31mred\r.running_mean" in session.texts["test_violation"]
    assert session.first_line("test_violation").endswith(r"\x1b[31mred\r (training-mode)")
    assert r"frozen_bn() holds, but \x1b[31mred\r: " in session.output
