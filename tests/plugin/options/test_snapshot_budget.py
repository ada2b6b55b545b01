"""The ini key `bn_snapshot_budget`."""

from __future__ import annotations

import pytest

from pytest_bninvariants import run_config
from pytest_bninvariants.plugin.options import SETTINGS
from tests.plugin.sessions import Sessions

LARGE = """
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(100, 100)

        def forward(self, x):
            return self.fc(x)

    @pytest.fixture
    def net():
        return Large()

    @pytest.mark.frozen
    def test_marker_drifts(net):
        with torch.no_grad():
            net.fc.weight[3, 4] += 1
"""


def reason(sessions: Sessions, given: str) -> str:
    sessions.pytester.makeini(f"[pytest]\nbn_snapshot_budget = {given}")
    told = sessions.run(LARGE).says("test_marker_drifts")
    return " ".join(word for word in told.split() if word != "E")


@pytest.mark.parametrize("given", ["1kB", "39999", "0"])
def test_above_the_budget_a_verdict_says_that_fingerprints_differ(
    sessions: Sessions, given: str
) -> None:
    told = reason(sessions, given)
    assert "1 of 1 fingerprints by" in told
    assert "flatten()[0:10000]" in told


@pytest.mark.parametrize("given", ["40KiB", "1 GB", "40960"])
def test_within_the_budget_values_are_told(sessions: Sessions, given: str) -> None:
    assert "1 of 10000 values, max |d| 1.0e+00 at [3, 4]" in reason(sessions, given)


def test_a_second_run_and_a_failing_example_tell_values(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nbn_snapshot_budget = 45000")
    session = sessions.run(
        """
        from hypothesis import given
        from hypothesis import strategies as st

        class Large(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.other = nn.Linear(100, 100), nn.Linear(100, 100)

            def forward(self, x):
                return self.other(self.one(x))

        @pytest.fixture(scope="session")
        def net():
            return Large()

        @pytest.mark.frozen
        def test_rerun_drifts(net):
            with torch.no_grad():
                net.one.weight[3, 4] += 1

        @pytest.mark.frozen("*")
        @given(column=st.integers(0, 99))
        def test_example_drifts(net, column):
            with torch.no_grad():
                net.other.weight[3, column] += 1
        """,
        "--bn-trace",
    )
    told = " ".join(session.says("test_rerun_drifts").split())
    assert "one.weight 1 of 1 fingerprints by" in told
    output = " ".join(session.output.split())
    assert "how one.weight: 1 of 10000 values, max |d| 1.0e+00 at [3, 4]: " in output
    told = " ".join(session.says("test_example_drifts").replace("E ", "").split())
    assert "other.weight 1 of 10000 values, max |d| 1.0e+00 at [3, 0]: " in told


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("", None),
        ("0", 0),
        ("1000", 1000),
        ("1000B", 1000),
        ("512MB", 512 * 10**6),
        ("1.5 GiB", 3 * 2**29),
        ("2tb", 2 * 10**12),
    ],
)
def test_a_budget_is_a_number_of_bytes(
    pytester: pytest.Pytester, given: str, count: int | None
) -> None:
    pytester.makeini(f"[pytest]\nbn_snapshot_budget = {given}")
    config = pytester.parseconfigure()
    assert config.stash[SETTINGS].run.snapshot_budget == count
    assert run_config.current.snapshot_budget == count
    config._ensure_unconfigure()
    assert run_config.current.snapshot_budget is None


@pytest.mark.parametrize("given", ["much", "-1", "5 apples", "1e9", "25%", "MB"])
def test_anything_else_is_an_error_of_usage(pytester: pytest.Pytester, given: str) -> None:
    pytester.makeini(f"[pytest]\nbn_snapshot_budget = {given}")
    with pytest.raises(pytest.UsageError) as caught:
        pytester.parseconfigure()
    assert str(caught.value) == (
        f"bn_snapshot_budget={given}: expected a number of bytes, or a number with one of "
        "B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, such as 512MB"
    )
