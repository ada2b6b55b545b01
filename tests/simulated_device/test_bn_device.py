"""`--bn-device` takes the device by its name."""

from __future__ import annotations

import pytest

from tests.plugin.sessions import Sessions

TEST = """
    def test_where(bn_device):
        assert bn_device.type == "simdev"
        assert torch.ones(2, device=bn_device).sum().item() == 2
"""


@pytest.mark.parametrize(
    ("option", "name"),
    [("simdev", "simdev"), ("simdev:1", "simdev:1"), ("auto", "simdev")],
)
def test_a_test_runs_on_it(sessions: Sessions, option: str, name: str) -> None:
    session = sessions.run(TEST, f"--bn-device={option}")
    assert session.outcomes == {f"test_where[{name}]": "passed"}


def test_all_has_it_beside_the_cpu(sessions: Sessions) -> None:
    session = sessions.run("def test_where(bn_device): pass", "--bn-device=all")
    assert list(session.outcomes) == ["test_where[cpu]", "test_where[simdev]"]


def test_an_index_that_is_not_there_says_how_many_there_are(sessions: Sessions) -> None:
    sessions.pytester.makepyfile(TEST)
    result = sessions.bare("--bn-device=simdev:7")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = "--bn-device=simdev:7: there are 2 devices of this kind, simdev:0 to simdev:1"
    assert said in result.stderr.str()


def test_the_kit_runs_on_it(sessions: Sessions) -> None:
    result = sessions.bare(
        *("--pyargs", "pytest_bninvariants.conformance", "--bn-impl=torch.nn:BatchNorm2d"),
        *("--bn-laws=counter,running_mean", "--bn-dtype=float32", "--bn-examples=3"),
        *("--bn-device=simdev", "-v"),
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*running_mean-BatchNorm2d-float32-simdev*PASSED*"])
