"""What the marker cannot do is refused with the value, and what is accepted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.plugin.sessions import Session, Sessions

Run = Callable[..., Session]

TAKES = (
    "cannot judge: @pytest.mark.ranks takes the number of ranks, an int from 1 on, as in ranks(2)"
)
SECONDS = "cannot judge: @pytest.mark.ranks(timeout=...) takes the seconds that the test may take"
WRONG = {
    "": f"{TAKES}; got nothing",
    "()": f"{TAKES}; got nothing",
    "(0)": f"{TAKES}; got 0 (int)",
    "(True)": f"{TAKES}; got True (bool)",
    "('2')": f"{TAKES}; got '2' (str)",
    "(2.0)": f"{TAKES}; got 2.0 (float)",
    "(2, 'nccl')": f"{TAKES}; got 2 (int), 'nccl' (str)",
    "(2, timeout=-1)": f"{SECONDS}, above 0; got -1 (int)",
    "(2, timeout=True)": f"{SECONDS}, above 0; got True (bool)",
    "(2, timeout='5')": f"{SECONDS}, above 0; got '5' (str)",
    "(2, timeout=float('nan'))": f"{SECONDS}, above 0; got nan (float)",
    "(2, timout=5)": "cannot judge: @pytest.mark.ranks has no option timout=; did you mean "
    "timeout=? (accepted: backend, timeout)",
    "(2, backend='glo')": "cannot judge: @pytest.mark.ranks(backend='glo'): accepted are gloo",
    "(2, backend=2)": "cannot judge: @pytest.mark.ranks(backend=...) takes a name such as 'gloo' "
    "or 'nccl'; got 2 (int)",
}


def test_a_wrong_argument_is_named_with_what_is_accepted(run: Run) -> None:
    tests = [
        f"@pytest.mark.ranks{written}\n@pytest.mark.xfail\ndef test_{number}():\n    pass\n"
        for number, written in enumerate(WRONG)
    ]
    session = run("\n".join(tests))
    for number, told in enumerate(WRONG.values()):
        assert session.outcomes[f"test_{number}"] == "error"
        assert session.says(f"test_{number}").startswith(told)


@pytest.mark.parametrize("option", ["--pdb", "--trace"])
def test_a_debugger_is_refused_and_does_not_stop(sessions: Sessions, option: str) -> None:
    session = sessions.run(
        """
        @pytest.mark.ranks(2)
        def test_it():
            pass
        """,
        option,
        alone=True,
    )
    assert session.outcomes == {"test_it": "error"}
    assert f"@pytest.mark.ranks(2) under {option}: the ranks are" in session.says("test_it")
    assert "(Pdb)" not in session.output


def test_a_torch_without_distributed_is_an_error_and_no_skip(run: Run, sessions: Sessions) -> None:
    sessions.pytester.makepyfile(
        other_torch="import torch.distributed\ntorch.distributed.is_available = lambda: False\n"
    )
    session = sessions.run(
        """
        @pytest.mark.ranks(2)
        def test_it():
            pass
        """,
        *("-p", "other_torch"),
        alone=True,
    )
    assert session.outcomes == {"test_it": "error"}
    assert "needs torch.distributed, and this torch is built without it" in session.says("test_it")


def test_a_marker_that_a_fixture_adds_is_too_late(run: Run) -> None:
    session = run(
        """
        @pytest.fixture
        def marked(request):
            request.node.add_marker(pytest.mark.ranks(2))

        def test_it(marked):
            pass
        """
    )
    assert session.outcomes == {"test_it": "failed"}
    told = "@pytest.mark.ranks(2) was added while the test ran, too late to start ranks"
    assert told in session.says("test_it")


def test_one_rank_of_a_launcher_is_not_taken_for_two(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    source = "import pytest\n\n@pytest.mark.ranks(2)\ndef test_it():\n    pass\n"
    sessions.pytester.makepyfile(test_it=source)
    told = sessions.bare(alone=True).stdout.str()
    assert "asks for 2 ranks, and this run has 1 (WORLD_SIZE=1" in told


def test_a_doctest_in_a_marked_module_runs_as_it_does(run: Run) -> None:
    session = run(
        '''
        pytestmark = ranks

        def one():
            """
            >>> one()
            1
            """
            return 1
        ''',
        "--doctest-modules",
    )
    assert session.outcomes == {"test_it.one": "passed"}
