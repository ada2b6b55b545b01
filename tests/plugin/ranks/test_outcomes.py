"""What all ranks report becomes one report, in the terminal and in junit's file alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugin.sessions import Session, Sessions

Run = Callable[..., Session]


def test_a_test_passes_where_all_ranks_pass_and_fails_where_one_does(run: Run) -> None:
    session = run(
        """
        @pytest.mark.ranks(3)
        def test_holds():
            total = torch.tensor(rank())
            distributed.all_reduce(total)
            assert total == 0 + 1 + 2

        @ranks
        def test_fails_on_one():
            assert rank() == 0

        @ranks
        def test_fails_on_both():
            assert rank() < 0, "never"
        """,
    )
    assert session.outcomes["test_holds"] == "passed"
    assert session.outcomes["test_fails_on_one"] == "failed"
    assert session.texts["test_fails_on_one"].startswith("rank 1: assert 1 == 0\n")
    assert session.summaries["test_fails_on_one"] == "rank 1: assert 1 == 0"
    assert "- rank 0 -" in session.texts["test_fails_on_one"]
    assert session.texts["test_fails_on_one"].rstrip().endswith("passed")
    for values in ("0 < 0", "1 < 0"):
        assert f"AssertionError: never assert {values}" in session.says("test_fails_on_both")


def test_a_guards_whole_verdict_comes_from_the_rank_that_broke_it(run: Run) -> None:
    session = run(
        """
        @ranks
        @pytest.mark.frozen_bn
        def test_drifts_on_one(model):
            (drift if rank() == 1 else hold)(model)

        @ranks
        @pytest.mark.frozen_bn
        def test_holds(model):
            hold(model)

        @ranks
        def test_drifts_on_both(model, frozen):
            with frozen(model):
                drift(model)
        """,
    )
    assert session.outcomes["test_holds"] == "passed"
    text = session.texts["test_drifts_on_one"]
    assert text.startswith("rank 1: 2 of 2 frozen BN layers changed: bn1, bn2 (mode-flip)")
    assert "bn1.running_mean" in session.says("test_drifts_on_one")
    assert "put in training mode by Net.train(True)" in session.says("test_drifts_on_one")
    assert session.texts["test_drifts_on_both"].startswith("rank ")
    assert session.texts["test_drifts_on_both"].rstrip().endswith("failed in the same way")


def test_expected_failures_and_skips_are_judged_over_all_ranks(run: Run) -> None:
    session = run(
        """
        @ranks
        @pytest.mark.xfail(strict=True, reason="only rank 1")
        def test_xfails_on_one():
            assert rank() == 0

        @ranks
        @pytest.mark.xfail(strict=True)
        def test_passes_unexpectedly():
            pass

        @ranks
        def test_skips():
            pytest.skip("not here")

        @ranks
        def test_skips_on_one():
            if rank() == 1:
                pytest.skip("not here")

        @ranks
        @pytest.mark.skip(reason="starts no ranks")
        def test_is_skipped():
            raise AssertionError
        """,
    )
    assert session.outcomes == {
        "test_xfails_on_one": "xfailed",
        "test_passes_unexpectedly": "failed",
        "test_skips": "skipped",
        "test_skips_on_one": "failed",
        "test_is_skipped": "skipped",
    }
    told = "rank 1: skipped this test (not here), but rank 0 did not"
    assert session.texts["test_skips_on_one"].startswith(told)


def test_fixtures_are_made_on_each_rank_and_not_in_the_parent(
    run: Run, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sessions.folder / "made"
    monkeypatch.setenv("MADE", str(made))
    session = run(
        """
        @pytest.fixture(scope="session", autouse=True)
        def noted():
            with open(os.environ["MADE"], "a") as file:
                file.write(f"made on rank {os.environ.get('RANK')}\\n")
            yield
            with open(os.environ["MADE"], "a") as file:
                file.write(f"ended on rank {os.environ.get('RANK')}\\n")

        @pytest.fixture
        def broken_on_one():
            assert rank() == 0

        @pytest.fixture
        def torn_on_one():
            yield
            distributed.barrier()
            assert rank() == 0

        @ranks
        def test_cannot_begin(broken_on_one):
            pass

        @ranks
        def test_cannot_end(torn_on_one, tmp_path):
            assert tmp_path.parts[-2] == f"rank{rank()}"
        """,
    )
    assert session.outcomes == {"test_cannot_begin": "error", "test_cannot_end": "passed error"}
    assert session.texts["test_cannot_begin"].startswith("rank 1: ")
    assert session.texts["test_cannot_end"].startswith("rank 1: ")
    words = ("made", "ended")
    assert sorted(made.read_text().splitlines()) == sorted(
        f"{word} on rank {rank}" for word in words for rank in (0, 1) for _ in session.outcomes
    )


def test_what_the_ranks_capture_record_and_warn_of_is_reported(
    run: Run, sessions: Sessions
) -> None:
    session = run(
        """
        @ranks
        def test_holds(record_property, frozen, model):
            print("printed on", rank())
            record_property("size", 2)
            record_property("rank", rank())
            with frozen(model):
                model.fc.weight = nn.Parameter(model.fc.weight.detach().clone())
        """,
    )
    for number in (0, 1):
        assert f"printed on {number}" in session.lines
    assert session.output.count("replaced by a tensor with equal values") == 1
    xml = Path(sessions.folder / "junit.xml").read_text()
    for pair in (("size", 2), ("rank", 0), ("rank (rank 1)", 1)):
        assert '<property name="{}" value="{}" />'.format(*pair) in xml
    assert xml.count('<property name="bn_verdict"') == 1
    assert xml.count("<property ") == 4


def test_an_audit_tells_of_the_leaks_of_every_rank(run: Run) -> None:
    session = run(
        """
        @ranks
        def test_leaks_on_one(model):
            model.requires_grad_(False)
            (drift if rank() == 1 else hold)(model)
        """,
        "--bn-audit",
    )
    assert session.outcomes == {"test_leaks_on_one": "passed"}
    assert "Net: 2 frozen BN layers moved: bn1, bn2" in session.lines
