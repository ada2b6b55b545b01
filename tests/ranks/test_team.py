from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import torch

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.ranks.team import RankAnswer, RankJob, RankTeam, RankTeams, first_trouble


@pytest.fixture(scope="module")
def team() -> Iterator[RankTeam]:
    with RankTeams(seconds=4) as teams:
        yield teams.team(2, "cpu")


def ask(team: RankTeam, *lines: str, setup: tuple[str, ...] = (), of: str = "") -> list[RankAnswer]:
    return team.run(RankJob(setup=setup, lines=lines, results=(of,) if of else ()))


def values(answers: list[RankAnswer]) -> list[object]:
    assert first_trouble(answers) is None
    return [answer.values[0] for answer in answers]


def test_all_ranks_run_a_job_together(team: RankTeam) -> None:
    answers = ask(team, "x = torch.ones(2) * (rank + 1)", "distributed.all_reduce(x)", of="x")
    for value in values(answers):
        assert torch.equal(value, torch.full((2,), 3.0))


def test_one_start_serves_many_jobs(team: RankTeam) -> None:
    processes = values(ask(team, "import os", of="os.getpid()"))
    assert len({*processes, os.getpid()}) == 3
    for _ in range(20):
        assert values(ask(team, "import os", of="os.getpid()")) == processes


def test_what_is_set_up_stays_and_what_a_job_binds_does_not(team: RankTeam) -> None:
    setup = ("import math\nstarts = globals().get('starts', 0) + 1",)
    for _ in range(2):
        assert values(ask(team, "one = 1", setup=setup, of="(starts, math.pi > 3)")) == 2 * [
            (1, True)
        ]
    with_one = ask(team, of="one")
    assert first_trouble(with_one) is not None
    assert with_one[0].trouble == "raised NameError: name 'one' is not defined"


def test_the_line_of_a_block_that_raises_is_told(team: RankTeam) -> None:
    answers = ask(team, "if rank == 1:\n    a = 0\n    1 / a")
    assert answers[1].trouble == "raised ZeroDivisionError: division by zero"
    assert answers[1].line == "1 / a"
    assert answers[0] == RankAnswer(rank=0)


def test_a_rank_that_waits_for_one_that_raised_is_stopped(team: RankTeam) -> None:
    answers = ask(team, "if rank == 1: raise KeyError('no')", "distributed.barrier()")
    trouble = first_trouble(answers)
    assert trouble is answers[1]
    assert answers[0].trouble.startswith("was not done after 4 s; it waited in barrier")
    assert answers[0].line == "distributed.barrier()"


def test_a_rank_that_waits_for_ever_is_stopped_and_others_start(team: RankTeam) -> None:
    before = values(ask(team, "import os", of="os.getpid()"))
    start = time.monotonic()
    answers = ask(team, "if rank == 0:\n    distributed.barrier()")
    assert time.monotonic() - start < 12
    assert answers[0].trouble.startswith("was not done after 4 s; it waited in barrier")
    assert answers[0].line == "distributed.barrier()"
    assert not set(values(ask(team, "import os", of="os.getpid()"))) & set(before)


def test_a_rank_that_dies_comes_first(team: RankTeam) -> None:
    kill = "import os, signal\nif rank == 0: os.kill(os.getpid(), signal.SIGKILL)"
    trouble = first_trouble(ask(team, kill, "distributed.barrier()"))
    assert trouble
    assert (trouble.rank, trouble.trouble, trouble.died) == (0, "was killed by SIGKILL", True)


def test_a_rank_that_leaves_by_itself_is_told(team: RankTeam) -> None:
    trouble = first_trouble(ask(team, "import os\nif rank == 1: os._exit(3)"))
    assert trouble
    assert trouble.trouble.startswith("exited with code 3")


def test_closed_teams_leave_no_process() -> None:
    with RankTeams() as teams:
        processes = values(ask(teams.team(3, "cpu"), "import os", of="os.getpid()"))
    assert len(processes) == 3
    for process in processes:
        assert isinstance(process, int)
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_ranks_that_cannot_start_are_an_error_with_what_they_wrote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    team = RankTeam(2)
    order = team._order

    def broken(folder: str, port: int, token: str) -> dict[str, object]:
        return order(folder, port, token) | {"backend": "nonsense"}

    monkeypatch.setattr(team, "_order", broken)
    with pytest.raises(GateError, match=r"(?s)2 ranks did not start on cpu.*nonsense"):
        ask(team, "x = 1")
